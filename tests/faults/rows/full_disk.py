"""Row 7: the disk of a node, or of the hub, is full to the last byte for a while; both recover without a restart."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.faults.played import Size
from tests.faults.small_disk import SmallDisk, missing_for_mounts
from tests.faults.stage import Settings, Stage
from tests.faults.trial import Row, TrialResult


def trial(rng: random.Random, folder: Path) -> TrialResult:
    on_node = rng.random() < 0.5
    # The node plays 16 kB chunks, 1.3 MB/s: it finds no room at once, and must shed.
    size = (
        Size(nodes=1, seconds=240, rate_hz=500, channels=16, speed=80)
        if on_node
        else Size(nodes=2, seconds=300, speed=100)
    )
    with SmallDisk(folder / "disk", 48_000_000) as disk, Stage(rng, folder, size) as stage:
        settings = Settings(state="disk/state") if on_node else Settings(lake="disk/lake")
        if on_node:
            settings.outbox = f"reserve_bytes = {rng.choice([0, 0, 2_000_000])}"
        stage.configure(settings)
        stage.start()
        stage.go_on(rng.uniform(0, 0.7))

        def noticed() -> bool:
            disk.fill()
            return "outbox_full" in stage.node.log() or "commit_refused" in stage.ingests[0].log()

        for _ in range(rng.choice([1, 1, 2])):
            for _ in range(rng.randint(8, 30)):
                disk.fill()
                stage.go_on(0.05)
            # A busy machine may not have written anything meanwhile.
            stage.wait(noticed, 180, "a program has noticed the full disk")
            disk.free()
            stage.go_on(rng.uniform(0, 0.5))
        stage.fault_is_over()
        result = stage.settle()
        again = [f"{p.name} had to be started again" for p in stage.programs if p.starts > 1]
        return replace(result, failures=(*result.failures, *again))


ROW: Final = Row(7, "disk full on node or hub", trial, 7.0, missing_for_mounts)
