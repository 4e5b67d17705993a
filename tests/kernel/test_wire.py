from __future__ import annotations

import itertools
from dataclasses import replace

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infomae_stream.errors import WireError
from infomae_stream.topics import node_topic, parse_topic, stream_topic
from infomae_stream.types import Chunk, ClockQuality, Detection, Gap, StreamId, StreamSpec
from infomae_stream.wire import (
    MAX_MESSAGE_BYTES,
    REASONS,
    Ack,
    decode_ack,
    decode_chunk,
    decode_detection,
    decode_gap,
    encode_ack,
    encode_chunk,
    encode_detection,
    encode_gap,
    seq_ranges,
)

SPEC = StreamSpec(StreamId("s01", "s01-phone", "imu"), "imu", 100.0, ("x", "y"), ("m/s2", "m/s2"), (100.0, 50.0))


def chunk(dtype: str = "int16", irregular: bool = True) -> Chunk:
    samples_CN = np.arange(20, dtype=dtype).reshape(2, 10)
    times_ns = np.int64(1_657_533_977_813_000_000) + np.arange(10, dtype=np.int64) * 10_000_000
    clock = ClockQuality("chrony", -5, 1_000, True, "boot", 77)
    return Chunk(SPEC, "e0", 7, int(times_ns[0]), samples_CN, clock, times_ns if irregular else None, 99)


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("irregular", [True, False])
def test_a_chunk_comes_back_as_it_went(dtype: str, irregular: bool) -> None:
    sent = chunk(dtype, irregular)
    got = decode_chunk(encode_chunk(sent))
    np.testing.assert_array_equal(got.samples_CN, sent.samples_CN)
    assert got.samples_CN.dtype == sent.samples_CN.dtype
    assert (got.spec, got.epoch, got.seq, got.start_ns, got.clock, got.accepted_ns, got.end_ns) == (
        sent.spec, sent.epoch, sent.seq, sent.start_ns, sent.clock, sent.accepted_ns, sent.end_ns,
    )  # fmt: skip


def test_any_cbor_reader_finds_rfc_8746_arrays() -> None:
    message = cbor2.loads(encode_chunk(chunk()))
    assert message["samples"].tag == 40
    (dimensions, typed) = message["samples"].value
    assert (list(dimensions), typed.tag) == ([2, 10], 77)
    assert np.frombuffer(typed.value, "<i2").tolist() == list(range(20))


def test_one_flipped_sample_is_a_crc_refusal() -> None:
    payload = bytearray(encode_chunk(chunk()))
    at = payload.find(np.arange(20, dtype="<i2").tobytes()) + 4
    payload[at] ^= 1
    with pytest.raises(WireError) as e:
        decode_chunk(bytes(payload))
    assert e.value.reason == "crc"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"v": 2}, "schema"),
        ({"seq": -1}, "schema"),
        ({"seq": 1.5}, "schema"),
        ({"spec": {}}, "schema"),
        ({"epoch": ""}, "schema"),
        ({"samples": cbor2.CBORTag(40, [[2, 2**40], cbor2.CBORTag(77, b"")])}, "schema"),
        ({"samples": cbor2.CBORTag(40, [[2, 10], cbor2.CBORTag(77, b"\0" * 38)])}, "schema"),
        ({"samples": "text"}, "schema"),
        ({"times_ns": cbor2.CBORTag(79, np.arange(10, 0, -1, dtype="<i8").tobytes())}, "schema"),
    ],
)
def test_a_broken_field_is_refused_with_its_reason(change: dict[str, object], reason: str) -> None:
    message = {**cbor2.loads(encode_chunk(chunk())), **change}
    with pytest.raises(WireError) as e:
        decode_chunk(cbor2.dumps(message))
    assert e.value.reason == reason


def test_size_is_checked_before_decoding() -> None:
    for decode in (decode_chunk, decode_gap, decode_ack, decode_detection):
        with pytest.raises(WireError) as e:
            decode(b"\0" * (MAX_MESSAGE_BYTES + 1))
        assert e.value.reason == "size"


def test_a_claimed_length_allocates_nothing() -> None:
    for head in (b"\x9b", b"\x5b", b"\xbb", b"\x7b"):  # arrays, bytes, maps, text of 2^40 entries
        with pytest.raises(WireError):
            decode_chunk(head + (2**40).to_bytes(8, "big"))


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_refused_and_never_crashes(payload: bytes) -> None:
    for decode in (decode_chunk, decode_gap, decode_ack, decode_detection):
        with pytest.raises(WireError) as e:
            decode(payload)
        assert e.value.reason in REASONS


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2000), st.integers(1, 255))
def test_a_damaged_chunk_is_refused_or_keeps_its_samples(at: int, flip: int) -> None:
    payload = bytearray(encode_chunk(chunk()))
    payload[at % len(payload)] ^= flip
    try:
        got = decode_chunk(bytes(payload))
    except WireError:
        return
    np.testing.assert_array_equal(got.samples_CN, chunk().samples_CN)


def test_gap_ack_and_detection_come_back_as_they_went() -> None:
    gap = Gap(SPEC.id, "e0", 3, 10, 20, "source_gap", 5)
    assert decode_gap(encode_gap(gap)) == gap
    ack = Ack("e0", ((1, 3), (7, 7)), ((4, 4, "crc"),))
    assert decode_ack(encode_ack(ack)) == ack
    summed = replace(ack, sums=(5, 2**32 - 1))
    assert decode_ack(encode_ack(summed)) == summed
    for bad in ((5,), (5, 2**32), (5, -1)):
        with pytest.raises(WireError, match="sums"):
            decode_ack(encode_ack(replace(ack, sums=bad)))
    d = Detection("s01", "n", "e0", 9, 1, 2, "walking", {"walking": 0.75, "seated": 0.25}, ("phone_imu",), 3, "ab")
    assert decode_detection(encode_detection(d)) == d
    with pytest.raises(WireError):
        decode_detection(encode_detection(replace(d, scores={"walking": float("nan"), "seated": 0.5})))


@given(st.lists(st.integers(0, 60)))
def test_ranges_hold_exactly_their_numbers(seqs: list[int]) -> None:
    ranges = seq_ranges(seqs)
    assert [s for a, b in ranges for s in range(a, b + 1)] == sorted(set(seqs))
    assert all(b1 + 1 < a2 for (_, b1), (a2, _) in itertools.pairwise(ranges))


def test_topics_come_back_as_they_went_and_foreign_ones_are_refused() -> None:
    assert parse_topic(stream_topic("a", "b", "c", "chunk")).stream == "c"
    assert parse_topic(node_topic("a", "b", "bundle/desired")).leaf == "bundle/desired"
    for bad in (
        "",
        "infomae/v1/a",
        "infomae/v1/a/b/c",
        "infomae/v1/A/b/ack",
        "infomae/v1/a/b/../chunk",
        "x/v1/a/b/ack",
    ):
        with pytest.raises(WireError) as e:
            parse_topic(bad)
        assert e.value.reason == "topic"
