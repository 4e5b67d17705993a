"""Readings into chunks: cut, split at holes, backward times refused, positions that lose and double nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from collectors.chunker import RESTART_NS, Chunker, Piece
from collectors.sources import Position, Reading
from infomae_stream.types import StreamId, StreamSpec

MS = 1_000_000
T0 = 1_657_533_977_813 * MS
SPEC = StreamSpec(StreamId("s01", "s01-phone", "imu"), "imu", 100.0, ("x",), ("m/s2",), (1.0,))


def reading(
    times_ms: list[int] | NDArray[np.int64], offset: int = 0, cursor: str = "r1", ends: bool = False
) -> Reading:
    times_ns = T0 + np.asarray(times_ms, dtype=np.int64) * MS
    samples_CN = np.arange(offset, offset + len(times_ns), dtype=np.int16)[None]
    return Reading("imu", int(times_ns[0]), samples_CN, times_ns, cursor, offset, ends=ends)


def samples(pieces: list[Piece]) -> list[int]:
    return [int(v) for p in pieces for v in p.samples_CN[0]]


def test_chunks_are_a_second_long() -> None:
    chunker = Chunker(SPEC)
    pieces = chunker.push(reading(np.arange(0, 2500, 10), ends=True))
    assert [p.samples_CN.shape[1] for p in pieces] == [100, 100, 50]
    assert [p.position.offset for p in pieces] == [100, 200, 250]
    assert samples(pieces) == list(range(250))


def test_a_chunk_waits_for_the_second_to_be_over() -> None:
    chunker = Chunker(SPEC)
    assert chunker.push(reading(np.arange(0, 1000, 10))) == []
    (piece,) = chunker.push(reading([1000], offset=100))
    assert piece.samples_CN.shape == (1, 100)


def test_backward_samples_are_refused_and_counted_and_the_rest_goes_on() -> None:
    chunker = Chunker(SPEC)
    pieces = chunker.push(reading([0, 10, 20, 5, 15, 20, 30, 29, 40], ends=True))
    assert samples(pieces) == [0, 1, 2, 5, 6, 8]  # equal times stay
    assert chunker.refused_backward == 3
    assert all((np.diff(p.times_ns) >= 0).all() for p in pieces if p.times_ns is not None)


def test_a_clock_that_was_set_back_far_starts_anew() -> None:
    chunker = Chunker(SPEC)
    back_ms = RESTART_NS // MS + 5_000
    times = [back_ms, back_ms + 10, 0, 10, 20]
    pieces = chunker.push(reading(times, ends=True))
    assert samples(pieces) == [0, 1, 2, 3, 4] and len(pieces) == 2
    assert chunker.refused_backward == 0


def test_a_hole_splits_the_chunk_and_is_told() -> None:
    chunker = Chunker(SPEC, max_hole_s=0.1)
    pieces = chunker.push(reading([0, 10, 20, 220, 230], ends=True))
    assert [p.samples_CN.shape[1] for p in pieces] == [3, 2]
    assert [p.hole_ns for p in pieces] == [0, 200 * MS]


def test_the_silence_between_recordings_is_no_hole() -> None:
    chunker = Chunker(SPEC)
    first = chunker.push(reading([0, 10], ends=True))
    second = chunker.push(reading([60_000, 60_010], cursor="r2", ends=True))
    assert [p.hole_ns for p in first + second] == [0, 0]


def test_an_older_recording_may_follow_a_newer_one() -> None:
    chunker = Chunker(SPEC)
    chunker.push(reading([50_000, 50_010], ends=True))
    assert samples(chunker.push(reading([0, 10], cursor="r2", ends=True))) == [0, 1]
    assert chunker.refused_backward == 0


def test_exact_rates_need_no_times() -> None:
    chunker = Chunker(SPEC)
    pieces = []
    for k in range(5):
        part = np.arange(k * 50, k * 50 + 50, dtype=np.int16)[None]
        pieces += chunker.push(Reading("imu", T0 + k * 500 * MS, part, None, "", k * 50))
    pieces += chunker.flush()
    assert all(p.times_ns is None for p in pieces)
    assert [(p.start_ns - T0) // MS for p in pieces] == [0, 1000, 2000]
    assert samples(pieces) == list(range(250))


def test_refused_samples_are_refused_again_after_a_restart() -> None:
    first = Chunker(SPEC)
    (piece,) = [*first.push(reading([0, 10, 20], ends=False)), *first.flush()]
    again = Chunker(SPEC, position=piece.position)
    assert samples([*again.push(reading([15, 30], offset=3)), *again.flush()]) == [4]
    assert again.refused_backward == 1


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.integers(-40, 300), min_size=1, max_size=150),
    cuts=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    kill_after=st.integers(0, 5),
)
def test_a_restart_at_any_chunk_gives_the_same_samples(steps: list[int], cuts: list[int], kill_after: int) -> None:
    """Kill after some chunk was accepted, go on from its position: together they give what one run gives."""
    times = np.cumsum([0, *steps])

    def run(position: Position | None, most: int) -> list[Piece]:
        chunker = Chunker(SPEC, chunk_s=0.2, position=position)
        offset, pieces, k = (position.offset if position else 0), [], 0
        while offset < len(times) and len(pieces) < most:
            end = min(offset + cuts[k % len(cuts)], len(times))
            pieces += chunker.push(reading(times[offset:end], offset=offset, ends=end == len(times)))
            offset, k = end, k + 1
        return pieces[:most]

    whole = run(None, 10**6)
    first = run(None, kill_after)
    rest = run(first[-1].position if first else None, 10**6)
    assert samples(first) + samples(rest) == samples(whole)
    assert all(p.position.offset <= len(times) for p in whole)


@pytest.mark.parametrize("times", [[0], [0, 0, 0]])
def test_tiny_recordings_make_a_chunk(times: list[int]) -> None:
    pieces = Chunker(SPEC).push(reading(times, ends=True))
    assert samples(pieces) == list(range(len(times)))
