"""A snapshot names everything that a training run learns from: table versions, split, grid, classes, settings, seed.

It is a small JSON file. `load` reads the lake as it was at those versions, so a run is a function of a snapshot: the
same snapshot gives the same arrays bit for bit, whatever came into the lake since.
Splits go by site (a person, a vehicle, a place): nothing of a validation or test site is ever in the training set.

Legend: B windows, C channels, N samples, P pairs.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from aligner.matcher import windows_of
from aligner.trainset import UNKNOWN_LABEL, ModalityWindows, TrainSet
from infomae_stream import __version__
from infomae_stream.config import Settings, validate
from infomae_stream.errors import ConfigError, DataError
from infomae_stream.hub_config import HubConfig
from infomae_stream.types import Pair, StreamId, StreamSpec, Window
from infomae_stream.windower import Grid
from storage import query
from storage.lake import Lake
from storage.rows import LabelInterval

FORMAT: Final = 1
TABLES: Final = ("chunks", "pairs", "labels", "quarantine")
_Labels = dict[tuple[str, str], list[LabelInterval]]  # by (site, node), sorted by start
MIN_LABEL_SHARE: Final = 0.6  # of a window that one class's intervals must cover


class Snapshot(Settings):
    """What a run learns from. Sites that came into the lake later belong to no split and are left out."""

    format: int = FORMAT
    created_ns: int
    code_version: str = __version__
    lake: str  # folder, absolute
    tables: dict[str, int]
    seed: int
    train_sites: list[str]
    validation_sites: list[str]
    test_sites: list[str]
    modalities: list[str]
    window_s: float
    hop_s: float
    max_gap_s: float
    min_coverage: float
    classes: list[str]
    train: dict[str, Any] = Field(default_factory=dict)

    @property
    def grid(self) -> Grid:
        return Grid(self.window_s, self.hop_s, self.max_gap_s)

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        temporary = path.with_suffix(".tmp")
        temporary.write_text(self.model_dump_json(indent=1), encoding="utf-8")
        os.replace(temporary, path)

    @classmethod
    def read(cls, path: Path) -> Snapshot:
        """Raises ConfigError when the file is missing or is no snapshot of this format."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise ConfigError(f"cannot read the snapshot: {e}", where=str(path)) from e
        snapshot = validate(raw, cls, where=str(path))
        if snapshot.format != FORMAT:
            raise ConfigError(f"snapshot format {snapshot.format}, this program reads {FORMAT}", where=str(path))
        return snapshot


@dataclass(frozen=True)
class SplitData:
    """The three sets, and labels of the training windows (by modality, -1 unknown) that may only judge: the ceiling."""

    train: TrainSet
    validation: TrainSet
    test: TrainSet
    oracle_labels: dict[str, NDArray[np.int64]]


def freeze(lake: Lake, config: HubConfig, now_ns: int) -> Snapshot:
    """A snapshot of the lake as it is now. Raises ConfigError when a site is both for validation and for test."""
    align, matcher = config.align, config.matcher
    both = sorted(set(align.validation_sites) & set(align.test_sites))
    if both:
        raise ConfigError(f"{', '.join(both)} stand in validation_sites and in test_sites", where="align")
    tables = {name: lake.version(name) for name in TABLES}
    held_out = {*align.validation_sites, *align.test_sites}
    sites = sorted(
        {
            spec.id.site
            for spec in query.stream_specs(lake, version=tables["chunks"])
            if spec.modality in matcher.modalities
        }
    )
    return Snapshot(
        created_ns=now_ns,
        lake=str(config.lake_path.resolve()),
        tables=tables,
        seed=align.seed,
        train_sites=[s for s in sites if s not in held_out],
        validation_sites=sorted(align.validation_sites),
        test_sites=sorted(align.test_sites),
        modalities=sorted(matcher.modalities),
        window_s=matcher.window_s,
        hop_s=matcher.hop_s,
        max_gap_s=matcher.max_gap_s,
        min_coverage=matcher.min_coverage,
        classes=list(align.classes),
        train=align.train,
    )


def load(snapshot: Snapshot, lake: Lake) -> SplitData:
    """Read the three sets from the lake at the snapshot's versions.

    Windows: coverage of at least `min_coverage`, all values finite. Labels: the class whose intervals cover at least
    60 % of the window; in the training set only those of purpose "train", in the others any.
    Raises LakeError for a version that is gone, DataError when streams of one modality differ in kind, rate,
    channels or units.
    """
    labels = query.read_labels(lake, version=snapshot.tables["labels"])
    taught = _by_node(label for label in labels if label.purpose == "train")
    known = _by_node(labels)
    pairs = [p for p in query.read_pairs(lake, version=snapshot.tables["pairs"]) if p.paired]
    sets, oracle = {}, {}
    for name, sites in (
        ("train", snapshot.train_sites),
        ("validation", snapshot.validation_sites),
        ("test", snapshot.test_sites),
    ):
        windows = _windows(snapshot, lake, sites)
        sets[name] = _train_set(snapshot, windows, pairs, taught if name == "train" else known)
        if name == "train":
            oracle = {m: _label_rows(w, known, snapshot) for m, w in windows.items()}
    return SplitData(sets["train"], sets["validation"], sets["test"], oracle)


def _windows(snapshot: Snapshot, lake: Lake, sites: Sequence[str]) -> dict[str, list[Window]]:
    """Usable windows by modality, sorted by stream and start."""
    out: dict[str, list[Window]] = {modality: [] for modality in snapshot.modalities}
    version = snapshot.tables["chunks"]
    specs = query.stream_specs(lake, version=version)
    for site in sorted(sites):
        streams = sorted({s.id for s in specs if s.id.site == site and s.modality in snapshot.modalities})
        if not streams:
            continue
        # What was quarantined later was learned from; a snapshot made before this was kept means the newest.
        quarantine = snapshot.tables.get("quarantine")
        chunks = query.read_chunks(lake, streams=streams, version=version, quarantine_version=quarantine)
        for window in windows_of(chunks, snapshot.grid, 0, 2**62):
            usable = window.coverage >= snapshot.min_coverage and np.isfinite(window.x_CN).all()
            if usable and window.spec.modality in out:
                out[window.spec.modality].append(window)
    return out


def _train_set(
    snapshot: Snapshot, windows: dict[str, list[Window]], pairs: Iterable[Pair], labels: _Labels
) -> TrainSet:
    """One split as arrays; a modality without a single window is left out of it."""
    modalities = {
        name: _modality(name, rows, _label_rows(rows, labels, snapshot), snapshot.grid)
        for name, rows in windows.items()
        if rows
    }
    row_of = {name: {(w.spec.id, w.start_ns): i for i, w in enumerate(windows[name])} for name in modalities}
    found: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for pair in pairs:
        first, second = pair.modalities
        if first in row_of and second in row_of:
            a = row_of[first].get((pair.streams[0], pair.start_ns))
            b = row_of[second].get((pair.streams[1], pair.start_ns))
            if a is not None and b is not None:
                found[first, second].append((a, b))
    index = {names: np.asarray(sorted(rows), dtype=np.int64).reshape(-1, 2) for names, rows in sorted(found.items())}
    return TrainSet(modalities, index, tuple(snapshot.classes))


def _modality(name: str, windows: list[Window], label_B: NDArray[np.int64], grid: Grid) -> ModalityWindows:
    first = windows[0].spec
    for w in windows:
        if contract(w.spec) != contract(first):
            raise DataError(
                f"{w.spec.id} is {contract(w.spec)}, {first.id} is {contract(first)}",
                where=f"modality {name}",
                fix="give sensors that differ modalities of their own",
            )
    return ModalityWindows(
        modality=name,
        rate_hz=first.rate_hz,
        x_BCN=np.stack([w.x_CN for w in windows]).astype(np.float32),
        start_ns_B=np.asarray([w.start_ns for w in windows], dtype=np.int64),
        group_B=np.asarray([w.spec.id.site for w in windows], dtype=np.str_),
        sequence_B=_sequences(windows, grid),
        label_B=label_B,
    )


def contract(spec: StreamSpec) -> tuple[str, float, tuple[str, ...], tuple[str, ...]]:
    """What streams that share an encoder must have in common: kind, rate, channels, units."""
    return spec.kind, spec.rate_hz, spec.channels, spec.units


def _sequences(windows: list[Window], grid: Grid) -> NDArray[np.int64]:
    """One number a contiguous recording: it ends where the next window is another stream's or not the next one."""
    out, current = [], -1
    last: tuple[StreamId, int] | None = None
    for w in windows:
        if last != (w.spec.id, w.start_ns - grid.hop_ns):
            current += 1
        out.append(current)
        last = (w.spec.id, w.start_ns)
    return np.asarray(out, dtype=np.int64)


def _by_node(labels: Iterable[LabelInterval]) -> _Labels:
    out: _Labels = defaultdict(list)
    for label in labels:
        out[label.site, label.node].append(label)
    return {node: sorted(rows, key=lambda i: (i.start_ns, i.end_ns, i.label)) for node, rows in out.items()}


def _label_rows(windows: list[Window], labels: _Labels, snapshot: Snapshot) -> NDArray[np.int64]:
    """Class index a window, -1 where no class covers enough of it."""
    index = {name: i for i, name in enumerate(snapshot.classes)}
    out = np.full(len(windows), UNKNOWN_LABEL, dtype=np.int64)
    at = 0  # windows of one node come in order of time, so no interval is looked at twice in vain
    node: tuple[str, str, str] | None = None
    for row, w in enumerate(windows):
        here = (w.spec.id.site, w.spec.id.node, w.spec.id.stream)
        if here != node:
            node, at = here, 0
        intervals = labels.get(here[:2], [])
        end_ns = w.start_ns + snapshot.grid.window_ns
        while at < len(intervals) and intervals[at].end_ns <= w.start_ns:
            at += 1
        overlap: dict[str, set[tuple[int, int]]] = defaultdict(set)
        for interval in intervals[at:]:
            if interval.start_ns >= end_ns:
                break
            overlap[interval.label].add((max(interval.start_ns, w.start_ns), min(interval.end_ns, end_ns)))
        share = {name: _covered(spans) / snapshot.grid.window_ns for name, spans in overlap.items() if name in index}
        if share:
            best = max(sorted(share), key=lambda name: share[name])
            if share[best] >= MIN_LABEL_SHARE:
                out[row] = index[best]
    return out


def _covered(spans: Iterable[tuple[int, int]]) -> int:
    """Length of the union of `spans`: the same interval may stand in the lake for both purposes."""
    total, reached = 0, -1
    for start, end in sorted(spans):
        start = max(start, reached)
        if end > start:
            total, reached = total + end - start, end
    return total
