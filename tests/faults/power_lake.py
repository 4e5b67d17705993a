"""The real lake on the model of a disk, and what must hold after every power cut (D2).

`LakeUnderPower` writes as ingests do, one or two of them, and notes when each call returned. `cut` goes back to any
moment since the last cut, opens what survived with the real code, and raises AssertionError when

- a table does not open, or a file that a commit names is missing or not whole;
- a record whose commit had returned cannot be read, or reads otherwise than it was written;
- of an interrupted commit a part is there, or a record is there twice;
- a quarantined record is seen again.

Compaction and vacuum may run in between; nothing of this changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq

from infomae_stream.clock import NS_PER_S, ManualClock
from infomae_stream.types import Chunk, Detection, Gap
from storage import query
from storage.compaction import compact
from storage.lake import Lake
from storage.schemas import RECORD_TABLES, TABLES
from storage.segments import live_files
from storage.vacuum import vacuum
from tests.faults import power_calls
from tests.faults.power_files import Disk, Harm
from tests.hub_records import make_chunk, make_detection, make_gap, same_chunk

_PLACE: Final = Path("srv/infomae/lake")  # not one of the folders is there at first
_DAY_NS: Final = 86_400 * NS_PER_S
_LATER_NS: Final = 4_000_000_000 * NS_PER_S
_EPOCH: Final = ("s01", "s01-phone", "e1")


@dataclass(slots=True)
class _Commit:
    """Records `seqs` of one table, written in one commit between two positions."""

    table: str
    seqs: set[int]
    began: int
    returned: int


class LakeUnderPower:
    """Not for threads. `folder` is empty; every cut goes on in a new one below it."""

    def __init__(self, folder: Path, *, real_syncs: bool = False) -> None:
        self._folder = folder
        self._generation = 0
        self._real_syncs = real_syncs
        self._clock = ManualClock(_LATER_NS)  # so that every file is old for vacuum
        self.disk = Disk(self._next_root())
        self.disk.root.mkdir(parents=True)
        self._commits: list[_Commit] = []
        self._hidden: list[_Commit] = []
        self._chunks: dict[int, Chunk] = {}
        self._seq = 0
        self.lakes = self._open()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, what the program does is told to the disk."""
        with power_calls.recorded(lambda: self.disk, real_syncs=self._real_syncs):
            yield

    # -- what ingests do -----------------------------------------------------------------------------------------------

    def write(self, *, chunks: int, gaps: int = 0, detections: int = 0, days: int = 1, writer: int = 0) -> None:
        """One batch; its chunks lie on `days` days, so that one commit names as many files."""
        new: list[Chunk | Gap | Detection] = []
        for i in range(chunks):
            chunk = make_chunk(self._next_seq(), n=20)
            chunk = replace(chunk, start_ns=chunk.start_ns + (i % days) * _DAY_NS)
            self._chunks[chunk.seq] = chunk
            new.append(chunk)
        new += [make_gap(self._next_seq()) for _ in range(gaps)]
        new += [make_detection(self._next_seq()) for _ in range(detections)]
        self._store(new, writer)

    def quarantine(self, seq: int) -> None:
        if seq > self._seq:
            return
        began = self.disk.position
        with self.watched():
            self.lakes[0].quarantine([(*_EPOCH, seq)], "conflict")
        self._hidden.append(_Commit("quarantine", {seq}, began, self.disk.position))

    def tidy(self) -> None:
        """Merge small files, then delete those that no version of this moment needs."""
        self._clock.advance(10.0)
        with self.watched():
            compact(self.lakes[1], tables=["chunks", "gaps"], everything=True)
            self._clock.advance(10.0)
            vacuum(self.lakes[1], grace_s=1.0, pins={})

    def kill(self) -> None:
        """The processes are gone, what they wrote is in the page cache, and new ones start."""
        self.disk = self.disk.after_kill(self._next_root())
        self.lakes = self._open()
        self._check(self.disk.position)

    def cut(self, position: int, harm: Harm) -> None:
        """The power goes after `position` operations, and comes back."""
        self.disk = self.disk.after_cut(position, harm, self._next_root())
        self.lakes = self._open()
        there = self._check(position)
        self._forget_after(position, there)

    # -- what must hold ------------------------------------------------------------------------------------------------

    def _check(self, position: int) -> dict[str, set[int]]:
        """Returns the seqs that each table holds."""
        lake = self.lakes[0]
        there: dict[str, set[int]] = {}
        for table in TABLES:
            try:
                files = [pq.ParquetFile(f).read() for f in live_files(lake.table_path(table), lake.version(table))]
            except (OSError, ValueError) as e:  # pyarrow's ArrowInvalid is a ValueError
                raise AssertionError(f"a file that a commit names is missing or not whole: {e}") from e
            if table in RECORD_TABLES:
                seqs = [seq for file in files for seq in file["seq"].to_pylist()]
                there[table] = set(seqs)
                assert len(seqs) == len(there[table]), f"{table} holds a record twice"
        for commit in self._commits:
            found = commit.seqs & there[commit.table]
            if commit.returned <= position:
                assert found == commit.seqs, f"{commit.table} lost {sorted(commit.seqs - found)}, whose commit returned"
            elif commit.began < position:
                assert found in (set(), commit.seqs), f"{commit.table} holds {len(found)} of {len(commit.seqs)} records"
            else:
                assert not found, f"{commit.table} holds records that were never written"
        read = {chunk.seq: chunk for chunk in query.read_chunks(lake)}
        hidden = set().union(*(h.seqs for h in self._hidden if h.returned <= position))
        maybe = set().union(*(h.seqs for h in self._hidden))
        assert not read.keys() & hidden, f"quarantined, and seen again: {sorted(read.keys() & hidden)}"
        assert there["chunks"] - maybe <= read.keys() <= there["chunks"]
        assert all(same_chunk(chunk, self._chunks[seq]) for seq, chunk in read.items()), "a chunk reads otherwise"
        return there

    # -- inside --------------------------------------------------------------------------------------------------------

    def _store(self, records: list[Chunk | Gap | Detection], writer: int) -> None:
        chunks = [r for r in records if isinstance(r, Chunk)]
        gaps = [r for r in records if isinstance(r, Gap)]
        detections = [r for r in records if isinstance(r, Detection)]
        began = self.disk.position
        with self.watched():
            self.lakes[writer].commit_batch(chunks, gaps, detections, self._clock.now_ns())
        for table, of_table in (("chunks", chunks), ("gaps", gaps), ("detections", detections)):
            if of_table:
                self._commits.append(_Commit(table, {r.seq for r in of_table}, began, self.disk.position))

    def _forget_after(self, position: int, there: dict[str, set[int]]) -> None:
        """What is there now is durable, and counts as done before everything that comes; the rest never was."""
        self._commits = [c for c in self._commits if c.seqs <= there[c.table]]
        self._hidden = [h for h in self._hidden if h.began < position]
        for commit in self._commits:
            commit.began, commit.returned = -1, 0
        read = {chunk.seq for chunk in query.read_chunks(self.lakes[0])} if self._hidden else set()
        for hidden in self._hidden:
            # An interrupted quarantine is written again by the ingest that finds the conflict again; here it is over.
            hidden.began, hidden.returned = (-1, 0) if not hidden.seqs & read else (-1, 1 << 60)

    def _open(self) -> list[Lake]:
        with self.watched():
            return [Lake(self.disk.root / _PLACE, self._clock) for _ in range(2)]

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def _next_root(self) -> Path:
        self._generation += 1
        return self._folder / f"disk{self._generation}"
