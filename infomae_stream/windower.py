"""Chunks into windows on the time grid, the same way on the node and in the lake.

Irregular or jittery samples are interpolated linearly onto the declared rate; a grid point counts as covered when the
real samples on both its sides are at most `max_gap_s` apart.   C channels, N grid points, S samples.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infomae_stream.clock import NS_PER_S
from infomae_stream.types import Chunk, ClockQuality, StreamSpec, Window

CLOCK_JUMP_NS = 50_000_000


@dataclass(frozen=True, slots=True)
class Grid:
    """Windows start at whole multiples of `hop_s` since 1970, on every node alike."""

    window_s: float
    hop_s: float
    max_gap_s: float = 0.2

    @property
    def window_ns(self) -> int:
        return round(self.window_s * NS_PER_S)

    @property
    def hop_ns(self) -> int:
        return round(self.hop_s * NS_PER_S)

    @property
    def reach_ns(self) -> int:
        """How far outside a window a sample can still matter to it."""
        return round(self.max_gap_s * NS_PER_S)

    def starts(self, first_ns: int, end_ns: int) -> range:
        """Starts of all windows that touch [first_ns, end_ns)."""
        lowest = -(-(first_ns - self.window_ns + 1) // self.hop_ns)
        return range(lowest * self.hop_ns, end_ns, self.hop_ns)


def cut_windows(chunks: Sequence[Chunk], grid: Grid, first_ns: int, end_ns: int) -> list[Window]:
    """Windows of one stream that start in [first_ns, end_ns), from its chunks in any order.

    Windows without a single covered point are left out; the rest carry their coverage and flags.
    """
    if not chunks:
        return []
    ordered = sorted(chunks, key=lambda c: (c.start_ns, c.seq))
    times_S = np.concatenate([c.sample_times_ns() for c in ordered])
    x_CS = np.concatenate([c.physical_CN() for c in ordered], axis=1)
    clipped_S = np.concatenate([_clipped(c.samples_CN) for c in ordered])
    # One value a time: np.interp needs rising times; of equal times the last sample wins.
    order = np.argsort(times_S, kind="stable")
    times_S, x_CS, clipped_S = times_S[order], x_CS[:, order], clipped_S[order]
    last = np.append(np.diff(times_S) > 0, True)
    times_S, x_CS, clipped_S = times_S[last], x_CS[:, last], clipped_S[last]

    windows = []
    for start_ns in _touched_starts(ordered, grid):
        if first_ns <= start_ns < end_ns:
            window = _cut_one(ordered, times_S, x_CS, clipped_S, grid, start_ns)
            if window is not None:
                windows.append(window)
    return windows


def _touched_starts(chunks: Iterable[Chunk], grid: Grid) -> list[int]:
    starts: set[int] = set()
    for chunk in chunks:
        starts.update(grid.starts(chunk.start_ns, chunk.end_ns))
    return sorted(starts)


def _cut_one(
    chunks: Sequence[Chunk],
    times_S: NDArray[np.int64],
    x_CS: NDArray[np.float32],
    clipped_S: NDArray[np.bool_],
    grid: Grid,
    start_ns: int,
) -> Window | None:
    spec = chunks[0].spec
    n_points = round(grid.window_s * spec.rate_hz)
    step_ns = NS_PER_S / spec.rate_hz
    # The window's samples and one neighbour on each side, for interpolation. A neighbour farther away than the longest
    # bridged hole is none: a window depends on nothing beyond that reach, whatever else is at hand when it is cut.
    end_ns = start_ns + grid.window_ns
    lo = max(int(np.searchsorted(times_S, start_ns)) - 1, int(np.searchsorted(times_S, start_ns - grid.reach_ns)), 0)
    hi = min(
        int(np.searchsorted(times_S, end_ns)) + 1, int(np.searchsorted(times_S, end_ns + grid.reach_ns, side="right"))
    )
    if lo >= hi:
        return None
    # Seconds since the window's start: nanoseconds since 1970 do not fit a float64.
    t_S = (times_S[lo:hi] - start_ns) / NS_PER_S
    t_N = np.arange(n_points) / spec.rate_hz
    right_N = np.searchsorted(t_S, t_N)
    left_ok = (right_N > 0) | (t_S[0] - t_N <= step_ns / NS_PER_S)
    right_ok = (right_N < len(t_S)) | (t_N - t_S[-1] <= step_ns / NS_PER_S)
    before_N = t_S[np.maximum(right_N - 1, 0)]
    after_N = t_S[np.minimum(right_N, len(t_S) - 1)]
    covered_N = left_ok & right_ok & (after_N - before_N <= grid.max_gap_s)
    if not covered_N.any():
        return None
    x_CN = np.stack([np.interp(t_N, t_S, row) for row in x_CS[:, lo:hi]]).astype(np.float32)
    touching = [c for c in chunks if c.start_ns < start_ns + grid.window_ns and c.end_ns > start_ns]
    flags = set()
    if not covered_N.all():
        flags.add("gap")
    if clipped_S[lo:hi].any():
        flags.add("clipped")
    if (np.ptp(x_CN[:, covered_N], axis=1) == 0).any():
        flags.add("flatline")
    if _clock_jumped(touching):
        flags.add("clock_jump")
    return Window(spec, start_ns, x_CN, float(covered_N.mean()), _worst_clock(touching or chunks), frozenset(flags))


def _clipped(samples_CN: NDArray[Any]) -> NDArray[np.bool_]:
    """Samples at the end of their integer range, shape (S,)."""
    if samples_CN.dtype.kind != "i":
        return np.zeros(samples_CN.shape[1], dtype=np.bool_)
    limits = np.iinfo(samples_CN.dtype)
    return np.asarray(((samples_CN == limits.min) | (samples_CN == limits.max)).any(axis=0))


def _clock_jumped(chunks: Sequence[Chunk]) -> bool:
    """Wall and monotonic time drifted apart between neighbouring chunks of one boot."""
    for a, b in itertools.pairwise(chunks):
        if a.clock.boot_id == b.clock.boot_id and a.clock.monotonic_ns and b.clock.monotonic_ns:
            step_ns = (b.start_ns - a.start_ns) - (b.clock.monotonic_ns - a.clock.monotonic_ns)
            if abs(step_ns) > CLOCK_JUMP_NS:
                return True
    return False


def _worst_clock(chunks: Sequence[Chunk]) -> ClockQuality:
    worst = max((c.clock for c in chunks), key=lambda q: (not q.synchronised, q.uncertainty_ns, abs(q.offset_ns)))
    return replace(
        worst,
        uncertainty_ns=max(c.clock.uncertainty_ns for c in chunks),
        offset_ns=max((c.clock.offset_ns for c in chunks), key=abs),
    )


class Windower:
    """One stream's chunks in the order in which they were accepted -> finished windows, each once.

    A window is finished when the stream has moved past its end. A wall clock that steps back by more than a window
    starts the stream anew, so that a corrected clock never silences a node.
    """

    def __init__(self, spec: StreamSpec, grid: Grid) -> None:
        self.spec = spec
        self.grid = grid
        self._chunks: list[Chunk] = []
        self._next_ns = 0  # no window that starts before this is given again

    def push(self, chunk: Chunk) -> list[Window]:
        if self._chunks and chunk.start_ns < self._chunks[-1].start_ns - self.grid.window_ns:
            self._chunks, self._next_ns = [], 0
        self._chunks.append(chunk)
        watermark_ns = max(c.end_ns for c in self._chunks)
        done_ns = watermark_ns - self.grid.window_ns + 1  # starts below this lie wholly in the past
        windows = cut_windows(self._chunks, self.grid, self._next_ns, done_ns)
        self._next_ns = max(self._next_ns, (done_ns + self.grid.hop_ns - 1) // self.grid.hop_ns * self.grid.hop_ns)
        self._chunks = [c for c in self._chunks if c.end_ns > self._next_ns - self.grid.hop_ns]
        return windows
