"""A chunk as the lake keeps it: what `Chunk` says, with the samples still the bytes that travelled.

A hub decodes some ten thousand chunks a second and core, and only stores them. `StoredChunkDecoder` therefore takes
messages that are laid out as `encode_chunk` lays them out without building arrays, dicts and descriptions anew each
time; everything else it hands to `decode_chunk`. Both accept the same messages with the same meaning.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import cbor2
import numpy as np

from infomae_stream.clock import NS_PER_S
from infomae_stream.types import MAX_SAMPLES, Chunk, StreamSpec
from infomae_stream.wire import MAX_MESSAGE_BYTES, chunk_crc32, decode_chunk

CACHED_HEADS: Final = 20_000  # streams whose descriptions are kept; a thousand nodes of three streams fit
_MAX_INT: Final = 2**62
K = TypeVar("K")
V = TypeVar("V")

_UINT: Final = rb"([\x00-\x17]|\x18.|\x19..|\x1a.{4}|\x1b.{8})"
_INT: Final = rb"([\x00-\x17\x20-\x37]|[\x18\x38].|[\x19\x39]..|[\x1a\x3a].{4}|[\x1b\x3b].{8})"
_SIZE: Final = rb"([\x40-\x57]|\x58.|\x59..|\x5a.{4})"
# What `encode_chunk` writes, from the first byte to the first of the samples. Texts are checked for their length after.
_HEAD: Final = re.compile(
    rb"(\xaa\x61v\x01\x64spec.{1,4000}?\x63seq)" + _UINT + rb"\x68start_ns" + _UINT + rb"\x6baccepted_ns" + _INT
    + rb"\x65clock\xa6\x66source(.{1,82}?)\x69offset_ns" + _INT + rb"\x6euncertainty_ns" + _INT
    + rb"\x6csynchronised([\xf4\xf5])\x67boot_id(.{1,82}?)\x6cmonotonic_ns" + _INT
    + rb"\x67samples\xd8\x28\x82\x82" + _UINT + _UINT + rb"\xd8(.)" + _SIZE,
    re.DOTALL,
)  # fmt: skip
_TIMES: Final = re.compile(rb"\x68times_ns(?:\xf6|\xd8\x4f" + _SIZE + rb")", re.DOTALL)
_CRC: Final = re.compile(rb"\x65crc32" + _UINT, re.DOTALL)
# Groups of _HEAD: seq, start_ns, accepted_ns, the clock's offset_ns, uncertainty_ns, monotonic_ns.
_NUMBERS: Final = (2, 3, 4, 6, 7, 10)
_CODES: Final = {2: "B", 3: "H", 5: "I", 9: "Q"}  # of struct, by the bytes of a CBOR integer
# RFC 8746 tags of the types that a chunk may have, and their sizes.
_SAMPLES: Final = {77: ("int16", 2), 78: ("int32", 4), 85: ("float32", 4), 86: ("float64", 8)}


# ClockQuality's fields, in its order; a plain tuple, because one is made for each chunk.
ClockValues = tuple[str, int, int, bool, str, int]


@dataclass(slots=True, eq=False)
class StoredChunk:
    """Checked as a `Chunk` is. `samples`: C x N values of type `dtype`, row-major, little-endian; `times`: N int64.

    The bytes may be views into the message, which then lives as long as they do. end_ns, crc32: as the chunk's.
    """

    spec: StreamSpec
    epoch: str
    seq: int
    start_ns: int
    end_ns: int
    accepted_ns: int
    clock: ClockValues
    dtype: str
    n_samples: int
    samples: bytes | memoryview
    times: bytes | memoryview | None
    crc32: int


def stored_chunk(chunk: Chunk) -> StoredChunk:
    samples, c = chunk.samples_CN, chunk.clock
    return StoredChunk(
        spec=chunk.spec,
        epoch=chunk.epoch,
        seq=chunk.seq,
        start_ns=chunk.start_ns,
        end_ns=chunk.end_ns,
        accepted_ns=chunk.accepted_ns,
        clock=(c.source, c.offset_ns, c.uncertainty_ns, c.synchronised, c.boot_id, c.monotonic_ns),
        dtype=samples.dtype.name,
        n_samples=chunk.n_samples,
        samples=np.ascontiguousarray(samples, dtype=samples.dtype.newbyteorder("<")).tobytes(),
        times=None if chunk.times_ns is None else np.ascontiguousarray(chunk.times_ns, dtype="<i8").tobytes(),
        crc32=chunk_crc32(chunk),
    )


class _Layout:
    """Where the numbers stand in the messages of one stream, learnt from one of them that was read in full.

    All other bytes before the samples, and those between the samples and the checksum, must be the same again; then
    they mean the same, and only numbers, samples and checksum are left to read. For chunks without times.
    """

    __slots__ = (
        "_constants", "_duration_ns", "_length", "_like", "_negative", "_samples", "_slots", "_tail", "_unpack",
    )  # fmt: skip

    def __init__(self, payload: bytes, head: re.Match[bytes], like: StoredChunk, size: int) -> None:
        # Numbers of one byte count as constant bytes: most are zeros for ever.
        codes, at, slots, negative = [], 0, [], []
        for group in _NUMBERS:
            start, end = head.span(group)
            if end - start > 1:
                codes.append(f"{start + 1 - at}s{_CODES[end - start]}")
                at = end
            slots.append(len(codes) - 1 if end - start > 1 else None)
            negative.append(payload[start] >= 0x20)
        codes.append(f"{head.end() - at}s")
        self._unpack = struct.Struct(">" + "".join(codes)).unpack_from
        self._constants = self._unpack(payload)[::2]
        self._slots = None if slots == [0, 1, 2, 3, 4, 5] and not any(negative) else slots
        self._negative = negative
        self._samples = slice(head.end(), head.end() + size)
        self._tail = payload[self._samples.stop : -4]
        self._length = len(payload)
        self._like = like
        self._duration_ns = like.end_ns - like.start_ns

    def read(self, payload: bytes) -> StoredChunk | None:
        """None when this is not such a message, or a wrong one."""
        if len(payload) != self._length:
            return None
        values = self._unpack(payload)
        if values[::2] != self._constants:
            return None
        like = self._like
        numbers: Sequence[int] = values[1::2]
        if numbers and max(numbers) >= _MAX_INT - 1:  # one more below zero: `decode_chunk` knows
            return None
        if self._slots is not None:
            numbers = self._placed(numbers)
        seq, start_ns, accepted_ns, offset_ns, uncertainty_ns, monotonic_ns = numbers
        samples = memoryview(payload)[self._samples]
        crc32 = zlib.crc32(samples)
        if not payload.endswith(self._tail + crc32.to_bytes(4, "big")):
            return None
        source, _, _, synchronised, boot_id, _ = like.clock
        return StoredChunk(
            like.spec,
            like.epoch,
            seq,
            start_ns,
            start_ns + self._duration_ns,
            accepted_ns,
            (source, offset_ns, uncertainty_ns, synchronised, boot_id, monotonic_ns),
            like.dtype,
            like.n_samples,
            samples,
            None,
            crc32,
        )

    def _placed(self, numbers: Sequence[int]) -> list[int]:
        like = self._like
        first = (like.seq, like.start_ns, like.accepted_ns, like.clock[1], like.clock[2], like.clock[5])
        assert self._slots is not None
        return [
            first[i] if slot is None else -1 - numbers[slot] if self._negative[i] else numbers[slot]
            for i, slot in enumerate(self._slots)
        ]


class StoredChunkDecoder:
    """Not for threads. Memory: CACHED_HEADS descriptions and as many short texts at most."""

    def __init__(self) -> None:
        # The bytes before the value of "seq" -> what they say. A message that begins with them says it too.
        self._heads: dict[bytes, tuple[StreamSpec, str]] = {}
        self._texts: dict[bytes, str] = {}
        self._layouts: dict[str, list[_Layout]] = {}

    def decode(self, payload: bytes, topic: str = "") -> StoredChunk:
        """Raises WireError with reason size, cbor, schema or crc, as `decode_chunk` does.

        topic: only tells which of the messages seen before this one is probably laid out like.
        """
        layouts = self._layouts.get(topic, ())
        for layout in layouts:
            chunk = layout.read(payload)
            if chunk is not None:
                return chunk
        head = _HEAD.match(payload)
        if head is None or len(payload) > MAX_MESSAGE_BYTES:
            return stored_chunk(decode_chunk(payload))
        known = self._heads.get(head[1])
        if known is not None:
            chunk = self._read(payload, head, *known)
            if chunk is not None:
                self._learn(topic, payload, head, chunk)
                return chunk
        whole = decode_chunk(payload)
        if known is None and _is_head(head[1]):
            _remember(self._heads, head[1], (whole.spec, whole.epoch))
        return stored_chunk(whole)

    def _learn(self, topic: str, payload: bytes, head: re.Match[bytes], chunk: StoredChunk) -> None:
        if chunk.times is not None or payload[-5:-4] != b"\x1a":
            return
        # Of its own bytes: it must not keep this message in memory.
        like = replace(chunk, samples=b"")
        layout = _Layout(payload, head, like, len(chunk.samples))
        _remember(self._layouts, topic, [layout, *self._layouts.get(topic, ())[:3]])

    def _read(self, payload: bytes, head: re.Match[bytes], spec: StreamSpec, epoch: str) -> StoredChunk | None:
        """None for whatever is not as expected, also when it is wrong: `decode_chunk` says why."""
        _, *fields = head.groups()
        seq, start_ns, accepted_ns, offset_ns, uncertainty_ns, monotonic_ns, channels, n_samples = [
            _integer(fields[i]) for i in (0, 1, 2, 4, 5, 8, 9, 10)
        ]
        if max(seq, start_ns, abs(accepted_ns), abs(offset_ns), abs(uncertainty_ns), abs(monotonic_ns)) >= _MAX_INT:
            return None
        source, boot_id = self._text(fields[3]), self._text(fields[7])
        dtype, width = _SAMPLES.get(fields[11][0], ("", 0))
        size, at = _integer(fields[12]), head.end()
        if source is None or boot_id is None or channels != len(spec.channels):
            return None
        if not 0 < channels * n_samples <= MAX_SAMPLES or size != channels * n_samples * width:
            return None
        view = memoryview(payload)
        samples = view[at : at + size]
        times_head = _TIMES.match(payload, at + size)
        if times_head is None:
            return None
        at, times, last_ns = times_head.end(), None, None
        if times_head[1] is not None:
            if _integer(times_head[1]) != 8 * n_samples:
                return None
            times = view[at : at + 8 * n_samples]
            at += 8 * n_samples
            last_ns = _last_time(times, n_samples, start_ns)
            if last_ns is None:
                return None
        crc = _CRC.fullmatch(payload, at)
        if crc is None:
            return None
        checksum = zlib.crc32(samples) if times is None else zlib.crc32(times, zlib.crc32(samples))
        if checksum != _integer(crc[1]):
            return None
        step_ns = NS_PER_S / spec.rate_hz  # as in Chunk.end_ns
        end_ns = start_ns + round(n_samples * step_ns) if last_ns is None else last_ns + round(step_ns)
        clock = (source, offset_ns, uncertainty_ns, fields[6] == b"\xf5", boot_id, monotonic_ns)
        return StoredChunk(
            spec, epoch, seq, start_ns, end_ns, accepted_ns, clock, dtype, n_samples, samples, times, checksum
        )

    def _text(self, encoded: bytes) -> str | None:
        """A CBOR text of at most 80 bytes; None when it is none."""
        text = self._texts.get(encoded)
        if text is None:
            size = encoded[0] - 0x60 if encoded[0] < 0x78 else encoded[1] if len(encoded) > 1 else -1
            start = 1 if encoded[0] < 0x78 else 2
            if not 0x60 <= encoded[0] <= 0x78 or size != len(encoded) - start or size > 80:
                return None
            try:
                text = encoded[start:].decode()
            except UnicodeDecodeError:
                return None
            _remember(self._texts, encoded, text)
        return text


def _remember(cache: dict[K, V], key: K, value: V) -> None:
    if len(cache) >= CACHED_HEADS:
        cache.clear()
    cache[key] = value


def _is_head(head: bytes) -> bool:
    """Whether these bytes are a map's head and the whole entries "v", "spec", "epoch", then the key "seq"."""
    stream = io.BytesIO(head[1:])
    decode: Callable[[], Any] = cbor2.CBORDecoder(stream, max_depth=6, allow_indefinite=False).decode
    try:
        names = []
        for _ in range(3):
            names.append(decode())
            decode()
        return [*names, decode()] == ["v", "spec", "epoch", "seq"] and stream.read(1) == b""
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError, ArithmeticError, RecursionError):
        return False


def _integer(encoded: bytes) -> int:
    """A CBOR integer, or the length of a byte string, as the patterns above take them."""
    value = encoded[0] & 0x1F if len(encoded) == 1 else int.from_bytes(encoded[1:], "big")
    return -1 - value if 0x20 <= encoded[0] < 0x40 else value


def _last_time(times: memoryview, n_samples: int, start_ns: int) -> int | None:
    """The last sample's time; None when the times are not what a chunk may have."""
    if len(times) != 8 * n_samples:
        return None
    times_ns = np.frombuffer(times, "<i8")
    if np.any(np.diff(times_ns) < 0) or int(times_ns[0]) != start_ns:
        return None
    return int(times_ns[-1])
