"""The node's store: what is committed here has been accepted (D1), and stays until the hub has said that it is durable.

One SQLite file a node, write-ahead log, synchronous=FULL. The collector and the detector open it at the same time, each
with its own `Outbox`; sequence numbers are given out inside the commit, so both share one counter without gaps.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from infomae_stream import outbox_schema as sql
from infomae_stream.clock import NS_PER_S, Clock
from infomae_stream.errors import OutboxFull, WireError
from infomae_stream.failpoints import reached
from infomae_stream.folders import make_folders
from infomae_stream.gap_spans import GapSpan
from infomae_stream.outbox_file import connect, free_bytes, reusable_bytes, translated
from infomae_stream.outbox_reader import Accepted, OutboxReader, Record
from infomae_stream.shedding import REASON, Batch, Shedder, SheddingPolicy, ShedRecord
from infomae_stream.topics import node_topic, stream_topic
from infomae_stream.types import Chunk, ClockQuality, Detection, Event, Gap, StreamId, StreamSpec
from infomae_stream.wire import CONTENT_MODULUS, Ack, encode_chunk, encode_detection, encode_gap, samples_crc32

__all__ = ["Accepted", "Outbox", "Record"]

MAX_BUFFERED_BYTES: Final = 64_000_000
MAX_ACK_RANGES: Final = 10_000  # so many are written at once and not with the next commit
PAGES_BYTES: Final = 65_536  # what a commit needs beside the payloads: index, sums, a started page of each
SHED_BATCHES: Final = 8  # of one call, so that a limit that was lowered a lot does not hold up the sensors
SHED_AHEAD_BYTES: Final = 1_000_000  # given up beyond what is needed, so that it is not done at every commit


class Outbox(OutboxReader):
    """Not for sharing between threads. `put_*` only buffer; `commit` writes."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        clock: Clock,
        max_bytes: int,
        reserve_bytes: int,
        shedding: SheddingPolicy | None = None,
    ) -> None:
        super().__init__(connection, path, clock)
        self._max_bytes = max_bytes
        self._reserve_bytes = reserve_bytes
        self._records: list[Chunk | Gap | Detection] = []
        self._states: dict[str, bytes] = {}
        self._buffered_bytes = 0
        self.written_bytes = 0  # payloads that this opener has written, whatever became of the transaction
        self._acks: list[tuple[int, int, int]] = []
        self._shedder = None if shedding is None else Shedder(shedding)
        self._shed_counts: Counter[str] = Counter()
        # Told of what is about to be given up, before that is committed: an audit must not miss it.
        self.on_shed: Callable[[list[ShedRecord]], None] = lambda records: None

    @classmethod
    def open(
        cls, path: Path, clock: Clock, *, max_bytes: int, reserve_bytes: int, shedding: SheddingPolicy | None = None
    ) -> Outbox:
        """Open the file, made with its folder when there is none.

        shedding: how room is made when there is none; only one opener of a file has it, the others are refused then.
        Raises OutboxFull when there is no room for a new file, OutboxError when it is no outbox or cannot be read.
        """
        try:
            make_folders(path.parent)
            db = connect(path)
        except (sqlite3.Error, OSError) as e:
            raise translated(e, path) from e
        try:
            return cls(db, path, clock, max_bytes, reserve_bytes, shedding)
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
        event: Event | None = None,
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
            event=event,
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

    def make_room(self, more_bytes: int = 0) -> None:
        """Shed until what is buffered, and `more_bytes`, fits. Raises OutboxFull when it does not even so.

        Nothing is shed for what would not fit into an empty outbox, and what waiting acks name goes first. A limit that
        was lowered is reached over many calls: it is enough that more goes than comes.
        """
        lacking, problem = self._lacking(more_bytes)
        wanted, freed = self._buffered_bytes + more_bytes, 0
        if problem is not None and self._shedder is not None and wanted <= self._max_bytes:
            self.write_acks()
            for _ in range(SHED_BATCHES):
                batch = self._shed(lacking)
                freed += batch.freed_bytes
                lacking, problem = self._lacking(more_bytes)
                if problem is None or not batch.freed_bytes:
                    break
        if problem is not None and freed <= 2 * wanted:
            raise problem

    def shed_expired(self) -> int:
        """Shed chunks that have waited for longer than the policy allows, a batch at most; returns how many records."""
        if self._shedder is None or not self._shedder.expires:
            return 0
        return len(self._shed(None).records)

    def take_shed(self) -> Counter[str]:
        """How many records were shed since the last call, by stream; detections under their own name."""
        counts, self._shed_counts = self._shed_counts, Counter()
        return counts

    def commit(self) -> list[Accepted]:
        """D1: write everything buffered in one transaction, on disk when this returns; waiting acks go with it.

        Raises OutboxFull when there is no room: nothing was written, the buffer is empty, the caller accounts for what
        it had put there. Raises OutboxError when the file is locked or broken: nothing was written, the buffer stays.
        """
        if not self._records and not self._states:
            return []
        try:
            # Chunks only: gaps and detections may use the reserve.
            if any(isinstance(record, Chunk) for record in self._records):
                self.make_room()
            with self._transaction():
                self._mark_acknowledged()
                accepted = self._write()
                reached("outbox.before_commit")
            reached("outbox.after_commit")
        except OutboxFull:
            self.discard()
            raise
        self.discard()
        self._acks.clear()
        return accepted

    # -- giving out ----------------------------------------------------------------------------------------------------

    def put_ack(self, ack: Ack) -> list[tuple[int, int]]:
        """D4, with the next commit: an fsync for every ack would cost more than sending again after a power cut.

        Return the ranges that it takes off. Another outbox's ack changes nothing, nor does a durable range whose sum
        is not that of the records here: a copy of this outbox had other content under the same numbers, or some of
        them are gone. What still waits of it is sent again, and the hub then tells.
        Raises WireError(reason="schema") when it names what was never sent.
        """
        if ack.epoch != self.epoch:
            return []
        last_seq = self.last_seq()
        named = [last for _, last in ack.durable] + [last for _, last, _ in ack.refused]
        if any(last > last_seq for last in named):
            raise WireError("the ack names records that do not exist", reason="schema", where=str(self.path))
        sums = ack.sums or (None,) * len(ack.durable)
        ours = [r for r, told in zip(ack.durable, sums, strict=True) if told is None or self._has_content(r, told)]
        ranges = [(1, first, last) for first, last in ours]
        ranges += [(2, first, last) for first, last, _ in ack.refused]
        self._acks += ranges
        if len(self._acks) > MAX_ACK_RANGES:
            self.write_acks()
        return [(first, last) for _, first, last in ranges]

    def write_acks(self) -> int:
        """Mark what the acks since the last commit name; returns how many records that were waiting they took off.

        Raises OutboxFull or OutboxError when that cannot be written; the acks are kept, and tried again.
        """
        if not self._acks:
            return 0
        with self._transaction():
            count = self._mark_acknowledged()
            reached("outbox.before_acknowledge")
        self._acks.clear()
        reached("outbox.after_acknowledge")
        return count

    def acknowledge(self, ack: Ack) -> int:
        """`put_ack` and `write_acks` at once."""
        self.put_ack(ack)
        return self.write_acks()

    def purge(self, keep_s: float) -> int:
        """Delete records that were acknowledged and accepted more than `keep_s` ago; returns how many."""
        with self._transaction():
            count = self._db.execute(sql.PURGE, (self._clock.now_ns() - round(keep_s * NS_PER_S),)).rowcount
            if count:
                reached("outbox.before_purge")
        if count:
            reached("outbox.after_purge")
        return count

    # -- inside --------------------------------------------------------------------------------------------------------

    def _buffer(self, record: Chunk | Gap | Detection, size: int) -> None:
        if self._buffered_bytes + size > MAX_BUFFERED_BYTES:
            raise OutboxFull(f"{MAX_BUFFERED_BYTES} bytes wait for a commit", where=str(self.path), fix="commit first")
        self._records.append(record)
        self._buffered_bytes += size

    def _lacking(self, more_bytes: int) -> tuple[int, OutboxFull | None]:
        """Bytes that must go before what is buffered, and `more_bytes`, has room; and why, None when it has."""
        wanted = self._buffered_bytes + more_bytes
        with self._reading():
            stored = int(self._db.execute("SELECT stored_bytes FROM totals").fetchone()[0])
            reusable = reusable_bytes(self._db)
        where = str(self.path)
        if stored + wanted > self._max_bytes:
            text = f"{stored} bytes are stored, {self._max_bytes} are allowed"
            return stored + wanted - self._max_bytes, OutboxFull(text, where=where, fix="raise max_bytes")
        # The log and the file itself may both have to grow by the batch; the file not where it has pages to use again.
        if free_bytes(self.path.parent) - 2 * wanted < self._reserve_bytes and reusable < 2 * wanted + PAGES_BYTES:
            text = f"less than {self._reserve_bytes} bytes are free on the disk"
            return 2 * wanted + PAGES_BYTES - reusable, OutboxFull(text, where=where, fix="free some")
        return 0, None

    def _shed(self, lacking: int | None) -> Batch:
        """One transaction: rows go, gap records come. lacking: None for what is too old."""
        assert self._shedder is not None
        committed = False
        try:
            with self._transaction():
                if lacking is None:
                    batch = self._shedder.expire(self._db, self._clock.now_ns(), self._put_shed_gap)
                else:
                    ahead = min(SHED_AHEAD_BYTES, self._max_bytes // 20)
                    batch = self._shedder.free(self._db, lacking + ahead, self._put_shed_gap)
                if batch.records:
                    self.on_shed(batch.records)
                    reached("outbox.before_shed")
            committed = True
        finally:
            self._shedder.settle(committed=committed)
        if batch.records:
            reached("outbox.after_shed")
        self._shed_counts.update(r.stream_id.stream for r in batch.records if r.kind != "gap")
        return batch

    def _put_shed_gap(self, stream_id: StreamId, span: GapSpan) -> int:
        gap = Gap(stream_id, self.epoch, 0, span.start_ns, span.end_ns, REASON, span.n_samples)
        last_seq = int(self._db.execute(sql.LAST_SEQ).fetchone()[0])
        return self._insert(gap, last_seq + 1, self._clock.now_ns()).seq

    def _has_content(self, seqs: tuple[int, int], told: int) -> bool:
        with self._reading():
            count, total = self._db.execute(sql.CONTENT_SUM, seqs).fetchone()
        return bool(count == seqs[1] - seqs[0] + 1 and total % CONTENT_MODULUS == told)

    def _mark_acknowledged(self) -> int:
        return sum(self._db.execute(sql.ACKNOWLEDGE, values).rowcount for values in self._acks)

    def _insert(self, record: Chunk | Gap | Detection, seq: int, now_ns: int) -> Accepted:
        kind, topic, stream, payload, crc32, n_samples = _encoded(replace(record, seq=seq))
        row = (seq, kind, topic, stream, record.start_ns, n_samples, crc32, now_ns, len(payload), payload)
        self._db.execute(sql.INSERT_RECORD, row)
        self.written_bytes += len(payload)
        return Accepted(kind, topic, stream, self.epoch, seq, record.start_ns, n_samples, crc32)

    def _write(self) -> list[Accepted]:
        last_seq = int(self._db.execute(sql.LAST_SEQ).fetchone()[0])
        now_ns = self._clock.now_ns()
        accepted = [self._insert(record, seq, now_ns) for seq, record in enumerate(self._records, last_seq + 1)]
        specs = {str(record.spec.id): record.spec for record in self._records if isinstance(record, Chunk)}
        for name, spec in specs.items():
            self._db.execute(sql.UPSERT_STREAM, (name, json.dumps(spec.to_dict())))
        for item in self._states.items():
            self._db.execute(sql.UPSERT_STATE, item)
        return accepted


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
