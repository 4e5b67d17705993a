"""Which rows a read wants, for the log (which files), for Parquet (which row groups) and for SQL (which rows)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from infomae_stream.types import StreamId
from storage.segments import FileFilter

_MOST_GROUPS: Final = 64  # beyond this the log's statistics are asked about time only


@dataclass(frozen=True, slots=True)
class Selection:
    """None means all; the parts are joined by AND. Rows that overlap [from_ns, to_ns) are in."""

    streams: Sequence[StreamId] | None = None
    sites: Sequence[str] | None = None
    modalities: Sequence[str] | None = None
    from_ns: int | None = None
    to_ns: int | None = None

    def conditions(self) -> tuple[list[str], list[Any]]:
        """SQL conditions and their values, in a form that DuckDB compares with the statistics of row groups."""
        where: list[str] = []
        values: list[Any] = []
        if self.streams is not None:
            where.append(_any_of(["(site = ? AND node = ? AND stream = ?)"] * len(self.streams)))
            values += [part for s in self.streams for part in (s.site, s.node, s.stream)]
        for column, wanted in (("site", self.sites), ("modality", self.modalities)):
            if wanted is not None:
                where.append(_any_of([f"{column} = ?"] * len(wanted)))
                values += wanted
        for condition, bound in (("end_ns > ?", self.from_ns), ("start_ns < ?", self.to_ns)):
            if bound is not None:
                where.append(condition)
                values.append(bound)
        return where, values

    def files(self) -> FileFilter:
        """The same for `live_files`; it may let more through, never less."""
        time: list[tuple[str, str, Any]] = []
        if self.from_ns is not None:
            time.append(("end_ns", ">", self.from_ns))
        if self.to_ns is not None:
            time.append(("start_ns", "<", self.to_ns))
        places: list[list[tuple[str, str, Any]]] = []
        if self.streams is not None:
            places = [
                [("site", "=", site), ("node", "=", node)] for site, node in {(s.site, s.node) for s in self.streams}
            ]
        elif self.sites is not None:
            places = [[("site", "=", site)] for site in set(self.sites)]
        if 0 < len(places) <= _MOST_GROUPS:
            return [[*place, *time] for place in places]
        return [time] if time else []


def _any_of(conditions: Sequence[str]) -> str:
    return "(" + (" OR ".join(conditions) or "false") + ")"
