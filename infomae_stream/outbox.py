"""The node's store: what is committed here has been accepted (D1), and stays until the hub has said that it is durable.

One SQLite file a node, write-ahead log, synchronous=FULL. The collector and the detector open it at the same time, each
with its own `Outbox`; sequence numbers are given out inside the commit, so both share one counter without gaps.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from infomae_stream import outbox_schema as sql
from infomae_stream.clock import NS_PER_S, Clock
from infomae_stream.errors import OutboxError, OutboxFull, WireError
from infomae_stream.failpoints import reached
from infomae_stream.topics import node_topic, stream_topic
from infomae_stream.types import Chunk, ClockQuality, Detection, Gap, StreamId, StreamSpec
from infomae_stream.wire import Ack, decode_chunk, encode_chunk, encode_detection, encode_gap, samples_crc32

BUSY_TIMEOUT_S: Final = 10.0
WAL_LIMIT_BYTES: Final = 4_000_000
CACHE_KB: Final = 512  # a process may have twenty of these files open
MAX_BUFFERED_BYTES: Final = 64_000_000


@dataclass(frozen=True, slots=True)
class Accepted:
    """One record after D1. crc32 is that of a chunk's samples, 0 for other kinds; stream is "" for detections."""

    kind: str
    topic: str
    stream: str
    epoch: str
    seq: int
    start_ns: int
    n_samples: int
    crc32: int


@dataclass(frozen=True, slots=True)
class Record:
    """What travels."""

    seq: int
    topic: str
    payload: bytes


class Outbox:
    """Not for sharing between threads. `put_*` only buffer; `commit` writes."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path, clock: Clock, max_bytes: int, reserve_bytes: int
    ) -> None:
        self._db = connection
        self.path = path
        self._clock = clock
        self._max_bytes = max_bytes
        self._reserve_bytes = reserve_bytes
        self._records: list[Chunk | Gap | Detection] = []
        self._states: dict[str, bytes] = {}
        self._buffered_bytes = 0
        self.epoch = self._read_or_make_epoch()

    @classmethod
    def open(cls, path: Path, clock: Clock, *, max_bytes: int, reserve_bytes: int) -> Outbox:
        """Open the file, made with its folder when there is none.

        Raises OutboxFull when there is no room for a new file, OutboxError when it is no outbox or cannot be read.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            db = _connect(path)
        except (sqlite3.Error, OSError) as e:
            raise _translated(e, path) from e
        try:
            return cls(db, path, clock, max_bytes, reserve_bytes)
        except BaseException:
            db.close()
            raise

    # -- taking in -----------------------------------------------------------------------------------------------------

    def put_chunk(
        self,
        spec: StreamSpec,
        start_ns: int,
        samples_CN: NDArray[Any],
        clock_quality: ClockQuality,
        times_ns: NDArray[np.int64] | None = None,
    ) -> None:
        """Buffer a chunk; it must not be changed until the commit. Raises DataError when it is no valid chunk."""
        chunk = Chunk(spec, self.epoch, 0, start_ns, samples_CN, clock_quality, times_ns, self._clock.now_ns())
        self._buffer(chunk, samples_CN.nbytes + (0 if times_ns is None else times_ns.nbytes))

    def put_gap(self, stream_id: StreamId, start_ns: int, end_ns: int, reason: str, n_samples: int) -> None:
        """Buffer a gap record: samples that are missing, and why."""
        self._buffer(Gap(stream_id, self.epoch, 0, start_ns, end_ns, reason, n_samples), 0)

    def put_detection(
        self,
        *,
        site: str,
        node: str,
        start_ns: int,
        end_ns: int,
        label: str,
        scores: dict[str, float],
        modalities: tuple[str, ...],
        bundle_version: int,
        bundle_sha256: str,
    ) -> None:
        """Buffer a detection."""
        detection = Detection(
            site=site,
            node=node,
            epoch=self.epoch,
            seq=0,
            start_ns=start_ns,
            end_ns=end_ns,
            label=label,
            scores=scores,
            modalities=modalities,
            bundle_version=bundle_version,
            bundle_sha256=bundle_sha256,
        )
        self._buffer(detection, 0)

    def put_state(self, key: str, value: bytes) -> None:
        """Buffer a named value: it is written in the same transaction as the records, or not at all."""
        self._states[key] = value

    @property
    def buffered_bytes(self) -> int:
        return self._buffered_bytes

    def discard(self) -> None:
        """Forget what is buffered."""
        self._records, self._states, self._buffered_bytes = [], {}, 0

    def check_room(self, more_bytes: int = 0) -> None:
        """Raise OutboxFull when what is buffered, and `more_bytes`, would break the byte limit or the reserve."""
        wanted = self._buffered_bytes + more_bytes
        with self._reading():
            stored = int(self._db.execute("SELECT stored_bytes FROM totals").fetchone()[0])
        if stored + wanted > self._max_bytes:
            raise OutboxFull(
                f"{stored} bytes are stored, {self._max_bytes} are allowed", where=str(self.path), fix="raise max_bytes"
            )
        disk = os.statvfs(self.path.parent)
        # The log and the file itself may both have to grow by the batch.
        if disk.f_bavail * disk.f_frsize - 2 * wanted < self._reserve_bytes:
            raise OutboxFull(
                f"less than {self._reserve_bytes} bytes are free on the disk", where=str(self.path), fix="free some"
            )

    def commit(self) -> list[Accepted]:
        """D1: write everything buffered in one transaction, on disk when this returns.

        Raises OutboxFull when there is no room: nothing was written, the buffer is empty, the caller accounts for what
        it had put there. Raises OutboxError when the file is locked or broken: nothing was written, the buffer stays.
        """
        if not self._records and not self._states:
            return []
        try:
            # Chunks only: gaps and detections may use the reserve.
            if any(isinstance(record, Chunk) for record in self._records):
                self.check_room()
            with self._transaction():
                accepted = self._write()
                reached("outbox.before_commit")
            reached("outbox.after_commit")
        except OutboxFull:
            self.discard()
            raise
        self.discard()
        return accepted

    # -- giving out ----------------------------------------------------------------------------------------------------

    def pending(self, limit_bytes: int, after_seq: int = 0) -> list[Record]:
        """Records without ack, oldest first, at least one if there is any, together at most about `limit_bytes`."""
        records: list[Record] = []
        with self._reading():
            for seq, topic, payload, size in self._db.execute(sql.PENDING, (after_seq,)):
                limit_bytes -= size
                if records and limit_bytes < 0:
                    break
                records.append(Record(seq, topic, payload))
        return records

    def record(self, seq: int) -> Record | None:
        """The record, unless it has been acknowledged."""
        with self._reading():
            row = self._db.execute(sql.RECORD, (seq,)).fetchone()
        return None if row is None else Record(row[0], row[1], row[2])

    def acknowledge(self, ack: Ack) -> int:
        """Mark what `ack` names; returns how many records that were waiting it took off, 0 for another outbox's ack.

        Raises WireError(reason="schema") when it names what was never sent; OutboxFull or OutboxError when the mark
        cannot be written (the hub acknowledges again when the record is sent again).
        """
        if ack.epoch != self.epoch:
            return 0
        ranges = [(1, first, last) for first, last in ack.durable]
        ranges += [(2, first, last) for first, last, _ in ack.refused]
        last_seq = self.last_seq()
        if any(last > last_seq for _, _, last in ranges):
            raise WireError("the ack names records that do not exist", reason="schema", where=str(self.path))
        with self._transaction():
            count = sum(self._db.execute(sql.ACKNOWLEDGE, values).rowcount for values in ranges)
            reached("outbox.before_acknowledge")
        reached("outbox.after_acknowledge")
        return count

    def purge(self, keep_s: float) -> int:
        """Delete records that were acknowledged and accepted more than `keep_s` ago; returns how many."""
        with self._transaction():
            count = self._db.execute(sql.PURGE, (self._clock.now_ns() - round(keep_s * NS_PER_S),)).rowcount
            if count:
                reached("outbox.before_purge")
        if count:
            reached("outbox.after_purge")
        return count

    def tail_chunks(self, after_seq: int, limit: int) -> list[Chunk]:
        """Chunks with seq above `after_seq`, acknowledged or not, oldest first. Raises OutboxError for a broken row."""
        with self._reading():
            rows = self._db.execute(sql.TAIL_CHUNKS, (after_seq, limit)).fetchall()
        try:
            return [decode_chunk(payload) for (payload,) in rows]
        except WireError as e:
            raise OutboxError(f"a record cannot be read: {e}", where=str(self.path)) from e

    def accepted_after(self, seq: int, limit: int = 1000) -> list[Accepted]:
        """What has been accepted after `seq` and is still here, in order."""
        with self._reading():
            rows = self._db.execute(sql.ACCEPTED_AFTER, (seq, limit)).fetchall()
        return [Accepted(kind, topic, stream, self.epoch, *rest) for kind, topic, stream, *rest in rows]

    def last_seq(self) -> int:
        """The highest sequence number given out so far; 0 for none."""
        with self._reading():
            return int(self._db.execute(sql.LAST_SEQ).fetchone()[0])

    def unacked_bytes(self) -> int:
        with self._reading():
            return int(self._db.execute("SELECT pending_bytes FROM totals").fetchone()[0])

    def oldest_unacked_ns(self) -> int | None:
        """When the oldest record without ack was accepted (this node's wall clock); None when nothing waits."""
        with self._reading():
            row = self._db.execute(sql.OLDEST).fetchone()
        return None if row is None else int(row[0])

    def streams(self) -> list[StreamSpec]:
        """Every stream that ever had a chunk here, as it was described last."""
        with self._reading():
            rows = self._db.execute("SELECT spec FROM streams ORDER BY stream").fetchall()
        return [StreamSpec.from_dict(json.loads(spec)) for (spec,) in rows]

    def get_state(self, key: str) -> bytes | None:
        with self._reading():
            row = self._db.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def set_state(self, key: str, value: bytes) -> None:
        """Write a named value at once, on disk when this returns."""
        with self._transaction():
            self._db.execute(sql.UPSERT_STATE, (key, value))

    def close(self) -> None:
        """Buffered records are lost: they were never accepted."""
        self._db.close()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _buffer(self, record: Chunk | Gap | Detection, size: int) -> None:
        if self._buffered_bytes + size > MAX_BUFFERED_BYTES:
            raise OutboxFull(f"{MAX_BUFFERED_BYTES} bytes wait for a commit", where=str(self.path), fix="commit first")
        self._records.append(record)
        self._buffered_bytes += size

    def _write(self) -> list[Accepted]:
        last_seq = int(self._db.execute(sql.LAST_SEQ).fetchone()[0])
        now_ns = self._clock.now_ns()
        accepted = []
        for seq, record in enumerate(self._records, last_seq + 1):
            kind, topic, stream, payload, crc32, n_samples = _encoded(replace(record, seq=seq))
            row = (seq, kind, topic, stream, record.start_ns, n_samples, crc32, now_ns, len(payload), payload)
            self._db.execute(sql.INSERT_RECORD, row)
            accepted.append(Accepted(kind, topic, stream, self.epoch, seq, record.start_ns, n_samples, crc32))
        specs = {str(record.spec.id): record.spec for record in self._records if isinstance(record, Chunk)}
        for name, spec in specs.items():
            self._db.execute(sql.UPSERT_STREAM, (name, json.dumps(spec.to_dict())))
        for item in self._states.items():
            self._db.execute(sql.UPSERT_STATE, item)
        return accepted

    def _read_or_make_epoch(self) -> str:
        with self._transaction():
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version != sql.VERSION:
                raise OutboxError(f"format {version}, this program reads {sql.VERSION}", where=str(self.path))
            # OR IGNORE: collector and detector may make the file together.
            self._db.execute("INSERT OR IGNORE INTO state VALUES ('epoch', ?)", (os.urandom(8).hex().encode(),))
            return bytes(self._db.execute("SELECT value FROM state WHERE key = 'epoch'").fetchone()[0]).decode()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as e:
            raise _translated(e, self.path) from e

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of the block or nothing. Raises OutboxFull or OutboxError for what SQLite and the disk say."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as e:
            self._roll_back()
            if isinstance(e, sqlite3.Error):
                raise _translated(e, self.path) from e
            raise

    def _roll_back(self) -> None:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error:
            # A descriptor that failed once is not trusted again; what was not committed is not there.
            self._db.close()
            self._db = _connect(self.path)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
        db.execute(f"PRAGMA cache_size = -{CACHE_KB}")
        if db.execute("PRAGMA user_version").fetchone()[0] == 0:
            db.executescript(f"BEGIN IMMEDIATE; {sql.SCHEMA} PRAGMA user_version = {sql.VERSION}; COMMIT;")
    except BaseException:
        db.close()
        raise
    return db


def _encoded(record: Chunk | Gap | Detection) -> tuple[str, str, str, bytes, int, int]:
    """(kind, topic, stream, payload, crc32, n_samples)."""
    if isinstance(record, Chunk):
        s = record.spec.id
        crc32 = samples_crc32(record.samples_CN, record.times_ns)
        topic = stream_topic(s.site, s.node, s.stream, "chunk")
        return "chunk", topic, s.stream, encode_chunk(record), crc32, record.n_samples
    if isinstance(record, Gap):
        s = record.stream
        return "gap", stream_topic(s.site, s.node, s.stream, "gap"), s.stream, encode_gap(record), 0, record.n_samples
    return "detection", node_topic(record.site, record.node, "detections"), "", encode_detection(record), 0, 0


def _translated(error: Exception, path: Path) -> OutboxError:
    if isinstance(error, sqlite3.Error):
        full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
    else:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if full:
        return OutboxFull(f"the disk is full ({error})", where=str(path), fix="free some; nothing half was written")
    return OutboxError(f"the outbox cannot be used ({error})", where=str(path), fix="is it a disk's fault, or a lock?")
