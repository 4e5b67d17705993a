"""Stretches of missing samples: neighbours become one, and of too many the closest do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

# Chunks that follow each other differ by rounding and by the jitter of irregular sensors; a hole is longer than this.
TOUCH_NS: Final = 100_000_000


@dataclass(frozen=True, slots=True)
class GapSpan:
    """[start_ns, end_ns), in which n_samples were given up. seq: of the record that says so, 0 when none does yet."""

    start_ns: int
    end_ns: int
    n_samples: int
    seq: int = 0

    def numbered(self, seq: int) -> GapSpan:
        return replace(self, seq=seq)

    def with_next(self, other: GapSpan) -> GapSpan:
        """Both as one that no record tells yet."""
        start_ns, end_ns = min(self.start_ns, other.start_ns), max(self.end_ns, other.end_ns)
        return GapSpan(start_ns, end_ns, self.n_samples + other.n_samples)


def joined(spans: Iterable[GapSpan], limit: int) -> list[GapSpan]:
    """The spans by start, those that touch as one; beyond `limit` also the two that lie closest, again and again.

    The samples are summed exactly; a span that was joined over a hole covers the hole, too.
    """
    found: list[GapSpan] = []
    for span in sorted(spans, key=lambda s: (s.start_ns, s.end_ns)):
        if found and span.start_ns - found[-1].end_ns <= TOUCH_NS:
            found[-1] = found[-1].with_next(span)
        else:
            found.append(span)
    while len(found) > limit:
        closest = min(range(len(found) - 1), key=lambda i: found[i + 1].start_ns - found[i].end_ns)
        found[closest : closest + 2] = [found[closest].with_next(found[closest + 1])]
    return found
