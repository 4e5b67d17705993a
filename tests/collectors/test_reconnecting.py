"""How long sessions wait between two attempts to reach the broker."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from collectors.hub.subscriber import Subscriber
from infomae_stream.node_config import MqttSettings
from infomae_stream.session import FIRST_BACKOFF_S, MqttSession
from tests.brokers import Broker, end
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
JITTER = (0.5, 1.5)


class Waits(threading.Event):
    """Stands for a session's stop signal: notes how long each wait was to be, and shortens it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_s: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.asked_s.append(timeout or 0.0)
        return super().wait(0.02)


@pytest.mark.parametrize("session_type", [MqttSession, Subscriber])
def test_after_a_connection_the_back_off_starts_from_its_shortest_again(
    tmp_path: Path, session_type: type[MqttSession]
) -> None:
    longest_s = session_type.longest_backoff_s
    with ExitStack() as stack:
        broker = Broker("mosquitto", tmp_path)  # not started: nobody listens on its port
        stack.callback(lambda: broker.process and broker.kill())
        session = session_type(MqttSettings(port=broker.port), "hub", subscriptions=[("x", 1)])
        waits = session._stop = Waits()
        session.start()
        stack.callback(end, session)
        wait_until(lambda: len(waits.asked_s) >= 10, what="ten vain attempts")
        assert longest_s * JITTER[0] <= min(waits.asked_s[8:10]) and max(waits.asked_s) <= longest_s * JITTER[1]
        broker.start()
        wait_until(lambda: session.connected, what="the connection")
        before = len(waits.asked_s)
        broker.kill()
        wait_until(lambda: len(waits.asked_s) >= before + 10, what="ten more attempts")
        again_s = waits.asked_s[before : before + 10]
        assert FIRST_BACKOFF_S * JITTER[0] <= again_s[0] <= FIRST_BACKOFF_S * JITTER[1]
        assert longest_s * JITTER[0] <= again_s[9] <= longest_s * JITTER[1]
