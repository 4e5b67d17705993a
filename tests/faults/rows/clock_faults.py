"""Row 10: the wall clock of node or hub jumps by a day, to 2038, stands still, drifts; a recording's clock jumps.

The first source plays its recording; a second takes samples as (the wrong) time goes; a third is a recording with a
clock that was set in the middle of a chunk. In some trials two nodes hear the same, and no pair may be false
(false_pairs.py).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

from tests.faults.faked_clock import FakedClock, missing_for_faked_clocks
from tests.faults.played import Size
from tests.faults.rows import false_pairs
from tests.faults.stage import Settings, Stage
from tests.faults.trial import Row, TrialResult
from tests.recording_files import write_csv

PAIRS_SHARE: Final = 0.3
CLOCKS: Final = (
    "+1d",
    "-1d",
    "+3600",
    "-2",
    "@2038-01-19 03:14:05",
    "2038-01-19 03:14:07",  # no @: it stands still
    "2001-01-01 00:00:00",
    "+0 x1.0002",
)


def trial(rng: random.Random, folder: Path) -> TrialResult:
    return false_pairs.trial(rng, folder) if rng.random() < PAIRS_SHARE else _delivering(rng, folder)


def _delivering(rng: random.Random, folder: Path) -> TrialResult:
    times_ms = _times_with_steps(rng)
    write_csv(folder / "stepped.csv", times_ms)
    with Stage(rng, folder, Size(nodes=1, seconds=300, speed=100)) as stage:
        stage.configure(Settings())
        config = folder / "node.toml"
        config.write_text(
            f'{config.read_text()}[[nodes.sources]]\ntype = "synthetic"\nkinds = ["imu"]\nduration_s = 2.0\n'
            '[[nodes.sources]]\ntype = "replay"\npath = "stepped.csv"\nstream = "stepped"\nspeed = 0\n'
        )
        victims = rng.choice([[stage.node], [stage.node], stage.ingests, stage.programs])
        clock = FakedClock(folder / "clock")
        clock.set(rng.choice(("+0", *CLOCKS)))
        for program in victims:
            clock.give_to(program)
        stage.start()
        for _ in range(rng.randint(1, 3)):
            stage.go_on(rng.uniform(0.1, 0.8))
            clock.set(rng.choice(CLOCKS))
            if rng.random() < 0.3:
                victim = rng.choice(victims)
                victim.kill()
                stage.start_again(victim)
        stage.go_on(rng.uniform(0.1, 0.8))
        clock.set("+0")
        stage.fault_is_over()
        stage.wait(lambda: "sources_finished" in stage.node.log_since_start(), 180, "every source has ended")
        return stage.settle()


def _times_with_steps(rng: random.Random) -> list[int]:
    """Ten seconds at 100 Hz; now and then, mostly inside a chunk, the clock is set by up to two days."""
    steps = {rng.randrange(1, 1000): rng.choice([-172_800_000, -86_400_000, -5000, -30, 50, 3000, 86_400_000])}
    steps |= {rng.randrange(1, 1000): rng.randrange(-100_000, 100_000) for _ in range(rng.randint(0, 2))}
    times, now = [], 0
    for i in range(1000):
        now += 10 + steps.get(i, 0)
        times.append(now)
    return times


ROW: Final = Row(10, "clock steps, 2038, freeze, drift; pairs across them", trial, 15.0, missing_for_faked_clocks)
