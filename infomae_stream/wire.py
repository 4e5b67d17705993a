"""What travels: chunks and gaps as CBOR (RFC 8949, arrays as RFC 8746 typed arrays), acks, detections, births as JSON.

Sizes are checked before anything is decoded, and counts before anything is allocated. A decoder either returns a valid
value or raises WireError with a reason of REASONS; it never raises anything else.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar

import cbor2
import numpy as np
from numpy.typing import NDArray

from infomae_stream.errors import DataError, WireError
from infomae_stream.types import (
    MAX_SAMPLES,
    Chunk,
    ClockQuality,
    Detection,
    Event,
    Gap,
    StreamId,
    StreamSpec,
    check_id,
    listed,
    number,
    plain_text,
)

VERSION: Final = 1
MAX_MESSAGE_BYTES: Final = 4_194_304
CONTENT_MODULUS: Final = 2**32
MAX_PARTS: Final = 250_000  # lists and objects of a JSON message; an acknowledgement has one a range
REASONS: Final = ("topic", "size", "cbor", "schema", "crc", "identity", "conflict")

# RFC 8746, section 2.1: little-endian typed arrays.
_TAG_OF: Final = {"int16": 77, "int32": 78, "int64": 79, "float32": 85, "float64": 86}
_DTYPE_OF: Final = {tag: np.dtype(name).newbyteorder("<") for name, tag in _TAG_OF.items()}
_TAG_ARRAY: Final = 40  # row-major multi-dimensional array: [dimensions, typed array]

T = TypeVar("T")


def encode_chunk(chunk: Chunk) -> bytes:
    samples = np.ascontiguousarray(chunk.samples_CN)
    message = {
        "v": VERSION,
        "spec": chunk.spec.to_dict(),
        "epoch": chunk.epoch,
        "seq": chunk.seq,
        "start_ns": chunk.start_ns,
        "accepted_ns": chunk.accepted_ns,
        "clock": _clock_to_dict(chunk.clock),
        "samples": cbor2.CBORTag(_TAG_ARRAY, [list(samples.shape), _typed(samples)]),
        "times_ns": None if chunk.times_ns is None else _typed(chunk.times_ns),
    }
    message["crc32"] = samples_crc32(samples, chunk.times_ns)
    return cbor2.dumps(message)


def decode_chunk(payload: bytes) -> Chunk:
    """Raises WireError with reason size, cbor, schema or crc."""
    message = _load_cbor(payload)

    def build() -> Chunk:
        samples = message["samples"]
        dimensions, typed = samples.value
        n_channels, n_samples = (_integer(n) for n in dimensions)
        if samples.tag != _TAG_ARRAY or min(n_channels, n_samples) <= 0 or n_channels * n_samples > MAX_SAMPLES:
            raise DataError(f"samples have dimensions {dimensions!r}")
        times_ns = message["times_ns"]
        return Chunk(
            spec=StreamSpec.from_dict(message["spec"]),
            epoch=_text(message["epoch"]),
            seq=_integer(message["seq"]),
            start_ns=_integer(message["start_ns"]),
            accepted_ns=_integer(message["accepted_ns"]),
            clock=_clock_from_dict(message["clock"]),
            samples_CN=_untyped(typed).reshape(dimensions),
            times_ns=None if times_ns is None else _untyped(times_ns, "int64"),
        )

    chunk = _checked(build, "chunk")
    if type(message.get("crc32")) is not int or message["crc32"] != samples_crc32(chunk.samples_CN, chunk.times_ns):
        raise WireError("checksum does not match the samples", reason="crc", where=f"{chunk.spec.id} seq {chunk.seq}")
    return chunk


def encode_gap(gap: Gap) -> bytes:
    s = gap.stream
    return cbor2.dumps(
        {
            "v": VERSION,
            "site": s.site,
            "node": s.node,
            "stream": s.stream,
            "epoch": gap.epoch,
            "seq": gap.seq,
            "start_ns": gap.start_ns,
            "end_ns": gap.end_ns,
            "reason": gap.reason,
            "n_samples": gap.n_samples,
        }
    )


def decode_gap(payload: bytes) -> Gap:
    """Raises WireError with reason size, cbor or schema."""
    m = _load_cbor(payload)
    return _checked(
        lambda: Gap(
            stream=StreamId(m["site"], m["node"], m["stream"]),
            epoch=_text(m["epoch"]),
            seq=_count(m["seq"]),
            start_ns=_integer(m["start_ns"]),
            end_ns=_integer(m["end_ns"]),
            reason=_text(m["reason"]),
            n_samples=_count(m["n_samples"]),
        ),
        "gap",
    )


def encode_detection(detection: Detection) -> bytes:
    d = {name: getattr(detection, name) for name in Detection.__dataclass_fields__ if name != "event"}
    # Left out where there is none, so that a record of an older node keeps its bytes, and with them its checksum.
    event = {} if detection.event is None else {"event": asdict(detection.event)}
    return json.dumps({"v": VERSION, **d, **event}).encode()


def decode_detection(payload: bytes) -> Detection:
    """Raises WireError with reason size or schema."""
    m = load_json(payload)

    def build() -> Detection:
        scores = {_text(name): number(score) for name, score in m["scores"].items()}
        if m["label"] not in scores or not all(0 <= s <= 1 for s in scores.values()):
            raise DataError("scores are not probabilities of the classes, the label among them")
        return Detection(
            site=check_id(m["site"], "site"),
            node=check_id(m["node"], "node"),
            epoch=_text(m["epoch"]),
            seq=_count(m["seq"]),
            start_ns=_integer(m["start_ns"]),
            end_ns=_integer(m["end_ns"]),
            label=_text(m["label"]),
            scores=scores,
            modalities=tuple(_text(name) for name in listed(m["modalities"])),
            bundle_version=_integer(m["bundle_version"]),
            bundle_sha256=_text(m["bundle_sha256"]),
            event=None if m.get("event") is None else _event(m["event"]),
        )

    return _checked(build, "detection")


def _event(m: dict[str, Any]) -> Event:
    if type(m["ongoing"]) is not bool:
        raise DataError("ongoing is true or false")
    return Event(
        windows=_count(m["windows"]),
        peak_score=number(m["peak_score"]),
        part=_count(m["part"]),
        ongoing=m["ongoing"],
        missing=tuple(_text(name) for name in listed(m["missing"])),
        attribution={_text(name): number(change) for name, change in m["attribution"].items()},
        on=number(m["on"]),
        off=number(m["off"]),
    )


@dataclass(frozen=True, slots=True)
class Ack:
    """Hub to node: what is durable, and what is refused for good. Ranges are inclusive `(first, last)` seq numbers.

    sums: for each durable range the sum of its records' `content_sum`, modulo 2**32; empty when they are not told. Two
    outboxes with one epoch (a copied card) share their acks, and only the content tells whose a number is.
    """

    epoch: str
    durable: tuple[tuple[int, int], ...] = ()
    refused: tuple[tuple[int, int, str], ...] = ()
    sums: tuple[int, ...] = ()


def content_sum(start_ns: int, crc32: int) -> int:
    """What an ack adds up: a record's start, and the checksum of a chunk's samples (0 for other kinds)."""
    return (start_ns + crc32) % CONTENT_MODULUS


def encode_ack(ack: Ack) -> bytes:
    fields = {"v": VERSION, "epoch": ack.epoch, "durable": ack.durable, "refused": ack.refused}
    return json.dumps(fields | ({"sums": ack.sums} if ack.sums else {})).encode()


def decode_ack(payload: bytes) -> Ack:
    """Raises WireError with reason size or schema."""
    m = load_json(payload)

    def seq_range(first: Any, last: Any) -> tuple[int, int]:
        if not 0 <= _integer(first) <= _integer(last):
            raise DataError(f"range {first}..{last} is not a range of sequence numbers")
        return first, last

    def build() -> Ack:
        durable = tuple(seq_range(*listed(entry)) for entry in listed(m["durable"]))
        refused = []
        for entry in listed(m["refused"]):
            first, last, reason = listed(entry)
            refused.append((*seq_range(first, last), _text(reason)))
        sums = tuple(_integer(entry) for entry in listed(m.get("sums", [])))
        if (sums and len(sums) != len(durable)) or any(not 0 <= s < CONTENT_MODULUS for s in sums):
            raise DataError("sums has one number below 2**32 for each durable range, or none at all")
        return Ack(_text(m["epoch"]), durable, tuple(refused), sums)

    return _checked(build, "ack")


def seq_ranges(seqs: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Sequence numbers in any order as the fewest inclusive ranges: 1 2 3 7 -> (1, 3) (7, 7)."""
    ranges: list[tuple[int, int]] = []
    for seq in sorted(set(seqs)):
        if ranges and seq == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], seq)
        else:
            ranges.append((seq, seq))
    return tuple(ranges)


def load_json(payload: bytes) -> dict[str, Any]:
    """A JSON object of at most MAX_MESSAGE_BYTES. Raises WireError with reason size or schema.

    Strict JSON: no name twice in an object, no NaN, and no more parts than any message of ours could have.
    """
    _check_size(payload)
    if has_many_parts(payload):
        raise WireError(f"more than {MAX_PARTS} lists and objects", reason="schema")
    try:
        message = json.loads(payload, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        raise WireError(f"not JSON: {str(e)[:200]}", reason="schema") from e
    if not isinstance(message, dict) or not _is_version(message.get("v")):
        raise WireError(f"not an object with v = {VERSION}", reason="schema")
    return message


def has_many_parts(payload: bytes) -> bool:
    """Whether a JSON text may hold more than MAX_PARTS lists and objects; told without reading it."""
    return payload.count(b"[") + payload.count(b"{") > MAX_PARTS


def _check_size(payload: bytes) -> None:
    if len(payload) > MAX_MESSAGE_BYTES:
        raise WireError(f"{len(payload)} bytes, at most {MAX_MESSAGE_BYTES} are taken", reason="size")


def _load_cbor(payload: bytes) -> dict[str, Any]:
    _check_size(payload)
    _check_parts(payload)
    try:
        stream = io.BytesIO(payload)
        message = cbor2.CBORDecoder(
            stream,
            semantic_decoders=_NO_MEANING,
            max_depth=6,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
        ).decode()
        trailing = stream.read(1)
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError, ArithmeticError, RecursionError) as e:
        raise WireError(f"not CBOR: {str(e)[:200]}", reason="cbor") from e
    if trailing:
        raise WireError("bytes follow the message", reason="cbor")
    if not isinstance(message, dict) or not _is_version(message.get("v")):
        raise WireError(f"not a map with v = {VERSION}", reason="schema")
    return message


def _check_parts(payload: bytes) -> None:
    """Refuse a large message of a great many parts before it is decoded: an empty list takes 1 byte here and 64 there.

    Small messages cannot hold enough of them, and a chunk's bulk is one byte string, so this looks at few bytes.
    """
    if len(payload) <= _SMALL_BYTES:
        return
    at, parts = 0, 0
    while at < len(payload) and parts <= _MANY_PARTS:
        major, info = payload[at] >> 5, payload[at] & 0x1F
        width = 1 << (info - 24) if 24 <= info <= 27 else 0
        argument = int.from_bytes(payload[at + 1 : at + 1 + width], "big") if width else info
        at += 1 + width + (argument if major in (2, 3) else 0)
        parts += 1
    if parts > _MANY_PARTS:
        raise WireError(f"more than {_MANY_PARTS} parts", reason="cbor")


def _no_meaning(*_: Any) -> Any:
    raise ValueError("a tag that no message has")


# What cbor2 would turn into dates, decimals, regular expressions (a compilation!), shared references and so on.
FOREIGN_TAGS: Final = (
    *range(6), 21, 22, 23, 25, 28, 29, 30, 35, 36, 37, 100, 256, 258, 260, 261, 1004, 43000, 55799,
)  # fmt: skip
_NO_MEANING: Final = dict.fromkeys(FOREIGN_TAGS, _no_meaning)
_SMALL_BYTES: Final = 65_536
_MANY_PARTS: Final = 20_000


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _is_version(value: Any) -> bool:
    return type(value) is int and value == VERSION


def _checked(build: Callable[[], T], what: str) -> T:
    try:
        return build()
    except (DataError, KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as e:
        raise WireError(
            f"{what} does not follow the schema: {str(e)[:200] or type(e).__name__}", reason="schema"
        ) from e


def _typed(array: NDArray[Any]) -> cbor2.CBORTag:
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return cbor2.CBORTag(_TAG_OF[array.dtype.name], little.tobytes())


def _untyped(tagged: Any, want: str = "") -> NDArray[Any]:
    dtype = _DTYPE_OF.get(tagged.tag)
    if dtype is None or (want and dtype.name != want) or not isinstance(tagged.value, bytes):
        raise DataError(f"tag {tagged.tag} is not a typed array that is taken here")
    return np.frombuffer(tagged.value, dtype=dtype).astype(dtype.newbyteorder("="), copy=False)


def chunk_crc32(chunk: Chunk) -> int:
    """The checksum that travels with a chunk: CRC-32 of its samples, little-endian, and of its times if it has any."""
    return samples_crc32(chunk.samples_CN, chunk.times_ns)


def samples_crc32(samples_CN: NDArray[Any], times_ns: NDArray[np.int64] | None) -> int:
    """CRC-32 of the samples (little-endian, channel by channel), then of the times where there are any."""
    crc = zlib.crc32(np.ascontiguousarray(samples_CN, dtype=samples_CN.dtype.newbyteorder("<")).data)
    return crc if times_ns is None else zlib.crc32(np.ascontiguousarray(times_ns, dtype="<i8").data, crc)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 200:
        raise DataError(f"{str(value)[:80]!r} is not a short text")
    return value


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**62) < value < 2**62:
        raise DataError(f"{str(value)[:80]!r} is not an integer in range")
    return value


def _count(value: Any) -> int:
    if _integer(value) < 0:
        raise DataError(f"{value} is below zero")
    return int(value)


def _clock_to_dict(clock: ClockQuality) -> dict[str, Any]:
    return {name: getattr(clock, name) for name in ClockQuality.__dataclass_fields__}


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise DataError(f"{str(value)[:80]!r} is neither true nor false")
    return value


def _clock_from_dict(d: dict[str, Any]) -> ClockQuality:
    return ClockQuality(
        source=plain_text(d["source"])[:80],
        offset_ns=_integer(d["offset_ns"]),
        uncertainty_ns=_integer(d["uncertainty_ns"]),
        synchronised=_flag(d["synchronised"]),
        boot_id=plain_text(d["boot_id"])[:80],
        monotonic_ns=_integer(d["monotonic_ns"]),
    )
