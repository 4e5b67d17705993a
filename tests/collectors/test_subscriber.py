from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from collectors.subscriber import Subscriber
from infomae_stream.node_config import MqttSettings
from infomae_stream.session import MqttSession
from tests.brokers import Broker, wait_until

pytestmark = pytest.mark.slow


def test_a_hub_that_does_not_read_still_says_what_it_has_stored(tmp_path: Path) -> None:
    with ExitStack() as stack:
        broker = Broker("mosquitto", tmp_path).start()
        stack.callback(broker.stop)
        settings = MqttSettings(port=broker.port)
        hub = Subscriber(settings, "hub", subscriptions=[("x", 1)], max_incoming_bytes=50_000)
        node = MqttSession(settings, "node", subscriptions=[("ack", 1)])
        assert not hub.publish_once("ack", b"without a connection")
        for session in (hub, node):
            session.start()
            stack.callback(session.close)
        wait_until(lambda: hub.connected and node.connected, what="connection")
        for _ in range(400):
            assert node.publish("x", bytes(10_000))
        wait_until(lambda: hub.pauses > 0, what="a pause in reading")
        sent = 300
        for i in range(sent):
            assert hub.publish_once("ack", b"%d" % i)
        got: list[bytes] = []

        def all_came() -> bool:
            got.extend(m.payload for m in node.poll(0.1))
            return len(got) >= sent

        wait_until(all_came, what="every acknowledgement, while the hub reads nothing")
        assert got == [b"%d" % i for i in range(sent)]
