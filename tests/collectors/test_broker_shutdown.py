"""The embedded broker ends when it is told to, also when amqtt does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.brokers import free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
RUN = "import sys; from collectors.broker import run; run('127.0.0.1', int(sys.argv[1]), False)"
# As amqtt did once in a thousand fault trials.
STUCK = """
import asyncio
from amqtt.broker import Broker

async def shutdown(self):
    await asyncio.Event().wait()

Broker.shutdown = shutdown
"""


@pytest.mark.parametrize(("before", "said"), [("", "broker_stopped"), (STUCK, "broker_left_clients")])
def test_the_broker_ends_with_0_when_told_to(tmp_path: Path, before: str, said: str) -> None:
    log = tmp_path / "log"
    with log.open("wb") as f:
        broker = subprocess.Popen(
            [sys.executable, "-c", before + RUN, str(free_port())],
            stderr=f,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    try:
        # Its handlers are there by then.
        wait_until(lambda: "broker_started" in log.read_text(), what="the broker's start")
        broker.send_signal(signal.SIGTERM)
        assert broker.wait(60) == 0
        assert said in log.read_text()
    finally:
        broker.kill()
        broker.wait()
