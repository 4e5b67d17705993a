"""What a row of the fault matrix is: a seeded experiment that repeats, judged by truth logs against the lake."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TrialResult:
    """accepted, lost, logical_duplicates, physical_duplicates, shed: records, told by the independent verifier.

    shed: accepted or offered, given up by policy, each inside a gap record. peak_memory_bytes: the largest of our
    processes; peak_disk_bytes: outboxes, lake and dead letters together; 0 where a trial runs no process of its own.
    recovery_s: from the end of the fault to the moment when nothing waits any more.
    failures: what else went wrong, in words; a trial passed when there are none, nothing is lost and nothing doubled.
    hits: names of the failpoints at which a process killed itself. seconds: what the trial took, told by the runner.
    """

    accepted: int
    lost: int
    logical_duplicates: int
    physical_duplicates: int = 0
    shed: int = 0
    peak_memory_bytes: int = 0
    peak_disk_bytes: int = 0
    recovery_s: float = 0.0
    failures: tuple[str, ...] = ()
    hits: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return not (self.lost or self.logical_duplicates or self.failures)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the fault matrix.

    trial(rng, folder): runs one trial in an empty folder; everything random comes from `rng`, so that a seed repeats
    it. It cleans up its processes, mounts and rules also when it fails. seconds: what a trial takes, roughly; the
    runner shares trials out by it. missing(): what this machine lacks for it, "" when nothing.
    failpoints: a full round must have killed a process at each of these.
    """

    number: int
    title: str
    trial: Callable[[random.Random, Path], TrialResult]
    seconds: float
    missing: Callable[[], str] = lambda: ""
    failpoints: tuple[str, ...] = ()
