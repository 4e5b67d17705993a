"""Row 15: the hub's disk is many times slower than what the nodes send; memory is bounded, the data wait on the nodes.

The disk is slowed by a failpoint that sleeps in every segment or commit.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.faults.played import Size
from tests.faults.stage import Settings, Stage
from tests.faults.trial import Row, TrialResult

WINDOW_BYTES: Final = 1_000_000  # the least that max_inflight_bytes may be


def trial(rng: random.Random, folder: Path) -> TrialResult:
    # 16 kB a chunk, 2 x 1.6 MB/s offered; at most WINDOW_BYTES a commit, and every commit sleeps.
    with Stage(rng, folder, Size(nodes=2, seconds=400, rate_hz=500, channels=16, speed=100)) as stage:
        settings = Settings(ingest=f"max_inflight_bytes = {WINDOW_BYTES}\ncommit_bytes = {WINDOW_BYTES // 4}")
        settings.uplink = "resend_after_s = 1.0\nmax_inflight_bytes = 2000000"
        stage.configure(settings)
        place, seconds = rng.choice(["segment.before_sync", "lake.before_commit"]), rng.uniform(0.8, 1.5)
        stage.failpoints["ingest"] = [f"{place}=sleep:{seconds:.2f}"]
        stage.ingests[0].environment["MALLOC_ARENA_MAX"] = "2"
        stage.start(armed=True)
        most_waiting = 0

        def pressed() -> bool:
            nonlocal most_waiting
            most_waiting = max(most_waiting, *(w.records for w in stage.waiting() if w is not None))
            return most_waiting > 150

        stage.wait(pressed, 60, "the data wait on the nodes' disks")
        stage.go_on(rng.uniform(0, 1.5))
        # The disk is quick again: the same process without the failpoint.
        slow = stage.ingests[0]
        if code := slow.stop():
            stage.failures.append(f"ingest ended with {code} under pressure")
        slow.start()
        stage.fault_is_over()
        result = stage.within_memory(stage.settle(), 8 * WINDOW_BYTES)
        return replace(result)


ROW: Final = Row(15, "slow disk under ingest", trial, 9.0)
