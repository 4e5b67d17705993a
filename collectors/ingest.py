"""What ingest does with messages, without the network: decode, refuse, batch, commit, and tell what to acknowledge.

Nothing is acknowledged that is not on disk: a record in the lake (D2), a refused message in the dead letters. When the
disk refuses, everything stays as it is and `commit` may be called again.
"""

from __future__ import annotations

import io
import json
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import cbor2

from collectors.dead_letters import DeadLetters
from infomae_stream.clock import NS_PER_S, Clock
from infomae_stream.errors import LakeError, WireError
from infomae_stream.telemetry import EventLog
from infomae_stream.topics import ParsedTopic, node_topic, parse_topic
from infomae_stream.types import Chunk, Detection, Gap
from infomae_stream.wire import (
    MAX_MESSAGE_BYTES,
    Ack,
    decode_chunk,
    decode_detection,
    decode_gap,
    encode_ack,
    encode_chunk,
    encode_detection,
    encode_gap,
    seq_ranges,
)
from storage.identities import OutboxKey
from storage.lake import Lake, outbox_key
from storage.rows import record_rows
from storage.stored import Content, Identity, content_of, quarantined, stored_contents

RECENT_RECORDS: Final = 20_000  # contents kept in memory, so that a record sent again needs no look into the lake
MESSAGE_OVERHEAD_BYTES: Final = 500  # what a small message costs beside its payload
_HEAD_BYTES: Final = 65_536  # of a broken message, where its epoch and seq are looked for
_log = EventLog("infomae.ingest")


@dataclass(frozen=True, slots=True)
class Taken:
    """A record that is good, or (`record` None) a message to refuse, with the identity it claims where one can be told.

    `identity`: (site, node, epoch) and seq; site and node are the topic's. `payload`: of a refused message only.
    """

    topic: str
    payload: bytes
    received_ns: int
    identity: Identity | None
    record: Chunk | Gap | Detection | None = None
    reason: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a commit came to: messages to publish as (topic, payload), counts by outcome and by reason of refusal."""

    acks: list[tuple[str, bytes]]
    counts: Counter[str]
    refused: Counter[str]
    lag_s: float | None  # from the newest chunk's acceptance on its node; None when no chunk was new


@dataclass(slots=True)
class _Verdicts:
    new: list[Taken] = field(default_factory=list)
    durable: list[Identity] = field(default_factory=list)
    refused: list[tuple[Taken, str, str]] = field(default_factory=list)  # message, reason, text
    conflicts: set[Identity] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)


class Ingest:
    """Not for threads. `take` messages while `has_room`; `commit` when `due`."""

    def __init__(
        self,
        lake: Lake,
        dead_letters: DeadLetters,
        clock: Clock,
        *,
        commit_interval_s: float,
        commit_bytes: int,
        max_inflight_bytes: int,
    ) -> None:
        self._lake = lake
        self._dead_letters = dead_letters
        self._clock = clock
        self._commit_interval_ns = round(commit_interval_s * NS_PER_S)
        self._commit_bytes = commit_bytes
        self._max_inflight_bytes = max_inflight_bytes
        self._pending: list[Taken] = []
        self._pending_bytes = 0
        self._oldest_ns = 0
        self._recent: OrderedDict[Identity, int] = OrderedDict()

    @property
    def inflight_bytes(self) -> int:
        """Taken and not committed."""
        return self._pending_bytes

    @property
    def has_room(self) -> bool:
        return self._pending_bytes < self._max_inflight_bytes

    def seconds_until_due(self) -> float:
        """How long the next commit may wait; the whole interval when there is nothing to commit."""
        if self._pending_bytes >= self._commit_bytes:
            return 0.0
        waited_ns = self._clock.monotonic_ns() - self._oldest_ns if self._pending else 0
        return max(0, self._commit_interval_ns - waited_ns) / NS_PER_S

    def take(self, topic: str, payload: bytes) -> None:
        """Take a message, whatever it holds."""
        if not self._pending:
            self._oldest_ns = self._clock.monotonic_ns()
        self._pending.append(read_message(topic, payload, self._clock.now_ns()))
        self._pending_bytes += len(payload) + MESSAGE_OVERHEAD_BYTES

    def commit(self) -> Outcome:
        """Make durable what was taken, then tell what to acknowledge.

        Raises LakeError when the disk refuses; what was taken stays, and a later call goes on from there.
        """
        verdicts = self._judge()
        new = [_record(taken) for taken in verdicts.new]
        try:
            written = self._store(new)
        except (ValueError, TypeError, OverflowError) as e:
            if not self._give_up_unstorable():
                raise LakeError(f"a batch does not fit the tables: {e}", where=str(self._lake.path)) from e
            return self.commit()
        self._lake.quarantine(((*key, seq) for key, seq in verdicts.conflicts), "conflict")
        self._bury(verdicts)
        self._remember(verdicts)
        accepted_ns = [r.accepted_ns for r in new if isinstance(r, Chunk) and r.accepted_ns]
        verdicts.counts["stored"] += written
        verdicts.counts["duplicate"] += len(new) - written
        verdicts.counts["refused"] += len(verdicts.refused)
        self._pending, self._pending_bytes = [], 0
        return Outcome(
            acks=_acks([*verdicts.durable, *(_identity(taken) for taken in verdicts.new)], verdicts.refused),
            counts=verdicts.counts,
            refused=Counter(reason for _, reason, _ in verdicts.refused),
            lag_s=(self._clock.now_ns() - max(accepted_ns)) / NS_PER_S if accepted_ns else None,
        )

    def _store(self, records: Sequence[Chunk | Gap | Detection]) -> int:
        """Return how many were written: another ingest may have been quicker with the rest."""
        committed = self._lake.commit_batch(
            [r for r in records if isinstance(r, Chunk)],
            [r for r in records if isinstance(r, Gap)],
            [r for r in records if isinstance(r, Detection)],
            self._clock.now_ns(),
        )
        return committed.written

    def _give_up_unstorable(self) -> bool:
        """Turn records that follow the wire's schema but not the tables' (half a Unicode pair) into refusals.

        True when there was one: without this a single such record would hold up everything behind it, for ever.
        """
        before = sum(taken.record is not None for taken in self._pending)
        self._pending = [_storable(taken) for taken in self._pending]
        return sum(taken.record is not None for taken in self._pending) < before

    def _judge(self) -> _Verdicts:
        """New, stored already, in conflict, or poison."""
        verdicts = _Verdicts()
        index = self._lake.known_identities()
        good: dict[Identity, list[Taken]] = {}
        for taken in self._pending:
            if taken.record is not None:
                good.setdefault(_identity(taken), []).append(taken)
        known = {(key, seq) for key, seq in good if (*key, seq) in index}
        forgotten = known - self._recent.keys()
        stored = stored_contents(self._lake, forgotten)
        banned = quarantined(self._lake, forgotten)
        for identity, copies in good.items():
            contents = {content_of(_record(taken)) for taken in copies}
            if identity in banned or not self._agree(contents, identity, identity in known, stored):
                verdicts.refused += [(taken, "conflict", "same identity, different bytes") for taken in copies]
                verdicts.conflicts |= {identity} - banned
                continue
            fresh = identity not in known
            if fresh:
                verdicts.new.append(copies[0])
            else:
                verdicts.durable.append(identity)
            verdicts.counts["duplicate"] += len(copies) - fresh
        settled = good.keys() - {_identity(taken) for taken, _, _ in verdicts.refused}
        for taken in self._pending:
            if taken.record is None:
                self._refuse_poison(taken, verdicts, settled, index)
        return verdicts

    def _agree(
        self, contents: set[Content], identity: Identity, known: bool, stored: dict[Identity, set[Content]]
    ) -> bool:
        """Whether an identity has one content, counting what is stored under it."""
        if len(contents) > 1 or not known:
            return len(contents) == 1
        (content,) = contents
        recent = self._recent.get(identity)
        return recent == hash(content) if recent is not None else stored.get(identity, set()) <= {content}

    def _refuse_poison(self, taken: Taken, verdicts: _Verdicts, settled: Iterable[Identity], index: Any) -> None:
        """A broken copy never takes away the good one: its letter is kept, and the node is not told to give up."""
        identity = taken.identity
        if identity is not None and (identity in settled or (*identity[0], identity[1]) in index):
            taken = replace(taken, identity=None)
        verdicts.refused.append((taken, taken.reason, taken.text))

    def _bury(self, verdicts: _Verdicts) -> None:
        try:
            for taken, reason, text in verdicts.refused:
                payload = taken.payload if taken.record is None else _encode(taken.record)
                if self._dead_letters.keep(taken.topic, payload, reason, text, taken.received_ns):
                    _log.warning("message_refused", reason=reason, topic=taken.topic[:200], text=text)
        except OSError as e:
            raise LakeError(f"a dead letter cannot be written: {e.strerror or e}") from e
        for (site, node, epoch), seq in sorted(verdicts.conflicts):
            _log.error("identity_conflict", site=site, node=node, epoch=epoch, seq=seq, fix="was an outbox copied?")

    def _remember(self, verdicts: _Verdicts) -> None:
        for taken in verdicts.new:
            self._recent[_identity(taken)] = hash(content_of(_record(taken)))
        for identity in verdicts.conflicts:
            self._recent.pop(identity, None)
        while len(self._recent) > RECENT_RECORDS:
            self._recent.popitem(last=False)


def read_message(topic: str, payload: bytes, received_ns: int) -> Taken:
    """Decode a message of any content; a message that is refused says why."""
    where: ParsedTopic | None = None
    try:
        where = parse_topic(topic)
        record = _decode(where, payload)
        key = outbox_key(record)
        stream = (
            "" if isinstance(record, Detection) else (record.spec.id if isinstance(record, Chunk) else record.stream)
        )
        if key[:2] != (where.site, where.node) or (stream and str(stream).split("/")[2] != where.stream):
            raise WireError("the record belongs to another topic", reason="identity", where=topic)
        if not 0 <= record.seq < 2**62:
            raise WireError(f"seq {record.seq} is out of range", reason="schema", where=topic)
        return Taken(topic, b"", received_ns, (key, record.seq), record)
    except WireError as e:
        claimed = claimed_identity(payload) if where is not None else None
        identity = None if where is None or claimed is None else ((where.site, where.node, claimed[0]), claimed[1])
        return Taken(topic, payload, received_ns, identity, None, e.reason, str(e)[:300])


def claimed_identity(payload: bytes) -> tuple[str, int] | None:
    """(epoch, seq) that a broken message claims, so that its node can be told to stop sending it; None if untold.

    Encoders put both before the samples, so they are found in truncated, oversized and damaged messages too. Looks at
    the first _HEAD_BYTES only, and raises nothing.
    """
    found: dict[str, Any] = {}
    try:
        if payload[:1] == b"{":
            found = json.loads(payload) if len(payload) <= MAX_MESSAGE_BYTES else {}
        elif payload and payload[0] >> 5 == 5:  # a map
            size = payload[0] & 0x1F
            head = io.BytesIO(payload[1 if size < 24 else 2 : _HEAD_BYTES])
            decoder = cbor2.CBORDecoder(head, max_depth=6, allow_indefinite=False, strict_hashable_types=True)
            while not {"epoch", "seq"} <= found.keys() and len(found) < 32:
                name = decoder.decode()
                found[str(name)] = decoder.decode()
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError, ArithmeticError, RecursionError):
        return None
    epoch, seq = found.get("epoch"), found.get("seq")
    if not isinstance(epoch, str) or not 0 < len(epoch) <= 200 or type(seq) is not int or not 0 <= seq < 2**62:
        return None
    return epoch, seq


def _decode(where: ParsedTopic, payload: bytes) -> Chunk | Gap | Detection:
    if where.leaf == "chunk":
        return decode_chunk(payload)
    if where.leaf == "gap":
        return decode_gap(payload)
    if where.leaf == "detections":
        return decode_detection(payload)
    raise WireError(f"{where.leaf!r} is not a topic of records", reason="topic")


def _encode(record: Chunk | Gap | Detection) -> bytes:
    if isinstance(record, Chunk):
        return encode_chunk(record)
    return encode_gap(record) if isinstance(record, Gap) else encode_detection(record)


def _storable(taken: Taken) -> Taken:
    if taken.record is None:
        return taken
    try:
        record_rows(taken.record, taken.received_ns)
    except (ValueError, TypeError, OverflowError) as e:
        return replace(taken, payload=_encode(taken.record), record=None, reason="schema", text=str(e)[:300])
    return taken


def _acks(durable: Sequence[Identity], refused: Sequence[tuple[Taken, str, str]]) -> list[tuple[str, bytes]]:
    """One message an outbox."""
    seqs: dict[OutboxKey, tuple[list[int], dict[str, list[int]]]] = {}
    for key, seq in durable:
        seqs.setdefault(key, ([], {}))[0].append(seq)
    for taken, reason, _ in refused:
        if taken.identity is not None:
            key, seq = taken.identity
            seqs.setdefault(key, ([], {}))[1].setdefault(reason, []).append(seq)
    acks = []
    for (site, node, epoch), (good, bad) in sorted(seqs.items()):
        ranges = tuple((*r, reason) for reason, numbers in sorted(bad.items()) for r in seq_ranges(numbers))
        acks.append((node_topic(site, node, "ack"), encode_ack(Ack(epoch, seq_ranges(good), ranges))))
    return acks


def _identity(taken: Taken) -> Identity:
    assert taken.identity is not None
    return taken.identity


def _record(taken: Taken) -> Chunk | Gap | Detection:
    assert taken.record is not None
    return taken.record
