"""Row 6: PUBLISH packets doubled and out of order, on the way to the broker and on the way to node and ingest."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

from tests.faults.played import Size
from tests.faults.proxies import Proxy, shuffled_publishes
from tests.faults.stage import Settings, Stage
from tests.faults.trial import Row, TrialResult


def trial(rng: random.Random, folder: Path) -> TrialResult:
    shape = shuffled_publishes(rng, doubled=rng.uniform(0.1, 0.5), held=rng.uniform(0.1, 0.5))
    with (
        Stage(rng, folder, Size(nodes=2, seconds=300, speed=100)) as stage,
        Proxy(stage.broker.port, shape) as proxy,
    ):
        stage.configure(
            Settings(node_port=proxy.port, ingest_port=proxy.port, mqtt=rng.choice(["", "protocol = '3.1.1'"]))
        )
        stage.start()
        stage.fault_is_over()
        return stage.settle()


ROW: Final = Row(6, "PUBLISH doubled and reordered", trial, 6.0)
