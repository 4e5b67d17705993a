"""Row 8: write and fsync fail with EIO in the node or in ingest, now and then or every time, while they run.

What failed to be synced must be written anew through a new descriptor: the kernel may have dropped the pages, and a
second fsync of the same descriptor says yes to nothing. Here the call fails before the kernel sees it, so this row
shows that an error is never taken for a success; what a lost page does is row 9's (power cuts).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

from tests.faults.io_errors import failed_calls, failing_calls, missing_for_io_errors, synced_again
from tests.faults.played import Size
from tests.faults.stage import Settings, Stage
from tests.faults.trial import Row, TrialResult

# SQLite writes with pwrite and syncs with fdatasync; segments and commits go by write and fsync.
CALLS: Final = {"node": ("pwrite64", "fdatasync"), "ingest": ("write", "fsync")}


def trial(rng: random.Random, folder: Path) -> TrialResult:
    with Stage(rng, folder, Size(nodes=2, seconds=300, speed=100)) as stage:
        stage.configure(Settings())
        # Its log is written with `write` too.
        stage.logging_may_fail = True
        victim = rng.choice(stage.programs)
        stage.start()
        stage.go_on(rng.uniform(0, 0.3))
        calls = rng.choice([(call,) for call in CALLS[victim.name]] + [CALLS[victim.name]])
        with failing_calls(victim, calls, rng.choice([1, 1, 2, 3, 7])):
            stage.wait(lambda: failed_calls(victim) >= 3 or stage.drained(), 180, "calls have failed")
            stage.go_on(rng.uniform(0, 1.0))
        stage.fault_is_over()
        if again := synced_again(victim):
            stage.failures.append(f"{victim.name} synced a descriptor again after its sync had failed: {again[:3]}")
        return stage.settle()


ROW: Final = Row(8, "EIO on write and fsync", trial, 6.0, missing_for_io_errors)
