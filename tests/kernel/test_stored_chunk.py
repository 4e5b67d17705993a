"""The hub's fast decoder takes what `decode_chunk` takes, with the same meaning, and nothing else."""

from __future__ import annotations

import zlib
from dataclasses import astuple, replace
from typing import Any

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import infomae_stream.stored_chunk as module
from infomae_stream.errors import WireError
from infomae_stream.stored_chunk import StoredChunk, StoredChunkDecoder, stored_chunk
from infomae_stream.types import Chunk, ClockQuality, StreamId, StreamSpec
from infomae_stream.wire import MAX_MESSAGE_BYTES, decode_chunk, encode_chunk

START_NS = 1_657_533_977_813_000_000
NUMBERS = st.one_of(st.integers(-30, 30), st.integers(-70_000, 70_000), st.integers(-(2**62) + 1, 2**62 - 1))
NATURALS = NUMBERS.map(abs)
# What the layout of a message is made of may stand in its texts too.
TEXTS = st.one_of(st.text(max_size=30), st.sampled_from(["", "cseq", "\u00e9" * 40, "x" * 80, "ioffset_ns", "crc32"]))


def said(chunk: StoredChunk) -> tuple[Any, ...]:
    plain = replace(chunk, samples=bytes(chunk.samples), times=None if chunk.times is None else bytes(chunk.times))
    return astuple(plain)


def outcome(decode: Any, payload: bytes) -> tuple[Any, ...]:
    try:
        return said(decode(payload))
    except WireError as e:
        return (e.reason,)


def slowly(payload: bytes) -> StoredChunk:
    return stored_chunk(decode_chunk(payload))


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    n_channels, n = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 7, 30, 300]))
    text = draw(st.sampled_from(["p", "cseq", "a b"]))
    spec = StreamSpec(
        StreamId("s01", draw(st.sampled_from(["n1", "a-long-name"])), "mic"),
        "acoustic",
        draw(st.sampled_from([8000.0, 100.0, 3.7])),
        (text,) * n_channels,
        ("Pa",) * n_channels,
        (1000.0,) * n_channels,
    )
    samples = (
        np.random.default_rng(n)
        .integers(-100, 100, (n_channels, n))
        .astype(draw(st.sampled_from(["int16", "int32", "float32", "float64"])))
    )
    start_ns = draw(NATURALS)
    times_ns = None
    if draw(st.booleans()) and start_ns < 2**61:
        times_ns = start_ns + np.arange(n, dtype=np.int64) * 1000
    clock = ClockQuality(draw(TEXTS), draw(NUMBERS), draw(NUMBERS), draw(st.booleans()), draw(TEXTS), draw(NUMBERS))
    epoch = draw(st.sampled_from(["e1", "cseq", "0b5e8a30"]))
    return Chunk(spec, epoch, draw(NATURALS), start_ns, samples, clock, times_ns, draw(NUMBERS))


@st.composite
def damages(draw: st.DrawFn, payload: bytes) -> bytes:
    """The payload as it is, or with some bytes changed, taken out or put in: at its ends, where the fields are."""
    at = draw(st.one_of(st.integers(0, 500), st.integers(-40, -1), st.integers(0, 10_000))) % len(payload)
    how = draw(st.sampled_from(["none", "none", "flip", "set", "cut", "insert", "drop", "append"]))
    if how in ("flip", "set"):
        value = payload[at] ^ 1 << draw(st.integers(0, 7)) if how == "flip" else draw(st.integers(0, 255))
        return payload[:at] + bytes([value]) + payload[at + 1 :]
    return {
        "none": payload,
        "cut": payload[:at],
        "insert": payload[:at] + draw(st.binary(min_size=1, max_size=9)) + payload[at:],
        "drop": payload[:at] + payload[at + draw(st.integers(1, 9)) :],
        "append": payload + draw(st.binary(min_size=1, max_size=3)),
    }[how]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_both_decoders_agree_on_every_message(data: st.DataObject) -> None:
    decoder = StoredChunkDecoder()
    first = data.draw(chunks())
    # Three of the same stream, so that every short cut is taken; then another of it, perhaps damaged.
    for seq in range(3):
        payload = encode_chunk(replace(first, seq=(first.seq + seq) % 2**62))
        assert said(decoder.decode(payload, "t")) == said(slowly(payload))
    later = replace(first, seq=data.draw(NATURALS), accepted_ns=data.draw(NUMBERS))
    if first.times_ns is None:
        later = replace(later, start_ns=data.draw(NATURALS))
    for _ in range(5):
        payload = data.draw(damages(encode_chunk(later)))
        assert outcome(lambda p: decoder.decode(p, "t"), payload) == outcome(slowly, payload)


def usual(seq: int, /, **changes: Any) -> bytes:
    spec = StreamSpec(StreamId("s01", "n1", "mic"), "acoustic", 8000.0, ("p",), ("Pa",), (1000.0,))
    clock = ClockQuality("chrony", -12_000, 250_000, True, "boot", 10**14 + seq)
    samples = np.arange(8000, dtype=np.int16).reshape(1, -1)
    chunk = Chunk(spec, "e1", seq, START_NS + seq * 10**9, samples, clock, accepted_ns=START_NS + seq)
    return cbor2.dumps({**cbor2.loads(encode_chunk(chunk)), **changes}) if changes else encode_chunk(chunk)


def test_the_third_message_of_a_stream_takes_the_short_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = StoredChunkDecoder()
    for seq in (70_000, 70_001):
        decoder.decode(usual(seq), "t")

    class Refusing:
        def match(self, payload: bytes) -> None:
            raise AssertionError("read in full")

    with monkeypatch.context() as m:
        m.setattr(module, "_HEAD", Refusing())
        assert said(decoder.decode(usual(70_002), "t")) == said(slowly(usual(70_002)))


@pytest.mark.parametrize(
    "changes",
    [
        {"crc32": 5},
        {"crc32": 2**31 + 1},
        {"seq": 2**62},
        {"seq": -70_000},
        {"start_ns": 2**62 + 1},
        {"accepted_ns": 2**63},
        {"epoch": "e2"},
        {"epoch": ""},
        {"v": 2},
        {"samples": cbor2.CBORTag(40, [[2, 4000], cbor2.CBORTag(77, bytes(16_000))])},
        {"samples": cbor2.CBORTag(40, [[1, 8000], cbor2.CBORTag(78, bytes(16_000))])},
        {"times_ns": cbor2.CBORTag(79, bytes(64_000))},
    ],
)
def test_a_wrong_field_is_refused_for_the_same_reason_on_the_short_cut(changes: dict[str, Any]) -> None:
    decoder = StoredChunkDecoder()
    for seq in (70_000, 70_001, 70_002):
        decoder.decode(usual(seq), "t")
    payload = usual(70_003, **changes)
    assert outcome(lambda p: decoder.decode(p, "t"), payload) == outcome(slowly, payload)


def timed(seq: int, times_ns: np.ndarray) -> bytes:
    """A chunk of four samples with their times, and a checksum that agrees with them."""
    spec = StreamSpec(StreamId("s01", "n1", "imu"), "imu", 100.0, ("x",), ("g",), (1.0,))
    samples, start_ns = np.arange(4, dtype=np.int16).reshape(1, -1), START_NS + seq * 10**9
    ascending = start_ns + np.arange(4, dtype=np.int64)
    chunk = Chunk(spec, "e1", seq, start_ns, samples, ClockQuality("chrony", 0, 1, True, "boot", 5), ascending)
    given = (start_ns + times_ns).astype("<i8")
    fields = cbor2.loads(encode_chunk(chunk))
    fields["times_ns"] = cbor2.CBORTag(79, given.tobytes())
    fields["crc32"] = zlib.crc32(given.tobytes(), zlib.crc32(samples.tobytes()))
    return cbor2.dumps(fields)


@pytest.mark.parametrize("times", [[0, 2, 1, 3], [0, -1, 2, 3], [0, 1, 2, 1], [1, 2, 3, 4]])
def test_times_that_run_backward_or_begin_elsewhere_are_refused_with_a_good_checksum(times: list[int]) -> None:
    decoder = StoredChunkDecoder()
    good = np.array([0, 5, 5, 9])
    for seq in (70_000, 70_001, 70_002):  # the first teaches the description, which later ones are read by
        assert said(decoder.decode(timed(seq, good), "t")) == said(slowly(timed(seq, good)))
    for _ in range(2):
        with pytest.raises(WireError) as e:
            decoder.decode(timed(70_003, np.array(times)), "t")
        assert e.value.reason == "schema"


def test_a_message_that_is_too_large_is_refused_by_its_size() -> None:
    decoder = StoredChunkDecoder()
    with pytest.raises(WireError) as e:
        decoder.decode(usual(70_000) + bytes(MAX_MESSAGE_BYTES), "t")
    assert e.value.reason == "size"


def test_what_it_remembers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHED_HEADS", 10)
    decoder = StoredChunkDecoder()
    for i in range(100):
        payload = usual(70_000 + i, epoch=f"epoch-{i}")
        for _ in range(2):
            decoder.decode(payload, f"topic-{i}")
    assert all(len(cache) <= 10 for cache in (decoder._heads, decoder._texts, decoder._layouts))
