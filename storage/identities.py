"""Which identities are in the lake: ranges of seq for each outbox, so that memory stays small however long it runs.

seq is one counter an outbox (site, node, epoch), over chunks, gaps and detections. A node sends in order, so a year of
it is one range; every hole that never closes costs one range more.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

OutboxKey = tuple[str, str, str]  # site, node, epoch


@dataclass(slots=True)
class SeqRanges:
    """A set of integers kept as sorted inclusive ranges that neither touch nor overlap."""

    _firsts: list[int] = field(default_factory=list)
    _lasts: list[int] = field(default_factory=list)

    def __contains__(self, seq: int) -> bool:
        i = bisect_right(self._firsts, seq) - 1
        return i >= 0 and seq <= self._lasts[i]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._firsts, self._lasts, strict=True)

    def __len__(self) -> int:
        """How many ranges there are."""
        return len(self._firsts)

    def is_empty_within(self, first: int, last: int) -> bool:
        """Whether none of first..last (inclusive) is there."""
        i = bisect_right(self._firsts, last) - 1
        return i < 0 or self._lasts[i] < first

    def add(self, first: int, last: int) -> None:
        """Add first..last (inclusive)."""
        lo = bisect_right(self._firsts, first)
        if lo and self._lasts[lo - 1] >= first - 1:
            lo -= 1
            first = self._firsts[lo]
        hi = lo
        while hi < len(self._firsts) and self._firsts[hi] <= last + 1:
            last = max(last, self._lasts[hi])
            hi += 1
        self._firsts[lo:hi] = [first]
        self._lasts[lo:hi] = [last]


class IdentityIndex:
    """The ranges of every outbox."""

    def __init__(self) -> None:
        self._outboxes: dict[OutboxKey, SeqRanges] = {}

    def __contains__(self, identity: tuple[str, str, str, int]) -> bool:
        *key, seq = identity
        ranges = self._outboxes.get((key[0], key[1], key[2]))
        return ranges is not None and seq in ranges

    def knows_none(self, key: OutboxKey, first: int, last: int) -> bool:
        """Whether of first..last (inclusive) of an outbox none is known, which one look tells for a whole run."""
        ranges = self._outboxes.get(key)
        return ranges is None or ranges.is_empty_within(first, last)

    def add(self, key: OutboxKey, first: int, last: int) -> None:
        self._outboxes.setdefault(key, SeqRanges()).add(first, last)

    def outboxes(self) -> dict[OutboxKey, tuple[tuple[int, int], ...]]:
        return {key: tuple(ranges) for key, ranges in self._outboxes.items()}

    def range_count(self) -> int:
        return sum(len(ranges) for ranges in self._outboxes.values())


def retired_ranges(file: Path) -> Iterator[tuple[OutboxKey, int, int]]:
    """What a file of the table `retired` holds, as inclusive ranges. Raises OSError or ValueError."""
    columns = pq.ParquetFile(file).read(["site", "node", "epoch", "seq_first", "seq_last"])
    for site, node, epoch, first, last in zip(*(column.to_pylist() for column in columns.columns), strict=True):
        yield (site, node, epoch), first, last
