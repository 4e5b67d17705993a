"""A message of any content into a record, or into a reason to refuse it."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any, Final

import cbor2

from infomae_stream.errors import WireError
from infomae_stream.stored_chunk import StoredChunk, StoredChunkDecoder
from infomae_stream.topics import ParsedTopic, parse_topic
from infomae_stream.types import Detection, Gap
from infomae_stream.wire import FOREIGN_TAGS, MAX_MESSAGE_BYTES, decode_detection, decode_gap, has_many_parts
from storage.lake import outbox_key
from storage.rows import record_rows
from storage.stored import Identity

Record = StoredChunk | Gap | Detection
MESSAGE_OVERHEAD_BYTES: Final = 1500  # what a message costs beside its payload, decoded
_HEAD_BYTES: Final = 65_536  # of a broken message, where its epoch and seq are looked for
_CACHED_TOPICS: Final = 20_000
# A tag says nothing here, and hides nothing behind it: the identity of a message that has one is told all the same.
_IGNORED_TAGS: Final = dict.fromkeys(FOREIGN_TAGS, lambda *_: None)


@dataclass(slots=True)
class Taken:
    """A good record. `identity`: (site, node, epoch) and seq. `payload`: the message, as it came."""

    topic: str
    payload: bytes
    received_ns: int
    identity: Identity
    record: Record

    @property
    def size(self) -> int:
        return len(self.payload) + MESSAGE_OVERHEAD_BYTES


@dataclass(slots=True)
class Refused:
    """A message to refuse for good. `identity`: what it claims, if that can be told; site and node are its topic's."""

    topic: str
    payload: bytes
    received_ns: int
    identity: Identity | None
    reason: str
    text: str

    @property
    def size(self) -> int:
        return len(self.payload) + MESSAGE_OVERHEAD_BYTES


class MessageReader:
    """Not for threads. Raises nothing: a message that is refused says why."""

    def __init__(self) -> None:
        self._chunks = StoredChunkDecoder()
        self._topics: dict[str, ParsedTopic] = {}

    def read(self, topic: str, payload: bytes, received_ns: int) -> Taken | Refused:
        where: ParsedTopic | None = None
        try:
            where = self._where(topic)
            record = self._decode(where, topic, payload)
            key = outbox_key(record)
            if key[0] != where.site or key[1] != where.node or _stream_of(record) != where.stream:
                raise WireError("the record belongs to another topic", reason="identity", where=topic)
            if not 0 <= record.seq < 2**62:
                raise WireError(f"seq {record.seq} is out of range", reason="schema", where=topic)
            return Taken(topic, payload, received_ns, (key, record.seq), record)
        except WireError as e:
            claimed = claimed_identity(payload) if where is not None else None
            identity = None if where is None or claimed is None else ((where.site, where.node, claimed[0]), claimed[1])
            return Refused(topic, payload, received_ns, identity, e.reason, str(e)[:300])

    def _where(self, topic: str) -> ParsedTopic:
        where = self._topics.get(topic)
        if where is None:
            where = parse_topic(topic)
            if len(self._topics) >= _CACHED_TOPICS:
                self._topics.clear()
            self._topics[topic] = where
        return where

    def _decode(self, where: ParsedTopic, topic: str, payload: bytes) -> Record:
        if where.leaf == "chunk":
            return self._chunks.decode(payload, topic)
        if where.leaf == "gap":
            return decode_gap(payload)
        if where.leaf == "detections":
            return decode_detection(payload)
        raise WireError(f"{where.leaf!r} is not a topic of records", reason="topic")


def claimed_identity(payload: bytes) -> tuple[str, int] | None:
    """(epoch, seq) that a broken message claims, so that its node can be told to stop sending it; None if untold.

    Encoders put both before the samples, so they are found in truncated, oversized and damaged messages too. Looks at
    the first _HEAD_BYTES only, and raises nothing.
    """
    found: dict[str, Any] = {}
    try:
        if payload[:1] == b"{":
            readable = len(payload) <= MAX_MESSAGE_BYTES and not has_many_parts(payload)
            found = json.loads(payload) if readable else {}
        elif payload and payload[0] >> 5 == 5:  # a map
            size = payload[0] & 0x1F
            head = io.BytesIO(payload[1 if size < 24 else 2 : _HEAD_BYTES])
            decoder = cbor2.CBORDecoder(
                head,
                semantic_decoders=_IGNORED_TAGS,
                max_depth=6,
                allow_indefinite=False,
                allow_duplicate_keys=False,
                strict_hashable_types=True,
            )
            while not {"epoch", "seq"} <= found.keys() and len(found) < 32:
                name = decoder.decode()
                found[str(name)] = decoder.decode()
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError, ArithmeticError, RecursionError):
        return None
    epoch, seq = found.get("epoch"), found.get("seq")
    if not isinstance(epoch, str) or not 0 < len(epoch) <= 200 or type(seq) is not int or not 0 <= seq < 2**62:
        return None
    return epoch, seq


def storable(taken: Taken) -> Taken | Refused:
    """`taken`, or its refusal when it follows the wire's schema and not the tables' (half a Unicode pair)."""
    try:
        record_rows(taken.record, taken.received_ns)
    except (ValueError, TypeError, OverflowError) as e:
        return Refused(taken.topic, taken.payload, taken.received_ns, taken.identity, "schema", str(e)[:300])
    return taken


def _stream_of(record: Record) -> str:
    if isinstance(record, StoredChunk):
        return record.spec.id.stream
    return record.stream.stream if isinstance(record, Gap) else ""
