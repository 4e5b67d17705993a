"""Row 4: delay, a low rate, stalls and resets between node and broker, or broker and ingest; memory stays bounded."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

from tests.faults.played import Size
from tests.faults.proxies import Proxy
from tests.faults.stage import Settings, Stage
from tests.faults.trial import Row, TrialResult


def trial(rng: random.Random, folder: Path) -> TrialResult:
    # 16 kB a chunk, so that a low rate and full buffers are felt.
    with (
        Stage(rng, folder, Size(nodes=2, seconds=120, rate_hz=500, channels=16, speed=60)) as stage,
        Proxy(stage.broker.port) as before_node,
        Proxy(stage.broker.port) as before_ingest,
    ):
        settings = Settings(node_port=before_node.port, ingest_port=before_ingest.port)
        settings.uplink = "resend_after_s = 2.0\nmax_inflight_bytes = 300000"
        settings.ingest = "max_inflight_bytes = 1000000"
        stage.configure(settings)
        stage.start()
        stage.go_on(rng.uniform(0, 0.5))
        proxy = rng.choice([before_node, before_ingest])
        kind = rng.choice(["delay", "low rate", "stalls", "resets", "all"])
        if kind in ("delay", "all"):
            proxy.delay_s = rng.uniform(0.05, 0.4)
        if kind in ("low rate", "all"):
            proxy.bytes_per_s = rng.uniform(100_000, 400_000)
        for _ in range(rng.randint(2, 5)):
            stage.go_on(rng.uniform(0.1, 0.6))
            if kind in ("resets", "all"):
                proxy.cut()
            if kind in ("stalls", "all"):
                proxy.closed = frozenset({"up", "down"})
                stage.go_on(rng.uniform(0.1, 0.8))
                proxy.closed = frozenset()
        proxy.delay_s = proxy.bytes_per_s = 0.0
        stage.fault_is_over()
        result = stage.settle()
        return stage.within_memory(result)


ROW: Final = Row(4, "delay, low rate, stalls, resets", trial, 7.0)
