"""Sets of grid positions as runs: what a stream has data for, in a few numbers a recording instead of one a window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

Run = tuple[int, int]


@dataclass(frozen=True, slots=True)
class GridRuns:
    """A set of whole numbers; `runs` are inclusive, rising, and never touch each other."""

    runs: tuple[Run, ...] = ()

    @classmethod
    def of(cls, runs: Iterable[Run]) -> GridRuns:
        """The union of `runs` in any order; an empty run (last < first) counts for nothing."""
        merged: list[Run] = []
        for first, last in sorted(r for r in runs if r[0] <= r[1]):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], last))
            else:
                merged.append((first, last))
        return cls(tuple(merged))

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.runs)

    def __iter__(self) -> Iterator[int]:
        for first, last in self.runs:
            yield from range(first, last + 1)

    def __or__(self, other: GridRuns) -> GridRuns:
        return GridRuns.of((*self.runs, *other.runs))

    def __and__(self, other: GridRuns) -> GridRuns:
        out: list[Run] = []
        a, b = 0, 0
        while a < len(self.runs) and b < len(other.runs):
            (first_a, last_a), (first_b, last_b) = self.runs[a], other.runs[b]
            if max(first_a, first_b) <= min(last_a, last_b):
                out.append((max(first_a, first_b), min(last_a, last_b)))
            if last_a < last_b:
                a += 1
            else:
                b += 1
        return GridRuns(tuple(out))

    def up_to(self, last: int) -> GridRuns:
        """The members that are at most `last`."""
        return GridRuns(tuple((f, min(t, last)) for f, t in self.runs if f <= last))

    def pieces(self, longest: int, bridge: int) -> Iterator[Run]:
        """Spans that hold every member: at most `longest` positions each; holes up to `bridge` are spanned."""
        span: Run | None = None
        for first, last in self.runs:
            if span is not None and first - span[1] <= bridge and last - span[0] < longest:
                span = (span[0], last)
                continue
            if span is not None:
                yield span
            while last - first >= longest:
                yield (first, first + longest - 1)
                first += longest
            span = (first, last)
        if span is not None:
            yield span
