"""Row 2: SIGSTOP and SIGCONT of node, ingest and broker; and an old client taken over by one of the same name.

Most stops last 1-8 s, one in twenty 30-120 s. With a keep-alive of 5 s instead of 30 s the broker gives up a client
after 7.5 s, so both sides of that are tried.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Final

from infomae_stream.node_config import MqttSettings
from infomae_stream.session import MqttSession
from tests.faults.played import Size
from tests.faults.stage import Settings, Stage
from tests.faults.trial import Row, TrialResult

LONG_SHARE: Final = 0.05
LONG_S: Final = (30, 60, 120)


def trial(rng: random.Random, folder: Path) -> TrialResult:
    seconds = rng.choice(LONG_S) if rng.random() < LONG_SHARE else rng.choice([1, 1, 1, 2, 2, 4, 8])
    # There is something to take all the time.
    size = Size(nodes=2, seconds=300, speed=100) if seconds < 10 else Size(nodes=2, seconds=600, speed=600 / seconds)
    with Stage(rng, folder, size) as stage:
        stage.configure(Settings(mqtt="keepalive_s = 5"))
        stage.start()
        stage.go_on(rng.uniform(0, 1))
        if seconds < 10 and rng.random() < 0.25:
            _take_over(stage)
        else:
            victims = rng.sample([stage.node.pid, stage.ingests[0].pid, stage.broker.pid], rng.choice([1, 1, 2]))
            _stop(stage, victims, seconds)
        stage.fault_is_over()
        return stage.settle()


def _stop(stage: Stage, pids: list[int], seconds: float) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        stage.go_on(seconds)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _take_over(stage: Stage) -> None:
    """Another client with the node's name comes: the broker throws the node out, and the node comes back."""
    name = stage.rng.choice(stage.recordings).node
    for _ in range(3):
        intruder = MqttSession(MqttSettings(port=stage.broker.port), name)
        intruder.start()
        stage.wait(lambda other=intruder: other.connected, 20, "the second client of this name is in")
        intruder.close()


ROW: Final = Row(2, "stopped and continued; taken over", trial, 9.0)
