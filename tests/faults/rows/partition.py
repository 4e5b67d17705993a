"""Row 5: no way through, only one direction, a link that flaps; some with an outbox too small for it: it sheds."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

from tests.faults.played import Size
from tests.faults.proxies import DOWN, UP, Proxy
from tests.faults.stage import Settings, Stage
from tests.faults.trial import Row, TrialResult


def trial(rng: random.Random, folder: Path) -> TrialResult:
    sheds = rng.random() < 0.3
    size = (
        Size(nodes=1, seconds=240, rate_hz=500, channels=16, speed=80)
        if sheds
        else Size(nodes=2, seconds=300, speed=100)
    )
    with (
        Stage(rng, folder, size) as stage,
        Proxy(stage.broker.port) as before_node,
        Proxy(stage.broker.port) as before_ingest,
    ):
        settings = Settings(node_port=before_node.port, ingest_port=before_ingest.port, mqtt="keepalive_s = 5")
        if sheds:
            settings.outbox = "reserve_bytes = 0\nmax_bytes = 1000000"
        stage.configure(settings)
        stage.start()
        stage.go_on(rng.uniform(0, 0.5))
        kind = rng.choice(["whole", "one way", "flapping"])
        proxy = before_node if sheds else rng.choice([before_node, before_ingest])
        for _ in range(rng.randint(4, 8) if kind == "flapping" else 1):
            proxy.closed = frozenset({rng.choice([UP, DOWN])}) if kind == "one way" else frozenset({UP, DOWN})
            proxy.refuses = kind != "one way"
            stage.go_on(rng.uniform(0.1, 0.6) if kind == "flapping" else rng.choice([1, 1, 2, 2, 4, 9]))
            # Some links heal with what was under way, after others every connection is dead.
            if rng.random() < 0.5:
                proxy.cut()
            proxy.closed, proxy.refuses = frozenset(), False
            stage.go_on(rng.uniform(0.0, 0.4))
        stage.fault_is_over()
        return stage.settle()


ROW: Final = Row(5, "partition, one way, flapping", trial, 7.0)
