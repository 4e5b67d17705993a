"""Recursive STA/LTA: the short-term average of the power over the long-term one.

Allen, Automatic earthquake recognition and timing from single traces, BSSA 68, 1978; the recursive form as in Withers
et al., A comparison of select trigger algorithms, BSSA 88, 1998.   C channels, N samples, M new ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from inference.signal_power import SignalPower, recursive_average
from infomae_stream.clock import NS_PER_S
from infomae_stream.config import Settings


class StaLtaOptions(Settings):
    sta_s: float = Field(0.5, gt=0)
    lta_s: float = Field(30.0, gt=0)
    on: float = Field(3.0, gt=1)  # ratio that wakes
    off: float = Field(1.5, gt=0)  # ratio below which it sleeps again
    corner_hz: float = Field(1.0, ge=0)  # of the high-pass before it; 0: none

    @model_validator(mode="after")
    def _ordered(self) -> StaLtaOptions:
        if self.sta_s >= self.lta_s:
            raise ValueError("sta_s is not below lta_s")
        if self.off > self.on:
            raise ValueError("off is above on")
        return self


def sta_lta(power_M: NDArray[np.float64], n_sta: float, n_lta: float, sta: float, lta: float) -> NDArray[np.float64]:
    """Both averages of each sample, shape (2, M): the short one first. sta, lta: those before the first sample."""
    return np.stack([recursive_average(power_M, n_sta, sta), recursive_average(power_M, n_lta, lta)])


class StaLtaTrigger:
    Options = StaLtaOptions

    def __init__(self, options: StaLtaOptions, rate_hz: float) -> None:
        self._options = options
        self._rate_hz = rate_hz
        self._n = max(options.sta_s * rate_hz, 1.5), max(options.lta_s * rate_hz, 2.0)
        self._power = SignalPower(rate_hz, options.corner_hz)
        self._last = 0.0, 0.0
        self._seen = 0  # samples since the stream began
        self._on = False
        self._awake_ns = -1  # time of the last sample at which it was on

    def awake(self, start_ns: int, x_CN: NDArray[np.float32]) -> bool:
        power_M, first_ns, anew = self._power.take(start_ns, x_CN)
        if anew:
            self._last, self._seen, self._on, self._awake_ns = (0.0, 0.0), 0, False, -1
        if len(power_M):
            short_M, long_M = sta_lta(power_M, *self._n, *self._last)
            self._last = float(short_M[-1]), float(long_M[-1])
            self._seen += len(power_M)
            self._switch(short_M, long_M, first_ns)
        return self._seen < self._n[1] or self._awake_ns >= start_ns

    def _switch(self, short_M: NDArray[np.float64], long_M: NDArray[np.float64], first_ns: int) -> None:
        """On from the first sample that reaches `on` to the last before one below `off`."""
        rises_M, falls_M = short_M >= self._options.on * long_M, short_M < self._options.off * long_M
        rises_M &= long_M > 0  # silence itself, all zeros, is no event
        number_M = np.arange(1, len(short_M) + 1)
        rose_M = np.maximum.accumulate(np.where(rises_M, number_M, 0))
        fell_M = np.maximum.accumulate(np.where(falls_M & ~rises_M, number_M, 0))
        on_M = (rose_M > fell_M) | (self._on & (fell_M == 0))
        self._on = bool(on_M[-1])
        if on_M.any():
            last = int(np.flatnonzero(on_M)[-1])
            self._awake_ns = first_ns + round(last * NS_PER_S / self._rate_hz)
