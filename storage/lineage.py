"""Which old table versions somebody still needs: those that a model which was released has learned from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from infomae_stream.errors import LakeError
from infomae_stream.telemetry import EventLog
from storage.lake import Lake
from storage.query import read_runs
from storage.schemas import TABLES

Pins = dict[str, tuple[int, ...]]
_log = EventLog("infomae.lineage")


def pinned_versions(lake: Lake, *, work_dir: Path | None = None, newest: int = 0) -> Pins:
    """Versions by table that must stay readable: those of promoted runs, and of runs that have not ended yet.

    Candidates that were not promoted, and failed runs, pin nothing: no bundle names them. work_dir: the aligner's
    folder; a run there (`runs/<number>/snapshot.json`) that has no row in the table `runs` is under way. newest: only
    so many of the newest promoted runs (0: all of them). Raises LakeError.
    """
    runs = read_runs(lake)
    snapshots = [run.get("snapshot") for run in runs if run.get("outcome") == "promoted"][-newest:]
    if work_dir is not None:
        ended = {str(run.get("run")) for run in runs}
        paths = sorted(work_dir.glob("runs/*/snapshot.json"))
        snapshots += [_read(path) for path in paths if path.parent.name not in ended]
    found: dict[str, set[int]] = {}
    for snapshot in snapshots:
        tables = snapshot.get("tables", {}) if isinstance(snapshot, dict) else {}
        for table, version in tables.items():
            if table in TABLES:
                found.setdefault(table, set()).add(int(version))
    return {table: tuple(sorted(versions)) for table, versions in found.items()}


def joined(pins: Iterable[Pins]) -> Pins:
    found: dict[str, set[int]] = {}
    for some in pins:
        for table, versions in some.items():
            found.setdefault(table, set()).update(versions)
    return {table: tuple(sorted(versions)) for table, versions in found.items()}


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        # Vacuum must not guess what a run under way may need.
        raise LakeError(f"a snapshot cannot be read: {e}", where=str(path), fix="remove the run's folder") from e
