from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aligner.matcher import Matcher, windows_of
from aligner.pairing import REASONS
from infomae_stream.clock import NS_PER_S, ManualClock
from infomae_stream.hub_config import MatcherSettings
from infomae_stream.types import Chunk, ClockQuality, Pair
from infomae_stream.windower import Grid
from storage import query
from storage.lake import Lake
from tests.recordings import GOOD_CLOCK, T0, recording

SETTINGS = MatcherSettings(modalities=["phone_imu", "watch_imu"])
GRID = Grid(window_s=2.0, hop_s=0.5, max_gap_s=0.2)


def matched(lake: Lake, state: Path) -> list[Pair]:
    Matcher(SETTINGS, state).update(lake)
    return query.read_pairs(lake)


def reasons(pairs: list[Pair]) -> set[str]:
    return {p.reason for p in pairs}


def test_windows_worn_at_once_become_pairs_at_the_same_grid_start(lake: Lake, tmp_path: Path) -> None:
    lake.append_chunks(recording("s01", "phone", 0, 10) + recording("s01", "watch", 4, 12, seed=1), 0)
    paired = [p for p in matched(lake, tmp_path / "m.json") if p.paired]
    assert [(p.start_ns - T0) / NS_PER_S for p in paired] == [4 + k / 2 for k in range(9)]
    assert {p.modalities for p in paired} == {("phone_imu", "watch_imu")}
    assert {str(s) for p in paired for s in p.streams} == {"s01/s01-phone/imu", "s01/s01-watch/imu"}
    assert {p.uncertainty_ns for p in paired} == {2_000_000}


def test_people_do_not_pair_with_each_other_and_lone_windows_are_counted(lake: Lake, tmp_path: Path) -> None:
    lake.append_chunks(recording("s01", "phone", 0, 10) + recording("s02", "watch", 0, 10), 0)
    tick = Matcher(SETTINGS, tmp_path / "m.json").update(lake)
    # 3 windows lie half before the first sample: touched, so counted; the tail is not finished.
    assert tick.windows == {"phone_imu": 20, "watch_imu": 20}
    assert tick.no_partner == 40 and tick.candidates == 0
    assert query.read_pairs(lake) == []


@pytest.mark.parametrize(
    ("clock", "reason"),
    [
        (replace(GOOD_CLOCK, synchronised=False, offset_ns=180_000_000), "clock_unsynchronised"),
        (replace(GOOD_CLOCK, uncertainty_ns=60_000_000), "clock_uncertainty"),
        (replace(GOOD_CLOCK, offset_ns=180_000_000), "clock_offset"),
    ],
)
def test_a_clock_that_cannot_be_trusted_refuses_every_window(
    lake: Lake, tmp_path: Path, clock: ClockQuality, reason: str
) -> None:
    lake.append_chunks(recording("s08", "phone", 0, 8) + recording("s08", "watch", 0, 8, clock), 0)
    pairs = matched(lake, tmp_path / "m.json")
    assert pairs and reasons(pairs) == {reason}


def test_the_same_offset_on_both_clocks_is_no_offset_between_them(lake: Lake, tmp_path: Path) -> None:
    both = replace(GOOD_CLOCK, offset_ns=180_000_000)
    lake.append_chunks(recording("s01", "phone", 0, 8, both) + recording("s01", "watch", 0, 8, both), 0)
    assert any(p.paired and p.lag_ns == 0 for p in matched(lake, tmp_path / "m.json"))


def test_a_stuck_axis_refuses_and_the_clock_is_named_first(lake: Lake, tmp_path: Path) -> None:
    unsynchronised = replace(GOOD_CLOCK, synchronised=False)
    lake.append_chunks(recording("s01", "phone", 0, 8) + recording("s01", "watch", 0, 8, still_axis=4), 0)
    lake.append_chunks(recording("s02", "phone", 0, 8), 0)
    lake.append_chunks(recording("s02", "watch", 0, 8, unsynchronised, still_axis=4), 0)
    pairs = matched(lake, tmp_path / "m.json")
    whole = [p for p in pairs if p.site == "s01" and p.coverage == 1.0]
    assert reasons(whole) == {"flatline"}
    assert reasons([p for p in pairs if p.site == "s02"]) == {"clock_unsynchronised"}


def test_a_jump_between_wall_and_monotonic_time_refuses_its_windows(lake: Lake, tmp_path: Path) -> None:
    def timed(second: int, extra_ns: int) -> ClockQuality:
        return replace(GOOD_CLOCK, boot_id="b", monotonic_ns=(second + 1) * NS_PER_S + extra_ns)

    watch = [replace(c, clock=timed(c.seq, 400_000_000 if c.seq >= 5 else 0)) for c in recording("s01", "watch", 0, 10)]
    lake.append_chunks(recording("s01", "phone", 0, 10) + watch, 0)
    jumped = {(p.start_ns - T0) / NS_PER_S for p in matched(lake, tmp_path / "m.json") if p.reason == "clock_jump"}
    assert jumped == {3.5, 4.0, 4.5}


def test_too_little_data_refuses_for_coverage(lake: Lake, tmp_path: Path) -> None:
    watch = [c for c in recording("s01", "watch", 0, 10) if c.seq != 5]
    lake.append_chunks(recording("s01", "phone", 0, 10) + watch, 0)
    by_start = {(p.start_ns - T0) / NS_PER_S: p for p in matched(lake, tmp_path / "m.json")}
    assert by_start[4.0].reason == "coverage" and 0.4 < by_start[4.0].coverage < 0.6
    assert by_start[3.0].paired and by_start[6.0].paired


def test_a_late_chunk_reopens_its_windows(lake: Lake, tmp_path: Path) -> None:
    watch = recording("s01", "watch", 0, 10)
    lake.append_chunks(recording("s01", "phone", 0, 10) + [c for c in watch if c.seq != 5], 0)
    matcher = Matcher(SETTINGS, tmp_path / "m.json")
    matcher.update(lake)
    assert {p.reason for p in query.read_pairs(lake) if p.start_ns == T0 + 4 * NS_PER_S} == {"coverage"}
    lake.append_chunks([c for c in watch if c.seq == 5], 0)
    tick = matcher.update(lake)
    assert tick.changed and tick.candidates < 15
    assert {p.reason for p in query.read_pairs(lake) if p.start_ns == T0 + 4 * NS_PER_S} == {""}


def test_running_again_changes_nothing_even_without_its_state(lake: Lake, tmp_path: Path) -> None:
    lake.append_chunks(recording("s01", "phone", 0, 10) + recording("s01", "watch", 4, 12), 0)
    first = Matcher(SETTINGS, tmp_path / "m.json").update(lake)
    version = lake.version("pairs")
    again = Matcher(SETTINGS, tmp_path / "m.json").update(lake)
    from_scratch = Matcher(SETTINGS, tmp_path / "other.json").update(lake)
    assert lake.version("pairs") == version
    assert not again.changed and not from_scratch.changed
    assert again.candidates == again.new_ranges == 0  # it knew how far it had come
    assert from_scratch.candidates == first.candidates > 0
    assert first.windows == again.windows == from_scratch.windows
    assert first.no_partner == again.no_partner == from_scratch.no_partner


def test_a_window_is_finished_by_whatever_comes_after_it(lake: Lake, tmp_path: Path) -> None:
    lake.append_chunks(recording("s01", "phone", 0, 9) + recording("s01", "watch", 0, 20), 0)
    matcher = Matcher(SETTINGS, tmp_path / "m.json")
    matcher.update(lake)
    lake.append_chunks(recording("s01", "phone", 14, 20), 0)
    matcher.update(lake)
    incremental = query.read_pairs(lake)
    assert {(p.start_ns - T0) / NS_PER_S for p in incremental} >= {7.5, 8.0, 8.5}
    assert matched(lake, tmp_path / "other.json") == incremental
    assert lake.version("pairs") == 2


def test_reopened_windows_see_samples_just_outside_of_them(lake: Lake, tmp_path: Path) -> None:
    phone = [trimmed(c, 5, 95) for c in recording("s01", "phone", 0, 8)]  # bridged holes at every full second
    watch = recording("s01", "watch", 0, 8)
    lake.append_chunks(phone + [c for c in watch if c.seq != 3], 0)
    matcher = Matcher(SETTINGS, tmp_path / "m.json")
    matcher.update(lake)
    lake.append_chunks([c for c in watch if c.seq == 3], 0)
    matcher.update(lake)
    together = Lake(tmp_path / "together", ManualClock())
    together.append_chunks(phone + watch, 0)
    assert query.read_pairs(lake) == matched(together, tmp_path / "other.json")


def test_a_window_does_not_depend_on_what_lies_far_away() -> None:
    start_ns = T0 + 20 * NS_PER_S
    late = [replace(c, start_ns=c.start_ns + 5_000_000) for c in recording("s01", "phone", 21, 24)]
    alone = windows_of(late, GRID, start_ns, start_ns + 10 * NS_PER_S)
    beside = windows_of(recording("s01", "phone", 0, 5) + late, GRID, start_ns, start_ns + 10 * NS_PER_S)
    assert [(w.start_ns, w.coverage) for w in alone] == [(w.start_ns, w.coverage) for w in beside]
    for a, b in zip(alone, beside, strict=True):
        np.testing.assert_array_equal(a.x_CN, b.x_CN)


def trimmed(chunk: Chunk, first: int, end: int) -> Chunk:
    start_ns = chunk.start_ns + first * 10_000_000
    return replace(chunk, start_ns=start_ns, samples_CN=chunk.samples_CN[:, first:end])


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1))
def test_any_order_of_arrival_ends_in_the_same_rows_and_counts(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    rng = random.Random(seed)
    chunks = [
        *recording("s01", "phone", 0, 9),
        *recording("s01", "phone", 14, 20),
        *recording("s01", "watch", 2, 12, replace(GOOD_CLOCK, uncertainty_ns=rng.choice([10**6, 60 * 10**6]))),
        *recording("s02", "watch", 15, 20),
        *recording("s02", "phone", 16, 18),
    ]
    chunks = [c for c in chunks if rng.random() > 0.15]
    together = Lake(tmp_path_factory.mktemp("a"), ManualClock())
    together.append_chunks(chunks, 0)
    want = Matcher(SETTINGS, together.path / "m.json").update(together)

    rng.shuffle(chunks)
    piecewise, state = Lake(tmp_path_factory.mktemp("b"), ManualClock()), tmp_path_factory.mktemp("c") / "m.json"
    matcher = Matcher(SETTINGS, state)
    while chunks:
        taken = rng.randint(1, 8)
        piecewise.append_chunks(chunks[:taken], 0)
        chunks = chunks[taken:]
        if rng.random() < 0.5:
            got = matcher.update(piecewise)
        if rng.random() < 0.2:
            matcher = Matcher(SETTINGS, state)  # killed and started again
    got = matcher.update(piecewise)
    assert query.read_pairs(piecewise) == query.read_pairs(together)
    assert (got.windows, got.no_partner) == (want.windows, want.no_partner)


def test_every_reason_in_the_lake_is_of_the_closed_set(lake: Lake, tmp_path: Path) -> None:
    lake.append_chunks(recording("s01", "phone", 0, 8) + recording("s01", "watch", 3, 9, still_axis=0), 0)
    assert reasons(matched(lake, tmp_path / "m.json")) <= {"", *REASONS}
