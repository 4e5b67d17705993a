"""Finds pairs as data arrive: looks only at what is new in the lake, and at the windows that it touches.

Windows and candidates are a function of the set of chunks alone. Whatever the order of arrival, however often it runs,
from scratch or not: the rows in the lake end up the same, and a run without news writes nothing. A window is looked at
once its stream has moved past its end; a late chunk opens the windows again that it reaches.

The state file says up to which version of the table `chunks` the pairs are made, and where on the grid each stream has
data. Losing it costs the time to look at everything once more.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligner.grid_runs import GridRuns, Run
from aligner.pairing import candidates, pair_windows
from infomae_stream.hub_config import MatcherSettings
from infomae_stream.types import Chunk, Pair, StreamId, StreamSpec, Window
from infomae_stream.windower import Grid, cut_windows
from storage import query
from storage.lake import Lake
from storage.learning_tables import upsert_pairs

FORMAT = 1
PIECE_WINDOWS = 1200  # candidates cut at a time: bounds what one read of chunks holds


@dataclass
class StreamProgress:
    """Where on the grid a stream has data, and up to when it has come."""

    spec: StreamSpec
    touched: GridRuns = field(default_factory=GridRuns)
    watermark_ns: int = 0

    def finished(self, grid: Grid) -> GridRuns:
        """Grid positions of the windows that the stream has data in and has moved past."""
        return self.touched.up_to((self.watermark_ns - grid.window_ns) // grid.hop_ns)


@dataclass(frozen=True)
class Tick:
    """What one update did. `windows` by modality and `no_partner` count all that is known, not only what is new."""

    chunks_version: int
    new_ranges: int
    candidates: int
    changed: bool
    windows: dict[str, int] = field(default_factory=dict)
    no_partner: int = 0
    lags_ns: tuple[int, ...] = ()  # of the pairs that were looked at now


class Matcher:
    """Keeps the table `pairs` in step with the table `chunks`. One instance a lake at a time."""

    def __init__(self, settings: MatcherSettings, state_path: Path) -> None:
        self.settings = settings
        self.grid = Grid(settings.window_s, settings.hop_s, settings.max_gap_s)
        self._path = state_path
        self._version = -1
        self._streams: dict[StreamId, StreamProgress] = {}
        self._read_state()

    def update(self, lake: Lake) -> Tick:
        """Take in what the lake has gained. Raises LakeError; the state then stays where it was."""
        version = lake.version("chunks")
        if version < self._version:  # another lake than last time
            self._version, self._streams = -1, {}
        if version == self._version:
            return self._tick(version, 0, [], changed=False)
        ranges = query.chunk_ranges_since(lake, self._version, version)
        streams, affected = self._advance(ranges)
        found: list[Pair] = []
        before = lake.version("pairs")
        for pairs in self._pairs(lake, version, streams, affected):
            found += pairs
            upsert_pairs(lake, pairs)
        # Only now: whoever dies before this line does the same work again, to the same end.
        self._version, self._streams = version, streams
        self._write_state()
        return self._tick(version, len(ranges), found, changed=lake.version("pairs") != before)

    def _advance(
        self, ranges: Iterable[tuple[StreamSpec, int, int]]
    ) -> tuple[dict[StreamId, StreamProgress], dict[StreamId, GridRuns]]:
        """Progress of all streams after `ranges`, and the grid positions at which each one's windows may be new."""
        added: dict[StreamId, list[Run]] = defaultdict(list)
        reached: dict[StreamId, list[Run]] = defaultdict(list)
        specs: dict[StreamId, StreamSpec] = {}
        marks: dict[StreamId, int] = {}
        grid, reach = self.grid, self.grid.reach_ns
        for spec, start_ns, end_ns in ranges:
            if spec.modality not in self.settings.modalities:
                continue
            specs[spec.id] = spec
            marks[spec.id] = max(marks.get(spec.id, 0), end_ns)
            added[spec.id].append(_positions(grid, start_ns, end_ns))
            reached[spec.id].append(_positions(grid, start_ns - reach, end_ns + reach))
        streams = dict(self._streams)
        for stream, spec in specs.items():
            old = streams.get(stream, StreamProgress(spec))
            if marks[stream] > old.watermark_ns > 0:
                # What the watermark had not passed before is finished now, though nothing new may touch it.
                reached[stream].append(_positions(grid, old.watermark_ns - grid.window_ns, old.watermark_ns))
            streams[stream] = StreamProgress(
                spec, old.touched | GridRuns.of(added[stream]), max(old.watermark_ns, marks[stream])
            )
        return streams, {stream: GridRuns.of(runs) for stream, runs in reached.items()}

    def _pairs(
        self, lake: Lake, version: int, streams: dict[StreamId, StreamProgress], affected: dict[StreamId, GridRuns]
    ) -> Iterable[list[Pair]]:
        """The candidates whose windows may have changed, a piece of time of one site at a time."""
        nothing = GridRuns()
        by_site: dict[str, list[tuple[StreamSpec, StreamSpec, GridRuns]]] = defaultdict(list)
        for a, b in candidates((p.spec for p in streams.values()), self.settings.modalities):
            if a.id.site != b.id.site:
                continue
            changed = affected.get(a.id, nothing) | affected.get(b.id, nothing)
            both = changed & streams[a.id].finished(self.grid) & streams[b.id].finished(self.grid)
            if both.runs:
                by_site[a.id.site].append((a, b, both))
        for _, work in sorted(by_site.items()):
            everything = GridRuns.of(run for _, _, both in work for run in both.runs)
            wanted = sorted({spec.id for a, b, _ in work for spec in (a, b)})
            for first, last in everything.pieces(PIECE_WINDOWS, PIECE_WINDOWS // 10):
                windows = self._windows(lake, version, wanted, first, last)
                piece = GridRuns(((first, last),))
                yield [self._pair(a, b, position, windows) for a, b, both in work for position in both & piece]

    def _pair(self, a: StreamSpec, b: StreamSpec, position: int, windows: dict[tuple[StreamId, int], Window]) -> Pair:
        start_ns = position * self.grid.hop_ns
        sides = [(spec, windows.get((spec.id, start_ns))) for spec in (a, b)]
        return pair_windows(sides[0], sides[1], start_ns, self.settings)

    def _windows(
        self, lake: Lake, version: int, streams: list[StreamId], first: int, last: int
    ) -> dict[tuple[StreamId, int], Window]:
        """The windows of `streams` at the grid positions first..last, from the table as it was at `version`."""
        grid = self.grid
        first_ns, last_ns = first * grid.hop_ns, last * grid.hop_ns
        chunks = query.read_chunks(
            lake,
            streams=streams,
            from_ns=first_ns - grid.reach_ns,
            to_ns=last_ns + grid.window_ns + grid.reach_ns,
            version=version,
        )
        return {(w.spec.id, w.start_ns): w for w in windows_of(chunks, grid, first_ns, last_ns + 1)}

    def _tick(self, version: int, new_ranges: int, found: list[Pair], *, changed: bool) -> Tick:
        windows: dict[str, int] = defaultdict(int)
        alone = 0
        by_site: dict[str, list[tuple[str, GridRuns]]] = defaultdict(list)
        for stream, progress in self._streams.items():
            finished = progress.finished(self.grid)
            windows[progress.spec.modality] += len(finished)
            by_site[stream.site].append((progress.spec.modality, finished))
        for here in by_site.values():
            for modality, finished in here:
                others = GridRuns.of(run for name, runs in here if name != modality for run in runs.runs)
                alone += len(finished) - len(finished & others)
        lags_ns = tuple(p.lag_ns for p in found if p.paired)
        return Tick(version, new_ranges, len(found), changed, dict(windows), alone, lags_ns)

    def _settings_key(self) -> dict[str, Any]:
        """What a state belongs to: with other settings every window is looked at again."""
        return self.settings.model_dump(mode="json", exclude={"interval_s"})

    def _read_state(self) -> None:
        try:
            state = json.loads(self._path.read_text(encoding="utf-8"))
            if state["format"] != FORMAT or state["settings"] != self._settings_key():
                return
            streams = {
                (spec := StreamSpec.from_dict(s["spec"])).id: StreamProgress(
                    spec, GridRuns.of((f, t) for f, t in s["touched"]), int(s["watermark_ns"])
                )
                for s in state["streams"]
            }
            self._version, self._streams = int(state["chunks_version"]), streams
        except (OSError, ValueError, KeyError, TypeError):
            return  # no state, or none of ours: start over

    def _write_state(self) -> None:
        state = {
            "format": FORMAT,
            "settings": self._settings_key(),
            "chunks_version": self._version,
            "streams": [
                {"spec": p.spec.to_dict(), "touched": p.touched.runs, "watermark_ns": p.watermark_ns}
                for p in self._streams.values()
            ],
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(state), encoding="utf-8")
        os.replace(temporary, self._path)


def windows_of(chunks: Iterable[Chunk], grid: Grid, first_ns: int, end_ns: int) -> list[Window]:
    """The windows of many streams, sorted by stream and start; the same for chunks in any order.

    Where a stream changed its rate or channels inside a window, the window of the version that covers more is given.
    """
    by_spec: dict[StreamSpec, list[Chunk]] = defaultdict(list)
    for chunk in chunks:
        by_spec[chunk.spec].append(chunk)
    best: dict[tuple[StreamId, int], Window] = {}
    for spec in sorted(by_spec, key=repr):
        ordered = sorted(by_spec[spec], key=lambda c: (c.start_ns, c.seq, c.epoch))
        for window in cut_windows(ordered, grid, first_ns, end_ns):
            key = (spec.id, window.start_ns)
            if key not in best or window.coverage > best[key].coverage:
                best[key] = window
    return [best[key] for key in sorted(best)]


def _positions(grid: Grid, start_ns: int, end_ns: int) -> Run:
    """Grid positions, first and last, of the windows that touch [start_ns, end_ns)."""
    starts = grid.starts(start_ns, end_ns)
    return starts.start // grid.hop_ns, (end_ns - 1) // grid.hop_ns
