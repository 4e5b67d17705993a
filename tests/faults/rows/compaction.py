"""Row 14: two writers, two compactors with vacuum, and a reader on one lake; writers and compactors are killed.

The lake starts with a past: commits of two hours ago, copies of records that a careless writer left, files that a
merge has replaced, a temporary and a file that no commit names. So vacuum has to delete while the others work.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infomae_stream.clock import ManualClock
from infomae_stream.failpoints import VARIABLE
from storage.compaction import compact
from storage.lake import Lake
from storage.rows import chunk_rows
from storage.schemas import TABLES
from storage.segments import write_segments
from storage.vacuum import vacuum
from storage.verify import compare
from tests.faults.trial import Row, TrialResult
from tests.faults.upkeep_programs import GRACE_S, ROWS, TARGET_BYTES, chunks_of, write_truth

ROOT = Path(__file__).resolve().parents[3]
NODES = ("s01-phone", "s01-watch")
PAST_BATCHES = 12
PAST_S = 7200.0
LONGEST_S = 180.0
WRITER_KILLS = ("segment.before_rename", "segment.after_rename", "lake.before_commit", "lake.after_commit")
UPKEEP_KILLS = (
    "compaction.before_rename",
    "compaction.before_commit",
    "compaction.after_commit",
    "lake.before_folder_sync",
    "vacuum.before_unlink",
)


@dataclass
class _Program:
    """A role that is started again whenever it was killed; every start takes the next of `kills`."""

    arguments: list[str]
    kills: list[str]
    folder: Path
    process: subprocess.Popen[str] | None = None
    output: str = ""
    armed: str = ""
    hits: list[str] = field(default_factory=list)
    peak_bytes: int = 0
    errors: list[str] = field(default_factory=list)

    def start(self) -> None:
        self.armed = self.kills.pop(0) if self.kills else ""
        environ = {**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: self.armed}
        command = [sys.executable, "-m", "tests.faults.upkeep_programs", *self.arguments]
        with (self.folder / f"{'-'.join(a for a in self.arguments if '/' not in a)}.log").open("a") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def tend(self) -> bool:
        """Start it again when it was killed; True when it has ended by itself."""
        if self.process is None:
            return True
        code = self.process.poll()
        if code is None:
            self.peak_bytes = max(self.peak_bytes, _resident_peak(self.process.pid))
            return False
        assert self.process.stdout is not None
        self.output = self.process.stdout.read()
        self.process.stdout.close()
        self.process = None
        if code == -9:
            self.hits.append(self.armed.partition("=")[0])
            self.start()
            return False
        if code:
            self.errors.append(f"{self.arguments[0]} ended with {code}")
        return True

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()


def _resident_peak(pid: int) -> int:
    """Bytes; 0 for a process that has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def trial(rng: random.Random, folder: Path) -> TrialResult:
    lake_path, truth, stop = folder / "lake", folder / "truth", folder / "stop"
    old_files = _past(rng, lake_path, truth)

    def program(kills: tuple[str, ...], most: int, *arguments: object) -> _Program:
        armed = [f"{rng.choice(kills)}=kill@{rng.randint(1, most)}"] if kills else []
        return _Program([str(a) for a in arguments], armed, folder)

    batches = rng.randint(12, 24)
    writers = [program(WRITER_KILLS, 8, "writer", lake_path, truth, node, PAST_BATCHES, batches) for node in NODES]
    keepers = [program(UPKEEP_KILLS, 3, "upkeep", lake_path, stop) for _ in range(2)]
    reader = program((), 1, "reader", lake_path, stop)
    everyone = [*writers, *keepers, reader]
    try:
        for each in everyone:
            each.start()
        _wait(writers, everyone)
        ended_s = time.monotonic()
        stop.touch()
        _wait(everyone, everyone)
        recovery_s = time.monotonic() - ended_s
    finally:
        for each in everyone:
            each.kill()
    return _judge(lake_path, truth, old_files, everyone, recovery_s)


def _past(rng: random.Random, lake_path: Path, truth: Path) -> list[Path]:
    """A lake of two hours ago; the files that the vacuum must delete."""
    lake = Lake(lake_path, ManualClock(time.time_ns() - round(PAST_S * 1e9)))
    log = lake.log("chunks")
    for batch in range(PAST_BATCHES):
        for node in NODES:
            write_truth(truth, node, chunks_of(node, batch))
            lake.append_chunks(chunks_of(node, batch), 7)
    copies = chunks_of(NODES[0], rng.randrange(PAST_BATCHES))
    adds = write_segments(log.table, TABLES["chunks"], chunk_rows(copies, 8), lake.now_ns())
    assert log.try_commit(log.version() + 1, adds, lake.now_ns())
    replaced = [p for p in log.table.rglob("*.parquet") if log.folder not in p.parents]
    compact(lake, tables=["chunks"], target_bytes=TARGET_BYTES, fan_in=3)
    live = {p.name for p in lake.added_files("chunks", -1, lake.version("chunks"))}
    orphan = replaced[0].with_name("part-00000000000000000000000000000000.parquet")
    orphan.write_bytes(replaced[0].read_bytes())
    stray = replaced[0].with_name(f".{orphan.name}.0.tmp")
    stray.write_bytes(b"PAR1")
    past = time.time() - PAST_S
    for path in lake_path.rglob("*"):
        os.utime(path, (past, past))
    return [orphan, stray, *(p for p in replaced if p.name not in live)]


def _wait(programs: list[_Program], everyone: list[_Program]) -> None:
    deadline = time.monotonic() + LONGEST_S
    while True:
        ended = {id(each): each.tend() for each in everyone}
        if all(ended[id(each)] for each in programs):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {LONGEST_S} s: {[each.arguments[0] for each in everyone]}")
        time.sleep(0.02)


def _judge(
    lake_path: Path, truth: Path, old_files: list[Path], everyone: list[_Program], recovery_s: float
) -> TrialResult:
    lake = Lake(lake_path)
    size = lake.size()[0]
    left = [path.name for path in old_files if path.exists()]
    twice = compare(truth, lake).physical_duplicates
    compact(lake, everything=True)
    vacuum(lake, grace_s=0.0)
    found = compare(truth, lake)
    told: dict[str, Any] = json.loads(everyone[-1].output or '{"reads": 0, "failures": ["the reader said nothing"]}')
    failures = [*told["failures"], *(error for each in everyone for error in each.errors)]
    failures += [f"{len(left)} old files are still there: {left[:3]}"] if left else []
    # More than the careless writer left: two compactors both put their file in the place of the same old ones.
    failures += [f"{twice} copies after the merges"] if twice > ROWS else []
    failures += [] if told["reads"] else ["nothing was read"]
    failures += [f"{found.unexpected} unexpected records"] if found.unexpected else []
    failures += [f"{found.physical_duplicates} copies left"] if found.physical_duplicates else []
    return TrialResult(
        accepted=found.accepted,
        lost=found.lost,
        logical_duplicates=found.logical_duplicates,
        physical_duplicates=found.physical_duplicates,
        peak_memory_bytes=max(each.peak_bytes for each in everyone),
        peak_disk_bytes=size,
        recovery_s=recovery_s,
        failures=tuple(failures),
        hits=tuple(name for each in everyone for name in each.hits),
    )


ROW = Row(14, f"writers, compaction, vacuum (grace {GRACE_S:.0f} s) and readers at once", trial, 8.0)
