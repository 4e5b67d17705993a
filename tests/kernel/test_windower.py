from __future__ import annotations

import numpy as np
import pytest

from infomae_stream.clock import NS_PER_S
from infomae_stream.types import Chunk, ClockQuality, StreamId, StreamSpec
from infomae_stream.windower import Grid, Windower, cut_windows

T0 = 1_657_533_978 * NS_PER_S
GRID = Grid(window_s=2.0, hop_s=0.5, max_gap_s=0.2)
CLOCK = ClockQuality("declared", synchronised=True, uncertainty_ns=1_000_000)


def spec(rate_hz: float = 100.0, channels: int = 1) -> StreamSpec:
    return StreamSpec(
        StreamId("a", "n", "s"), "imu", rate_hz, ("x",) * channels, ("m/s2",) * channels, (10.0,) * channels
    )


def chunks(t_s: np.ndarray, x: np.ndarray, *, clock: ClockQuality = CLOCK) -> list[Chunk]:
    """One chunk a second of irregular samples."""
    times_ns = T0 + np.round(t_s * NS_PER_S).astype(np.int64)
    out = []
    for second in np.unique(np.floor(t_s)):
        pick = np.floor(t_s) == second
        out.append(Chunk(spec(), "e", len(out), int(times_ns[pick][0]), x[None, pick], clock, times_ns[pick]))
    return out


def ramp(seconds: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    t_s = np.arange(0, seconds, 0.01)
    return t_s, np.round(t_s * 1000).astype(np.int16)


def test_jittery_samples_come_out_on_the_grid_in_physical_units() -> None:
    rng = np.random.default_rng(0)
    t_s = np.sort(np.arange(0, 6, 0.01) + rng.uniform(-0.004, 0.004, 600).clip(0))
    windows = cut_windows(chunks(t_s, np.round(t_s * 1000).astype(np.int16)), GRID, T0, T0 + 4 * NS_PER_S)
    assert [w.start_ns for w in windows] == [T0 + k * NS_PER_S // 2 for k in range(8)]
    for w in windows:
        expected = (
            (w.start_ns - T0) / NS_PER_S + np.arange(200) / 100
        ) * 100  # 1000 counts a second / 10 counts a unit
        np.testing.assert_allclose(w.x_CN[0], expected, atol=0.2)
        assert w.coverage == 1.0 and not w.flags


def test_a_hole_lowers_coverage_by_its_length_and_is_flagged() -> None:
    t_s, x = ramp()
    keep = (t_s < 2.0) | (t_s >= 2.5)
    (w,) = cut_windows(chunks(t_s[keep], x[keep]), GRID, T0 + NS_PER_S, T0 + NS_PER_S + 1)
    assert w.flags == {"gap"}
    assert w.coverage == pytest.approx(0.75, abs=0.011)


def test_the_windower_gives_each_window_once_and_the_same_as_the_cut() -> None:
    t_s, x = ramp(8.0)
    all_chunks = chunks(t_s, x)
    windower = Windower(spec(), GRID)
    given = [w for c in all_chunks for w in windower.push(c)]
    whole = cut_windows(all_chunks, GRID, 0, T0 + 6 * NS_PER_S + 1)
    assert [w.start_ns for w in given] == [w.start_ns for w in whole]
    for a, b in zip(given, whole, strict=True):
        np.testing.assert_array_equal(a.x_CN, b.x_CN)
        assert a.coverage == b.coverage


def test_an_hour_of_silence_makes_no_windows() -> None:
    t_s, x = ramp(3.0)
    later_s = t_s + 3600
    got = cut_windows(chunks(np.concatenate([t_s, later_s]), np.concatenate([x, x])), GRID, 0, T0 + 4000 * NS_PER_S)
    assert len(got) < 20


def test_a_clock_that_steps_back_a_day_does_not_silence_the_stream() -> None:
    t_s, x = ramp(5.0)
    windower = Windower(spec(), GRID)
    for c in chunks(t_s + 86400, x):
        windower.push(c)
    assert [w for c in chunks(t_s, x) for w in windower.push(c)]


def test_flags_for_clipping_flatline_and_clock_jump() -> None:
    t_s, x = ramp(2.0)
    x_clipped = x.copy()
    x_clipped[50] = np.iinfo(np.int16).max
    assert "clipped" in cut_windows(chunks(t_s, x_clipped), GRID, T0, T0 + 1)[0].flags
    assert "flatline" in cut_windows(chunks(t_s, np.zeros_like(x)), GRID, T0, T0 + 1)[0].flags
    a, b = chunks(t_s, x)
    for jump_ns, flagged in ((0, False), (200_000_000, True)):
        jumped = [
            Chunk(
                c.spec,
                c.epoch,
                c.seq,
                c.start_ns,
                c.samples_CN,
                ClockQuality("chrony", 0, 0, True, "boot", 1 + c.start_ns - T0 - i * jump_ns),
                c.times_ns,
            )
            for i, c in enumerate((a, b))
        ]
        assert ("clock_jump" in cut_windows(jumped, GRID, T0, T0 + 1)[0].flags) is flagged


def test_the_worst_clock_of_its_chunks_is_the_windows() -> None:
    t_s, x = ramp(2.0)
    good, bad = chunks(t_s, x)
    bad = Chunk(
        bad.spec, "e", 1, bad.start_ns, bad.samples_CN, ClockQuality("chrony", 180_000_000, 5, False), bad.times_ns
    )
    clock = cut_windows([good, bad], GRID, T0, T0 + 1)[0].clock
    assert (clock.synchronised, clock.offset_ns, clock.uncertainty_ns) == (False, 180_000_000, 1_000_000)
