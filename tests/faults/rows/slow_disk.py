"""Row 15: the hub's disk is many times slower than what the nodes send; memory is bounded, the data wait on the nodes.

Every fsync of ingest takes a good part of a second; then the disk is quick again, and all goes on in the same process.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.faults.io_errors import missing_for_io_errors, slow_syncs
from tests.faults.played import Size
from tests.faults.stage import Settings, Stage
from tests.faults.trial import Row, TrialResult

WINDOW_BYTES: Final = 1_000_000  # the least that max_inflight_bytes may be


def trial(rng: random.Random, folder: Path) -> TrialResult:
    # 16 kB a chunk, 2 x 1.6 MB/s offered; at most WINDOW_BYTES a commit, and every commit syncs several times.
    with Stage(rng, folder, Size(nodes=2, seconds=400, rate_hz=500, channels=16, speed=100)) as stage:
        settings = Settings(ingest=f"max_inflight_bytes = {WINDOW_BYTES}\ncommit_bytes = {WINDOW_BYTES // 4}")
        settings.uplink = "resend_after_s = 1.0\nmax_inflight_bytes = 2000000"
        stage.configure(settings)
        ingest = stage.ingests[0]
        ingest.environment["MALLOC_ARENA_MAX"] = "2"
        stage.start()
        most_waiting = 0

        def pressed() -> bool:
            nonlocal most_waiting
            most_waiting = max(most_waiting, *(w.records for w in stage.waiting() if w is not None))
            return most_waiting > 150

        with slow_syncs(ingest, rng.uniform(0.2, 0.8)):
            stage.wait(pressed, 180, "the data wait on the nodes' disks")
            stage.go_on(rng.uniform(0, 1.5))
        stage.fault_is_over()
        result = stage.within_memory(stage.settle(), 8 * WINDOW_BYTES)
        again = [f"{p.name} had to be started again" for p in stage.programs if p.starts > 1]
        return replace(result, failures=(*result.failures, *again))


ROW: Final = Row(15, "slow disk under ingest", trial, 10.0, missing_for_io_errors)
