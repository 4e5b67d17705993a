"""Readings of one stream into chunks of about a second: contiguous, with times that never run backward.

C channels, N samples.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from collectors.sources import Position, Reading
from infomae_stream.clock import NS_PER_S
from infomae_stream.types import ClockQuality, StreamSpec

# A sample that is older than the newest by more than this means that the clock was set back, and time starts anew.
RESTART_NS: Final = 60 * NS_PER_S


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """What becomes one chunk. position: where to go on once it has been accepted. hole_ns: silence just before it.

    clock, uncertainty_ns: as in Reading; of the first reading that it holds, and the largest of them.
    """

    start_ns: int
    samples_CN: NDArray[Any]
    times_ns: NDArray[np.int64] | None
    position: Position
    monotonic_ns: int
    hole_ns: int
    clock: ClockQuality | None = None
    uncertainty_ns: int = 0


@dataclass(slots=True)
class _Open:
    """The chunk in the making; `times` holds one time a sample also where the rate is exact."""

    samples: list[NDArray[Any]]
    times: list[NDArray[np.int64]]
    regular: bool
    monotonic_ns: int
    hole_ns: int
    clock: ClockQuality | None
    uncertainty_ns: int


class Chunker:
    """chunk_s: length to cut at. max_hole_s: a longer step between two samples ends a chunk and counts as a hole."""

    def __init__(
        self, spec: StreamSpec, *, chunk_s: float = 1.0, max_hole_s: float = 0.1, position: Position | None = None
    ) -> None:
        self._chunk_ns = round(chunk_s * NS_PER_S)
        self._step_ns = NS_PER_S / spec.rate_hz
        self._max_hole_ns = max(round(max_hole_s * NS_PER_S), round(1.5 * self._step_ns))
        self._position = position or Position()
        self._last_ns: int | None = position.last_ns if position else None
        self._open: _Open | None = None
        self.refused_backward = 0  # samples so far whose time ran backward

    def push(self, reading: Reading) -> list[Piece]:
        """Take a reading; return the chunks that are complete now."""
        pieces = []
        if reading.cursor != self._position.cursor:
            pieces += self.flush()
            self._last_ns = None
        times_N = self._times(reading)
        kept_N = self._forward(times_N)
        self.refused_backward += int(len(times_N) - kept_N.sum())
        # offsets_N[i]: where to go on when all before kept sample i has been accepted.
        offsets_N = np.append(reading.offset + np.flatnonzero(kept_N), reading.offset + len(times_N))
        samples_CN, times_kept_N = reading.samples_CN[:, kept_N], times_N[kept_N]
        regular = reading.times_ns is None and bool(kept_N.all())
        for first, end in self._contiguous(times_kept_N):
            part = slice(first, end)
            monotonic_ns = reading.monotonic_ns and reading.monotonic_ns + int(times_kept_N[first] - reading.start_ns)
            pieces += self._append(
                samples_CN[:, part], times_kept_N[part], regular, monotonic_ns, reading, offsets_N[first:]
            )
        if reading.ends:
            pieces += self.flush()
        return pieces

    def flush(self) -> list[Piece]:
        """The chunk in the making, however short; empty when there is none."""
        if self._open is None:
            return []
        done, self._open = self._open, None
        times_N = np.concatenate(done.times)
        return [
            Piece(
                start_ns=int(times_N[0]),
                samples_CN=np.concatenate(done.samples, axis=1),
                times_ns=None if done.regular else times_N,
                position=self._position,
                monotonic_ns=done.monotonic_ns,
                hole_ns=done.hole_ns,
                clock=done.clock,
                uncertainty_ns=done.uncertainty_ns,
            )
        ]

    def _times(self, reading: Reading) -> NDArray[np.int64]:
        if reading.times_ns is not None:
            return reading.times_ns
        steps = np.arange(reading.samples_CN.shape[1], dtype=np.float64) * self._step_ns
        return reading.start_ns + np.round(steps).astype(np.int64)

    def _forward(self, times_N: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which samples are not older than any before them, since the clock was last set back."""
        kept_N = np.empty(len(times_N), dtype=np.bool_)
        first = 0
        while first < len(times_N):
            rest_N = times_N[first:]
            floor = int(rest_N[0]) if self._last_ns is None else self._last_ns
            newest_N = np.maximum.accumulate(np.concatenate([[floor], rest_N]))
            set_back = np.flatnonzero(rest_N < newest_N[:-1] - RESTART_NS)
            end = int(set_back[0]) if len(set_back) else len(rest_N)
            kept_N[first : first + end] = (rest_N >= newest_N[:-1])[:end]
            self._last_ns = int(newest_N[end]) if end == len(rest_N) else None
            first += end
        return kept_N

    def _contiguous(self, times_N: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """Ranges between holes and steps back."""
        step_N = np.diff(times_N)
        cuts = np.flatnonzero((step_N > self._max_hole_ns) | (step_N < 0)) + 1
        edges = [0, *cuts.tolist(), len(times_N)]
        return ((a, b) for a, b in itertools.pairwise(edges) if a < b)

    def _append(
        self,
        samples_CN: NDArray[Any],
        times_N: NDArray[np.int64],
        regular: bool,
        monotonic_ns: int,
        reading: Reading,
        offsets_N: NDArray[np.int64],
    ) -> list[Piece]:
        """Add a contiguous run to the open chunk, cutting every chunk_s."""
        pieces: list[Piece] = []
        hole_ns = 0
        if self._open is not None:
            step_ns = int(times_N[0]) - int(self._open.times[-1][-1])
            if step_ns > self._max_hole_ns or step_ns < 0:
                hole_ns = max(step_ns, 0)
                pieces += self.flush()
            elif regular != self._open.regular or (regular and abs(step_ns - self._step_ns) > self._step_ns / 2):
                pieces += self.flush()
        elif reading.cursor == self._position.cursor and self._position.last_ns:
            step_ns = int(times_N[0]) - self._position.last_ns
            hole_ns = step_ns if step_ns > self._max_hole_ns else 0
        first = 0
        while first < len(times_N):
            start_ns = int(times_N[first]) if self._open is None else int(self._open.times[0][0])
            end = int(np.searchsorted(times_N, start_ns + self._chunk_ns))
            if end > first:
                if self._open is None:
                    since_ns = int(times_N[first] - times_N[0])
                    self._open = _Open(
                        [], [], regular, monotonic_ns and monotonic_ns + since_ns, hole_ns, reading.clock, 0
                    )
                    hole_ns = 0
                self._open.uncertainty_ns = max(self._open.uncertainty_ns, reading.uncertainty_ns)
                self._open.samples.append(samples_CN[:, first:end])
                self._open.times.append(times_N[first:end])
                self._position = Position(reading.cursor, int(offsets_N[end]), int(times_N[end - 1]))
            if end < len(times_N):
                pieces += self.flush()
            first = end
        return pieces
