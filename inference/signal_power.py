"""Overlapping windows of one stream -> the power of each sample, each once. Recursive averages with numpy.

C channels, N samples, M of them new.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from infomae_stream.clock import NS_PER_S

_MOST_DECAY: Final = 20.0  # within a block the weights span e**20; float64 has room for 1e300
_HOLE_S: Final = 1.0  # more than this missing, and the stream begins anew


def recursive_average(x_N: NDArray[np.float64], n: float, before: float) -> NDArray[np.float64]:
    """y[i] = x[i] / n + (1 - 1 / n) y[i-1], with `before` as y[-1]; shape (N,). n > 1 samples.

    As sums of x[i] / d**i, d = 1 - 1/n, in blocks short enough for these not to overflow.
    """
    d = 1.0 - 1.0 / n
    size = max(1, int(_MOST_DECAY / -math.log(d)))
    y_N = np.empty_like(x_N)
    for first in range(0, len(x_N), size):
        x = x_N[first : first + size]
        power = d ** np.arange(1, len(x) + 1)
        y_N[first : first + size] = power * (before + np.cumsum(x / power) / n)
        before = float(y_N[first + len(x) - 1])
    return y_N


class SignalPower:
    """corner_hz: of a one-pole high-pass before the square, so that an offset or a slow drift is no power; 0: none."""

    def __init__(self, rate_hz: float, corner_hz: float) -> None:
        self._rate_hz = rate_hz
        self._n = 1.0 + rate_hz / (2 * math.pi * corner_hz) if corner_hz else 0.0
        self._end_ns: int | None = None  # of what was taken
        self._low_C: list[float] = []

    def take(self, start_ns: int, x_CN: NDArray[np.float32]) -> tuple[NDArray[np.float64], int, bool]:
        """The power of the samples that are new, summed over channels (M,), the time of the first, and whether the
        stream begins anew: it is the first window, the clock was set back, or there is a hole."""
        step_ns = NS_PER_S / self._rate_hz
        n = x_CN.shape[1]
        before_ns, self._end_ns = self._end_ns, start_ns + round(n * step_ns)
        anew, known = True, 0
        if before_ns is not None:
            anew = not before_ns - n * step_ns < start_ns <= before_ns + _HOLE_S * NS_PER_S
            known = 0 if anew else min(max(round((before_ns - start_ns) / step_ns), 0), n)
        x_CM = x_CN[:, known:].astype(np.float64)
        if self._n and x_CM.shape[1]:
            if anew:
                self._low_C = [float(x) for x in x_CM[:, 0]]
            low_CM = np.stack([recursive_average(x, self._n, y) for x, y in zip(x_CM, self._low_C, strict=True)])
            self._low_C = [float(y) for y in low_CM[:, -1]]
            x_CM = x_CM - low_CM
        return np.square(x_CM).sum(axis=0), start_ns + round(known * step_ns), anew
