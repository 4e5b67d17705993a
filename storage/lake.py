"""The lake: Delta tables that several processes write and read (columns in `schemas.py`, durability in `delta_log.py`).

A write is durable when its method returns (D2), and may be repeated after any failure: what is already there, also
from a commit that reported failure and landed, is not written again. One object belongs to one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from infomae_stream.clock import Clock, SystemClock
from infomae_stream.errors import LakeError
from infomae_stream.stored_chunk import StoredChunk
from infomae_stream.types import Chunk, Detection, Gap, StreamId
from infomae_stream.wire import seq_ranges
from storage.delta_log import Action, DeltaLog
from storage.identities import IdentityIndex, OutboxKey, retired_ranges
from storage.rows import chunk_rows, detection_rows, gap_rows
from storage.schemas import RECORD_TABLES, TABLES
from storage.segments import identity_ranges, live_files, remove_segments, write_segments
from storage.stored import Content, Identity, content_of, look_up, quarantined
from storage.torn_files import whole_files

_MAX_CONFLICTS: Final = 50
_INDEXED: Final = (*RECORD_TABLES, "quarantine", "retired")


@dataclass(frozen=True, slots=True)
class Committed:
    """What a batch came to; `versions` has the tables that got a new version.

    conflicts: identities that were given with other bytes than those stored (two ingests raced, say). They are in
    quarantine when the call returns, the stored bytes as evidence. The given bytes are not in the lake: the caller
    keeps them as a dead letter and tells the node that they are refused, not durable. Counted among `duplicates`.
    """

    written: int
    duplicates: int
    versions: dict[str, int]
    conflicts: tuple[Identity, ...] = ()


class Lake:
    """Makes the tables that are missing. Raises LakeError when the folder cannot be used."""

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self.path = Path(path)
        self._clock = clock or SystemClock()
        self._logs = {name: DeltaLog(self.path / name) for name in TABLES}
        self._index = IdentityIndex()
        self._indexed_to = dict.fromkeys(_INDEXED, -1)
        try:
            for name, log in self._logs.items():
                log.create(TABLES[name], self._clock.now_ns())
                log.drop_torn_checkpoint()
                log.widen(TABLES[name], self._clock.now_ns())
        except OSError as e:
            raise LakeError(f"cannot make the tables: {e.strerror}", where=str(self.path)) from e

    def table_path(self, table: str) -> Path:
        return self.path / table

    def version(self, table: str) -> int:
        """The newest version of a table; a new table has 0."""
        return self.log(table).version()

    def versions(self) -> dict[str, int]:
        """The newest version of every table: what a training run's lineage keeps."""
        return {name: log.version() for name, log in self._logs.items()}

    def log(self, table: str) -> DeltaLog:
        """The transaction log of a table, for those who rewrite its files. Raises LakeError for an unknown one."""
        if table not in self._logs:
            raise LakeError(f"no table {table!r}", where=str(self.path), fix=f"known: {', '.join(TABLES)}")
        return self._logs[table]

    def now_ns(self) -> int:
        return self._clock.now_ns()

    def added_files(self, table: str, from_version: int, to_version: int) -> list[Path]:
        """Files with rows that are new in (from_version, to_version]; rewritten old rows are not among them.

        From -1, or when vacuum has taken commits or files of that stretch, all files of `to_version`: more than what
        is new, never less.
        """
        log = self.log(table)
        if from_version >= 0 and log.has(from_version + 1, to_version):
            adds = [a["add"] for a in log.actions(from_version + 1, to_version) if "add" in a]
            files = [self.path / table / add["path"] for add in adds if add["dataChange"]]
            if all(file.exists() for file in files):
                return files
        return live_files(log.table, to_version)

    def size(self) -> tuple[int, int]:
        """(bytes, files) of everything below the lake's folder, logs and dead letters too."""
        total, files = 0, 0
        for folder, _, names in os.walk(self.path):
            for name in names:
                with suppress(FileNotFoundError):  # a temporary of another writer
                    total += os.stat(os.path.join(folder, name)).st_size
                    files += 1
        return total, files

    def append_chunks(self, chunks: Sequence[Chunk | StoredChunk], received_ns: int) -> Committed:
        return self.commit_batch(chunks, (), (), received_ns)

    def append_gaps(self, gaps: Sequence[Gap], received_ns: int) -> Committed:
        return self.commit_batch((), gaps, (), received_ns)

    def append_detections(self, detections: Sequence[Detection], received_ns: int) -> Committed:
        return self.commit_batch((), (), detections, received_ns)

    def commit_batch(
        self,
        chunks: Sequence[Chunk | StoredChunk],
        gaps: Sequence[Gap],
        detections: Sequence[Detection],
        received_ns: int,
    ) -> Committed:
        """One commit a table that gets something. Identities that the lake has, or that come twice, are left out.

        Raises LakeError when the disk refuses; some of the tables may then be committed. Call again with the same.
        """
        written, versions = 0, {}
        known: list[Chunk | StoredChunk | Gap | Detection] = []
        for name, records, rows in (
            ("chunks", chunks, chunk_rows),
            ("gaps", gaps, gap_rows),
            ("detections", detections, detection_rows),
        ):
            count = self._append_new(name, records, partial(rows, received_ns=received_ns), known) if records else 0
            if count:
                versions[name] = self._indexed_to[name]
                written += count
        duplicates = len(chunks) + len(gaps) + len(detections) - written
        return Committed(written, duplicates, versions, self._conflicting(known))

    def known_identities(self) -> IdentityIndex:
        """Identities that are durable in any table, all writers' commits up to now among them. Raises LakeError."""
        self._refresh_index()
        return self._index

    def quarantine(self, identities: Iterable[tuple[str, str, str, int]], reason: str) -> None:
        """Hide these (site, node, epoch, seq) from every reader, for good; their rows stay as evidence."""
        now_ns = self._clock.now_ns()
        names = TABLES["quarantine"].schema.names
        rows = [dict(zip(names, (*identity, reason, now_ns), strict=True)) for identity in sorted(set(identities))]
        if rows:
            self.append("quarantine", lambda _: pa.Table.from_pylist(rows, schema=TABLES["quarantine"].schema))
        for row in rows:
            self._index.add((row["site"], row["node"], row["epoch"]), row["seq"], row["seq"])

    def append(self, name: str, build: Callable[[int], pa.Table]) -> int:
        """Commit `build(version)`, built anew whenever another writer was quicker; return the number of rows.

        `build` looks at the table as it is at `version` and leaves out what stands there. Raises LakeError.
        """
        log, layout = self.log(name), TABLES[name]
        for _ in range(_MAX_CONFLICTS):
            version, now_ns = log.version(), self._clock.now_ns()
            if name in _INDEXED:
                self._refresh_index()
                version = self._indexed_to[name]
            rows = build(version)
            if rows.num_rows == 0:
                return 0
            try:
                adds = write_segments(log.table, layout, rows, now_ns)
                committed = self._commit_behind_rewrites(log, version, adds, now_ns)
            except OSError as e:
                raise LakeError(f"cannot write: {e.strerror or e}", where=str(log.table)) from e
            if committed is not None:
                self._after_commit(name, committed)
                return int(rows.num_rows)
            remove_segments(log.table, adds)
        raise LakeError(f"{_MAX_CONFLICTS} commits in a row lost the race", where=str(log.table), fix="fewer writers")

    def _commit_behind_rewrites(self, log: DeltaLog, version: int, adds: list[Action], now_ns: int) -> int | None:
        """Commit after `version`, or after rewrites of old rows that came since; None when new rows came first."""
        for _ in range(_MAX_CONFLICTS):
            if log.commit_or_clear(version + 1, adds, now_ns):
                return version + 1
            newest = log.version()
            if any(action["add"]["dataChange"] for action in log.actions(version + 1, newest) if "add" in action):
                return None
            version = newest
        return None

    def _conflicting(self, records: Sequence[Chunk | StoredChunk | Gap | Detection]) -> tuple[Identity, ...]:
        """Which of these, whose identities are known, differ from what is stored; none of them is readable after."""
        if not records:
            return ()
        given: dict[Identity, set[Content]] = {}
        for record in records:
            given.setdefault((outbox_key(record), record.seq), set()).add(content_of(record))
        held, hidden = look_up(self, given), quarantined(self, given)
        found = {identity for identity, stored in held.contents.items() if len(stored | given[identity]) > 1}
        nowhere = given.keys() - held.contents.keys() - held.retired
        found |= nowhere & hidden  # refused on all sides before any of it was stored
        if nowhere - hidden:
            (site, node, epoch), seq = min(nowhere - hidden)
            raise LakeError(
                f"{len(nowhere - hidden)} records are known and not found, first {site}/{node} epoch {epoch} seq {seq}",
                where=str(self.path),
                fix="`lake verify` names files that are missing or torn",
            )
        new = found - hidden
        self.quarantine([(*key, seq) for key, seq in new], "conflict")
        return tuple(sorted(found))

    def _append_new(
        self,
        name: str,
        records: Sequence[Any],
        build: Callable[[Sequence[Any]], pa.Table],
        known: list[Chunk | StoredChunk | Gap | Detection],
    ) -> int:
        """Append the records whose identity is new, and put the others into `known`.

        The index is exact at `version`, because a commit needs it so.
        """
        taken: dict[OutboxKey, list[int]] = {}
        left: list[Chunk | StoredChunk | Gap | Detection] = []

        def rows(_: int) -> pa.Table:
            taken.clear()
            left.clear()
            new = []
            for key, run in by_outbox.items():
                fresh, again = self._known_apart(key, run)
                taken[key] = [record.seq for record in fresh]
                new += fresh
                left.extend(again)
            return build(new) if new else TABLES[name].schema.empty_table()

        by_outbox: dict[OutboxKey, list[Any]] = {}
        for record in records:
            by_outbox.setdefault(outbox_key(record), []).append(record)
        self._refresh_index()
        written = self.append(name, rows)
        known += left
        for key, seqs in taken.items():
            for first, last in seq_ranges(seqs):
                self._index.add(key, first, last)
        return written

    def _known_apart(self, key: OutboxKey, run: list[Any]) -> tuple[list[Any], list[Any]]:
        """Records of one outbox: those whose identity is new, and those that are known or come twice."""
        seqs = {record.seq for record in run}
        if len(seqs) == len(run) and self._index.knows_none(key, min(seqs), max(seqs)):
            return run, []
        fresh: dict[int, Any] = {}
        again = []
        for record in run:
            if record.seq in fresh or (*key, record.seq) in self._index:
                again.append(record)
            else:
                fresh[record.seq] = record
        return list(fresh.values()), again

    def _after_commit(self, name: str, version: int) -> None:
        if name in self._indexed_to:
            self._indexed_to[name] = version
        self._logs[name].checkpoint_quietly(version)

    def _refresh_index(self) -> None:
        """Take in what all writers committed since the last look, after making sure that it is durable."""
        try:
            for name, done in self._indexed_to.items():
                log = self._logs[name]
                version = log.version()
                if version == done:
                    continue
                log.sync()
                ranges_of = retired_ranges if name == "retired" else identity_ranges
                for file in whole_files(name, self.added_files(name, done, version)):
                    for key, first, last in ranges_of(file):
                        self._index.add(key, first, last)
                self._indexed_to[name] = version
        except (OSError, ValueError) as e:
            raise LakeError(f"cannot read the identities: {e}", where=str(self.path)) from e


def outbox_key(record: Chunk | StoredChunk | Gap | Detection) -> OutboxKey:
    if isinstance(record, Detection):
        return record.site, record.node, record.epoch
    stream: StreamId = record.stream if isinstance(record, Gap) else record.spec.id
    return stream.site, stream.node, record.epoch
