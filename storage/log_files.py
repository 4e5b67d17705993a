"""The files of a table version as its log describes them, and the commit that puts other files in their place."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from infomae_stream.errors import LakeError
from storage.delta_log import Action, DeltaLog
from storage.schemas import TableLayout
from storage.segments import remove_segments

_MAX_RACES: Final = 50


@dataclass(frozen=True, slots=True)
class LiveFile:
    """One file of a version. `path` is below the table; `least` and `greatest` hold the layout's `stats` columns.

    modified_ms: when it was committed, Unix milliseconds by the writer's clock.
    """

    path: str
    partition: tuple[tuple[str, str], ...]
    size: int
    rows: int
    modified_ms: int
    least: dict[str, Any]
    greatest: dict[str, Any]

    def remove_action(self, now_ns: int, *, data_change: bool) -> Action:
        return {
            "remove": {
                "path": self.path,
                "deletionTimestamp": now_ns // 1_000_000,
                "dataChange": data_change,
                "extendedFileMetadata": True,
                "partitionValues": dict(self.partition),
                "size": self.size,
            }
        }


def live_adds(log: DeltaLog, layout: TableLayout, version: int) -> list[LiveFile]:
    """The files of `version`, sorted by path. Raises LakeError."""
    try:
        actions = pa.table(DeltaTable(log.table, version=version).get_add_actions(flatten=True))
    except DeltaError as e:
        raise LakeError(f"version {version} cannot be read: {e}", where=str(log.table)) from e
    bounds = {f"{side}.{name}" for side in ("min", "max") for name in layout.stats}
    wanted = {"path", "size_bytes", "num_records", "modification_time", *bounds}
    columns = [name for name in actions.column_names if name in wanted or name.startswith("partition.")]
    return sorted((_live_file(row, layout) for row in actions.select(columns).to_pylist()), key=lambda f: f.path)


def replace_files(
    log: DeltaLog, at_version: int, old: Sequence[LiveFile], changes: Sequence[Action], now_ns: int, operation: str
) -> int | None:
    """Commit `changes`, made for the files `old` of `at_version`; None when another writer took one of them first.

    Appends of others do not matter: the commit goes behind them. Files that `changes` add are removed from the disk
    when nothing was committed. Returns the new version. Raises LakeError when the disk refuses.
    """
    adds = [action for action in changes if "add" in action]
    paths = {file.path for file in old}
    seen = at_version
    try:
        for _ in range(_MAX_RACES):
            version = log.version()
            taken = {a["remove"]["path"] for a in log.actions(seen + 1, version) if "remove" in a}
            if taken & paths:
                remove_segments(log.table, adds)
                return None
            seen = version
            if log.commit_or_clear(version + 1, changes, now_ns, operation=operation):
                return version + 1
    except OSError as e:
        raise LakeError(f"cannot write: {e.strerror or e}", where=str(log.table)) from e
    remove_segments(log.table, adds)
    return None


def _live_file(row: dict[str, Any], layout: TableLayout) -> LiveFile:
    return LiveFile(
        path=row["path"],
        partition=tuple((name, _as_text(row[f"partition.{name}"])) for name in layout.partition_by),
        size=row["size_bytes"],
        rows=row.get("num_records") or 0,
        modified_ms=row["modification_time"],
        least={name: row.get(f"min.{name}") for name in layout.stats},
        greatest={name: row.get(f"max.{name}") for name in layout.stats},
    )


def _as_text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime.date) else str(value)
