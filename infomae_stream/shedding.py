"""What a node gives up when its outbox has no room: the oldest of the least important, and a gap record in its place.

Acknowledged rows go first (they only serve the detector), then chunks by priority, the oldest of a priority first,
then detections. Gap records never go: neighbours become one, so that their number stays bounded.
"""

from __future__ import annotations

import heapq
import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from infomae_stream import outbox_schema as sql
from infomae_stream.clock import NS_PER_S
from infomae_stream.errors import WireError
from infomae_stream.gap_spans import GapSpan, joined
from infomae_stream.types import StreamId, StreamSpec
from infomae_stream.wire import decode_chunk, decode_detection, decode_gap

REASON: Final = "shed"
DETECTIONS: Final = "detections"  # the stream that a gap record for detections names
PRIORITY_OF_KIND: Final = {"acoustic": 3}
DEFAULT_PRIORITY: Final = 5
MAX_GAPS: Final = 64  # shed gap records that may wait for one stream
BATCH_ROWS: Final = 500
BATCH_BYTES: Final = 4_000_000


@dataclass(frozen=True, slots=True)
class StreamRule:
    """priority: 1 goes first, 9 last, None: that of the stream's kind. max_age_s: 0 for none, None: the outbox's."""

    priority: int | None = None
    max_age_s: float | None = None


@dataclass(frozen=True, slots=True)
class SheddingPolicy:
    """max_age_s: chunks that waited longer are shed, 0 for no limit. rules: by stream, for those that differ."""

    max_age_s: float = 0.0
    rules: Mapping[str, StreamRule] = field(default_factory=dict)

    def priority(self, spec: StreamSpec) -> int:
        """Audio is most of a node's bytes and the first that detection can do without, so it goes first."""
        rule = self.rules.get(spec.id.stream)
        if rule is not None and rule.priority is not None:
            return rule.priority
        return PRIORITY_OF_KIND.get(spec.kind, DEFAULT_PRIORITY)

    def max_age(self, stream: str) -> float:
        rule = self.rules.get(stream)
        return self.max_age_s if rule is None or rule.max_age_s is None else rule.max_age_s


@dataclass(frozen=True, slots=True)
class ShedRecord:
    """One record given up. [start_ns, end_ns) lies within a gap record of `stream_id` from the same transaction.

    n_samples: 1 for a detection, so that a gap record of detections says how many there were.
    """

    seq: int
    kind: str
    stream_id: StreamId
    start_ns: int
    end_ns: int
    n_samples: int


@dataclass(slots=True)
class Batch:
    """What one transaction gave up. acknowledged: rows that only the detector might still have read."""

    records: list[ShedRecord] = field(default_factory=list)
    acknowledged: int = 0
    freed_bytes: int = 0

    def is_enough(self, want_bytes: int) -> bool:
        rows = len(self.records) + self.acknowledged
        return self.freed_bytes >= min(want_bytes, BATCH_BYTES) or rows >= BATCH_ROWS


PutGap = Callable[[StreamId, GapSpan], int]


class Shedder:
    """Gives up rows of one outbox; the caller opens the transaction, and tells with `settle` how it ended.

    It remembers how far each stream has been given up, so that days of shedding look at every row once.
    """

    def __init__(self, policy: SheddingPolicy) -> None:
        self._policy = policy
        self._done: dict[str, int] = {}  # stream -> no chunk with a lower or equal seq waits
        self._moved: dict[str, int] = {}  # the same, of the open transaction
        self._gaps: dict[StreamId, list[GapSpan]] | None = None  # shed gap records that wait, by start

    def free(self, db: sqlite3.Connection, want_bytes: int, put_gap: PutGap) -> Batch:
        """Give up records until `want_bytes` are free, a batch's limit is met, or nothing is left to give."""
        batch = Batch()
        self._take_acknowledged(db, batch, want_bytes)
        by_priority: dict[int, list[StreamSpec]] = {}
        for spec in _specs(db):
            by_priority.setdefault(self._policy.priority(spec), []).append(spec)
        for priority in sorted(by_priority):
            self._take_chunks(db, batch, by_priority[priority], want_bytes)
        self._take_detections(db, batch, want_bytes)
        self._write_gaps(db, batch, put_gap)
        return batch

    def expire(self, db: sqlite3.Connection, now_ns: int, put_gap: PutGap) -> Batch:
        """Give up chunks that have waited for longer than their stream allows, a batch of them at most."""
        batch = Batch()
        for spec in _specs(db):
            max_age_s = self._policy.max_age(spec.id.stream)
            if max_age_s:
                before_ns = now_ns - round(max_age_s * NS_PER_S)
                self._take_chunks(db, batch, [spec], BATCH_BYTES, before_ns)
        self._write_gaps(db, batch, put_gap)
        return batch

    @property
    def expires(self) -> bool:
        """Whether any stream has an age limit."""
        return bool(self._policy.max_age_s or any(rule.max_age_s for rule in self._policy.rules.values()))

    def settle(self, *, committed: bool) -> None:
        """The transaction is over; what was remembered of one that failed is forgotten."""
        if committed:
            self._done.update(self._moved)
        else:
            self._gaps = None
        self._moved.clear()

    def _take_acknowledged(self, db: sqlite3.Connection, batch: Batch, want_bytes: int) -> None:
        seqs = []
        for seq, size in db.execute(sql.OLDEST_DONE, (BATCH_ROWS,)).fetchall():
            if batch.is_enough(want_bytes):
                break
            seqs.append(seq)
            batch.freed_bytes += size
            batch.acknowledged += 1
        _delete(db, seqs)

    def _take_chunks(
        self, db: sqlite3.Connection, batch: Batch, specs: list[StreamSpec], want_bytes: int, before_ns: int = 2**62
    ) -> None:
        """The oldest of these streams together; only those accepted before `before_ns`."""
        if batch.is_enough(want_bytes):
            return
        waiting = [[(seq, spec) for seq in self._waiting(db, spec.id.stream)] for spec in specs]
        for seq, spec in heapq.merge(*waiting, key=lambda item: item[0]):
            start_ns, n_samples, accepted_ns, size, payload = db.execute(sql.ROW, (seq,)).fetchone()
            if batch.is_enough(want_bytes) or accepted_ns >= before_ns:
                return
            end_ns = _end_ns(spec, start_ns, n_samples, payload)
            batch.records.append(ShedRecord(seq, "chunk", spec.id, start_ns, end_ns, n_samples))
            batch.freed_bytes += size
            _delete(db, [seq])
            self._moved[spec.id.stream] = seq

    def _waiting(self, db: sqlite3.Connection, stream: str) -> list[int]:
        """The oldest chunks of the stream without ack, a batch of them at most."""
        found = db.execute(sql.WAITING_CHUNKS, (stream, self._done.get(stream, 0), BATCH_ROWS)).fetchall()
        if not found:
            self._moved[stream] = int(db.execute(sql.LAST_SEQ).fetchone()[0])
        return [seq for (seq,) in found]

    def _take_detections(self, db: sqlite3.Connection, batch: Batch, want_bytes: int) -> None:
        if batch.is_enough(want_bytes):
            return
        for seq, payload, size in db.execute(sql.WAITING_DETECTIONS, (BATCH_ROWS,)).fetchall():
            if batch.is_enough(want_bytes):
                return
            d = decode_detection(payload)
            stream_id = StreamId(d.site, d.node, DETECTIONS)
            batch.records.append(ShedRecord(seq, "detection", stream_id, d.start_ns, d.end_ns, 1))
            batch.freed_bytes += size
            _delete(db, [seq])

    def _write_gaps(self, db: sqlite3.Connection, batch: Batch, put_gap: PutGap) -> None:
        """One gap record for each stretch, in place of those that it touches and that still wait."""
        by_stream: dict[StreamId, list[GapSpan]] = {}
        for r in batch.records:
            by_stream.setdefault(r.stream_id, []).append(GapSpan(r.start_ns, r.end_ns, r.n_samples))
        if not by_stream:
            return
        if self._gaps is None:
            self._gaps = _waiting_gaps(db)
        for stream_id, spans in by_stream.items():
            waiting = [gap for gap in self._gaps.get(stream_id, ()) if _waits(db, gap.seq)]
            after = joined([*waiting, *spans], MAX_GAPS)
            kept = {gap.seq for gap in after}
            for gap in waiting:
                if gap.seq not in kept:
                    _delete(db, [gap.seq])
                    batch.records.append(ShedRecord(gap.seq, "gap", stream_id, gap.start_ns, gap.end_ns, gap.n_samples))
            self._gaps[stream_id] = [g if g.seq else g.numbered(put_gap(stream_id, g)) for g in after]


def _specs(db: sqlite3.Connection) -> list[StreamSpec]:
    rows = db.execute("SELECT spec FROM streams ORDER BY stream").fetchall()
    return [StreamSpec.from_dict(json.loads(spec)) for (spec,) in rows]


def _end_ns(spec: StreamSpec, start_ns: int, n_samples: int, payload: bytes) -> int:
    """Exact, from the chunk itself; by the declared rate where the row has gone bad."""
    try:
        return decode_chunk(payload).end_ns
    except WireError:
        return start_ns + round(n_samples * NS_PER_S / spec.rate_hz)


def _waiting_gaps(db: sqlite3.Connection) -> dict[StreamId, list[GapSpan]]:
    found: dict[StreamId, list[GapSpan]] = {}
    for seq, payload in db.execute(sql.WAITING_GAPS).fetchall():
        gap = decode_gap(payload)
        if gap.reason == REASON:
            found.setdefault(gap.stream, []).append(GapSpan(gap.start_ns, gap.end_ns, gap.n_samples, seq))
    return found


def _waits(db: sqlite3.Connection, seq: int) -> bool:
    return db.execute("SELECT 1 FROM records WHERE acked = 0 AND seq = ?", (seq,)).fetchone() is not None


def _delete(db: sqlite3.Connection, seqs: list[int]) -> None:
    db.executemany("DELETE FROM records WHERE seq = ?", [(seq,) for seq in seqs])
