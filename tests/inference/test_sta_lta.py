"""The recursive averages against the slow obvious form and against obspy's, and the switch against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from inference.signal_power import SignalPower, recursive_average
from inference.triggers.sta_lta import StaLtaOptions, StaLtaTrigger, sta_lta

S = 10**9


def slow_average(x_N: NDArray[np.float64], n: float, before: float) -> NDArray[np.float64]:
    y = []
    for x in x_N:
        before = x / n + (1 - 1 / n) * before
        y.append(before)
    return np.array(y)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 3000), st.floats(1.5, 1e4), st.floats(0, 1e6), st.integers(0, 5))
def test_the_recursive_average_is_its_definition(size: int, n: float, before: float, seed: int) -> None:
    x_N = np.random.default_rng(seed).exponential(size=size) * 10.0 ** (seed - 2)
    np.testing.assert_allclose(recursive_average(x_N, n, before), slow_average(x_N, n, before), rtol=1e-9)


def test_the_ratio_is_that_of_obspy() -> None:
    trigger = pytest.importorskip("obspy.signal.trigger")
    x_N = np.random.default_rng(0).normal(size=6000)
    x_N[4000:4200] *= 8
    n_sta, n_lta = 50, 1000
    # obspy begins both averages with its second sample.
    short_N, long_N = sta_lta(np.square(x_N[1:]), n_sta, n_lta, 0.0, 0.0)
    want_N = trigger.recursive_sta_lta(x_N, n_sta, n_lta)[1:]
    np.testing.assert_allclose((short_N / long_N)[n_lta:], want_N[n_lta:], rtol=1e-6)


def slow_awake(x_N: NDArray[np.float32], options: StaLtaOptions, rate_hz: float, windows: list[int]) -> list[bool]:
    """Sample by sample, over the whole signal at once; windows of 200 samples that start at `windows`."""
    n_sta, n_lta = options.sta_s * rate_hz, options.lta_s * rate_hz
    sta = lta = 0.0
    on, was_on = False, []
    for x in x_N.astype(np.float64):
        sta, lta = x * x / n_sta + (1 - 1 / n_sta) * sta, x * x / n_lta + (1 - 1 / n_lta) * lta
        on = sta / lta >= options.on or (on and sta / lta >= options.off)
        was_on.append(on)
    return [first + 200 < n_lta or any(was_on[first : first + 200]) for first in windows]


@pytest.mark.parametrize("seed", range(4))
def test_windows_wake_it_as_the_slow_form_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x_N = rng.normal(size=8000).astype(np.float32)
    for first in rng.integers(2000, 7500, 6):
        x_N[first : first + 150] *= rng.uniform(2, 6)
    options = StaLtaOptions(sta_s=0.4, lta_s=8.0, on=2.5, off=1.2, corner_hz=0)
    windows = list(range(0, 7801, 50))
    trigger = StaLtaTrigger(options, 100.0)
    got = [trigger.awake(first * S // 100, x_N[None, first : first + 200]) for first in windows]
    want = slow_awake(x_N, options, 100.0, windows)
    assert got == want
    assert 20 < sum(want) < len(want) - 20, "both occur"


def test_power_is_without_offset_and_each_sample_comes_once() -> None:
    t_N = np.arange(3000) / 100.0
    x_N = (50 + np.sin(2 * np.pi * 10 * t_N)).astype(np.float32)
    power = SignalPower(100.0, 0.5)
    pieces, begins = [], []
    for first in range(0, 2801, 50):
        power_M, first_ns, anew = power.take(first * S // 100, x_N[None, first : first + 200])
        assert first_ns == (first if anew else first + 150) * S // 100
        pieces.append(power_M)
        begins.append(anew)
    assert begins == [True] + [False] * 56
    whole_N = np.concatenate(pieces)
    assert len(whole_N) == 3000
    assert whole_N[500:].mean() == pytest.approx(0.5, rel=0.05), "the sine's own"
