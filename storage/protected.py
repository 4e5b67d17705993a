"""Stretches of time that retention keeps longest: windows that are in a pair, and labelled intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.duck import fetch, open_tables
from storage.lake import Lake
from storage.query import CURRENT_PAIRS, read_labels

Interval = tuple[int, int]
Place = tuple[str, str, str]  # site, node, stream; stream "" for what has none

# Starts of windows of each paired stream, joined where they overlap: what is in memory grows with the holes.
_PAIRED_SPANS: Final = """
    WITH starts AS (SELECT DISTINCT unnest(streams) AS stream, start_ns FROM ({pairs}) WHERE reason = ''),
    marked AS (
        SELECT *, start_ns > lag(start_ns) OVER (PARTITION BY stream ORDER BY start_ns) + ? AS fresh FROM starts
    ), numbered AS (
        SELECT *, sum(CASE WHEN fresh THEN 1 ELSE 0 END) OVER (
            PARTITION BY stream ORDER BY start_ns ROWS UNBOUNDED PRECEDING) AS island FROM marked
    )
    SELECT stream, min(start_ns) AS first_ns, max(start_ns) AS last_ns FROM numbered GROUP BY stream, island
"""


@dataclass(slots=True)
class Spans:
    """Disjoint sorted intervals by place."""

    _starts: dict[Place, NDArray[np.int64]] = field(default_factory=dict)
    _ends: dict[Place, NDArray[np.int64]] = field(default_factory=dict)

    @classmethod
    def of(cls, intervals: Mapping[Place, Iterable[Interval]]) -> Spans:
        spans = cls()
        for place, some in intervals.items():
            joined = _joined(some)
            spans._starts[place] = np.array([start for start, _ in joined], dtype=np.int64)
            spans._ends[place] = np.array([end for _, end in joined], dtype=np.int64)
        return spans

    def touch(self, keys: pa.Table, *, by_stream: bool) -> NDArray[np.bool_]:
        """Which rows of `keys` (site, node, stream if there is one, start_ns, end_ns) overlap an interval here."""
        out = np.zeros(keys.num_rows, dtype=bool)
        names = ["site", "node", *(["stream"] if by_stream and "stream" in keys.column_names else [])]
        start, end = keys["start_ns"].to_numpy(), keys["end_ns"].to_numpy()
        columns = [keys[name].to_pylist() for name in names]
        rows_of: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for row, place in enumerate(zip(*columns, strict=True)):
            rows_of[place].append(row)
        for place, rows in rows_of.items():
            key = (place[0], place[1], place[2] if len(place) == 3 else "")
            starts = self._starts.get(key)
            if starts is not None and len(starts):
                # The last interval that starts before the row ends is the only one that can reach into it.
                at = np.searchsorted(starts, end[rows], side="left") - 1
                out[rows] = (at >= 0) & (self._ends[key][at] > start[rows])
        return out


def paired_spans(lake: Lake, window_ns: int, margin_ns: int) -> Spans:
    """Windows of pairs with `margin_ns` on both sides; under stream "" those of a node's streams together."""
    found: dict[Place, list[Interval]] = defaultdict(list)
    sql = _PAIRED_SPANS.format(pairs=CURRENT_PAIRS.format(where=""))
    with open_tables(lake, {"pairs": None}) as db:
        for row in fetch(db, sql, [window_ns + 2 * margin_ns]):
            site, node, stream = row["stream"].split("/")
            interval = row["first_ns"] - margin_ns, row["last_ns"] + window_ns + margin_ns
            found[site, node, stream].append(interval)
            found[site, node, ""].append(interval)
    return Spans.of(found)


def labelled_spans(lake: Lake, margin_ns: int) -> Spans:
    """Labelled intervals with `margin_ns` on both sides; a label belongs to a whole node, so all have stream ""."""
    found: dict[Place, list[Interval]] = defaultdict(list)
    for label in read_labels(lake):
        found[label.site, label.node, ""].append((label.start_ns - margin_ns, label.end_ns + margin_ns))
    return Spans.of(found)


def _joined(intervals: Iterable[Interval]) -> list[Interval]:
    out: list[Interval] = []
    for start, end in sorted(intervals):
        if out and start <= out[-1][1]:
            out[-1] = out[-1][0], max(end, out[-1][1])
        else:
            out.append((start, end))
    return out
