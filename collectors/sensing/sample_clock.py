"""Smooth times for blocks of samples whose time stamps jitter: one for every live sensor that stamps blocks.

A stamp of millisecond resolution, or taken when a block arrived, moves by more than a sampling crystal does. So the
next block starts where the last one ended, drawn a little towards its stamp; only a stamp that is off by more than
the tolerance is believed, as a gap or as a step of the clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from infomae_stream.clock import NS_PER_S

# The most that one block moves the clock, in samples: what follows stays contiguous for the chunker (half a sample).
MOST_SLEW: Final = 0.25


@dataclass(frozen=True, slots=True)
class Placed:
    """start_ns: time of a block's first sample. step_ns: how far the clock jumped just before it; 0 when it ran on."""

    start_ns: int
    step_ns: int


class SampleClock:
    """tolerance_ns: a stamp within it is jitter. gain: share of the jitter that is believed, a block."""

    def __init__(self, rate_hz: float, *, tolerance_ns: int, gain: float = 0.1) -> None:
        self._period_ns = NS_PER_S / rate_hz
        self._tolerance_ns = tolerance_ns
        self._gain = gain
        self._next_ns: int | None = None

    @property
    def next_ns(self) -> int | None:
        """Where the next block starts when nothing is lost; None before the first."""
        return self._next_ns

    def place(self, stamp_ns: int, n_samples: int) -> Placed:
        """Take a block whose first sample was stamped `stamp_ns`."""
        start_ns, step_ns = stamp_ns, 0
        if self._next_ns is not None:
            error_ns = stamp_ns - self._next_ns
            if abs(error_ns) > self._tolerance_ns:
                step_ns = error_ns
            else:
                most_ns = MOST_SLEW * self._period_ns
                start_ns = self._next_ns + round(min(max(self._gain * error_ns, -most_ns), most_ns))
        self._next_ns = start_ns + round(n_samples * self._period_ns)
        return Placed(start_ns, step_ns)

    def restart(self) -> None:
        """Samples are known to be missing: the next stamp is believed."""
        self._next_ns = None


class DriftingClock:
    """Times for samples that a sensor counts out by an oscillator of its own, percents off its declared rate.

    It follows phase and period (a loop of second order), so the measured rate shows in the times, one a sample.
    tolerance_ns: a block that ends farther from where it should begins anew.
    """

    PHASE_GAIN: Final = 0.1
    PERIOD_GAIN: Final = 0.01
    MOST_OFF: Final = 0.1  # of the declared period

    def __init__(self, rate_hz: float, *, tolerance_ns: int) -> None:
        self._declared_ns = self._period_ns = NS_PER_S / rate_hz
        self._tolerance_ns = tolerance_ns
        self._last_ns: int | None = None

    def place(self, end_ns: int, n_samples: int) -> NDArray[np.int64]:
        """Times of a block whose last sample was there at `end_ns`, shape (n_samples,)."""
        span_ns = n_samples * self._period_ns
        if self._last_ns is not None and abs(error_ns := end_ns - self._last_ns - span_ns) <= self._tolerance_ns:
            period_ns = self._period_ns + self.PERIOD_GAIN * error_ns / n_samples
            most_ns = self.MOST_OFF * self._declared_ns
            self._period_ns = min(max(period_ns, self._declared_ns - most_ns), self._declared_ns + most_ns)
            span_ns = max(span_ns + self.PHASE_GAIN * error_ns, 0.0)
            begin_ns = self._last_ns
        else:
            begin_ns = end_ns - round(span_ns)
        steps_N = np.arange(1, n_samples + 1) * (span_ns / n_samples)
        times_N = begin_ns + np.round(steps_N).astype(np.int64)
        self._last_ns = int(times_N[-1])
        return np.asarray(times_N)

    def restart(self) -> None:
        """Samples are known to be missing: the next block is where it says. What is known of the period stays."""
        self._last_ns = None
