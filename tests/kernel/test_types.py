from __future__ import annotations

import numpy as np
import pytest

from infomae_stream.clock import NS_PER_S, ManualClock
from infomae_stream.errors import DataError
from infomae_stream.types import Chunk, ClockQuality, StreamId, StreamSpec

SPEC = StreamSpec(
    StreamId("a", "n", "geophone"), "seismic", 100.0, ("EHZ",), ("m/s",), (400.0,), seed_id="AM.R1.00.EHZ"
)


@pytest.mark.parametrize("bad", ["", "A", "a/b", "ä", "x" * 49, "a b", "a\n"])
def test_ids_hold_nothing_that_a_topic_or_a_path_could_trip_over(bad: str) -> None:
    with pytest.raises(DataError, match="1 to 48"):
        StreamId(bad, "n", "s")


def test_a_stream_names_its_kind_as_modality_unless_told() -> None:
    assert SPEC.modality == "seismic"
    assert StreamSpec.from_dict(SPEC.to_dict()) == SPEC


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "smell"},
        {"rate_hz": 0},
        {"channels": []},
        {"sensitivity": [0]},
        {"units": []},
        {"rate_hz": "fast"},
        {"site": 1},
    ],
)
def test_a_stream_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(DataError):
        StreamSpec.from_dict({**SPEC.to_dict(), **change})


def chunk(samples_CN: np.ndarray, times_ns: np.ndarray | None = None, start_ns: int = 5 * NS_PER_S) -> Chunk:
    return Chunk(SPEC, "e", 0, start_ns, samples_CN, ClockQuality("system"), times_ns)


def test_counts_become_physical_values_and_times() -> None:
    c = chunk(np.array([[400, -800]], dtype=np.int32))
    assert c.physical_CN().tolist() == [[1.0, -2.0]]
    assert c.sample_times_ns().tolist() == [5 * NS_PER_S, 5 * NS_PER_S + 10_000_000]
    assert c.end_ns == 5 * NS_PER_S + 20_000_000


@pytest.mark.parametrize(
    ("samples_CN", "times_ns"),
    [
        (np.zeros((2, 3), np.int16), None),
        (np.zeros((1, 0), np.int16), None),
        (np.zeros(3, np.int16), None),
        (np.zeros((1, 3), np.complex64), None),
        (np.zeros((1, 2), np.int16), np.array([5 * NS_PER_S, 5 * NS_PER_S - 1])),
        (np.zeros((1, 2), np.int16), np.array([5 * NS_PER_S])),
        (np.zeros((1, 2), np.int16), np.array([1, 2])),
    ],
)
def test_a_chunk_that_exists_is_valid(samples_CN: np.ndarray, times_ns: np.ndarray | None) -> None:
    with pytest.raises(DataError):
        chunk(samples_CN, times_ns)


def test_a_manual_clock_moves_only_when_told_and_steps_leave_monotonic_time_alone() -> None:
    clock = ManualClock(0)
    clock.sleep(2)
    clock.step(-86400)
    assert (clock.now_ns(), clock.monotonic_ns()) == (-86398 * NS_PER_S, 2 * NS_PER_S)
