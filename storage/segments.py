"""Parquet segments: written beside their place, fsynced, renamed, folder fsynced; then fit for a commit."""

from __future__ import annotations

import datetime
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from infomae_stream.errors import LakeError
from infomae_stream.failpoints import reached
from infomae_stream.wire import seq_ranges
from storage.durable import make_folders, sync_path, temporary_beside
from storage.identities import OutboxKey
from storage.schemas import TableLayout

FileFilter = Sequence[Sequence[tuple[str, str, Any]]]


def write_segments(table: Path, layout: TableLayout, rows: pa.Table, now_ns: int) -> list[dict[str, Any]]:
    """Write `rows` (schema `layout.schema`), one file a partition; return the `add` actions for the log.

    Every file is durable when this returns. Nothing reads it before its action is committed; names are random, so
    that a second attempt never touches a file that may be in a commit. Raises OSError; then no temporary stays.
    """
    actions: list[dict[str, Any]] = []
    try:
        for values, part in _partitions(layout, rows):
            actions.append({"add": _write_segment(table, layout, values, part, now_ns)})
    except OSError:
        remove_segments(table, actions)
        raise
    return actions


def remove_segments(table: Path, actions: Sequence[dict[str, Any]]) -> None:
    """Remove files that no commit names."""
    for action in actions:
        (table / action["add"]["path"]).unlink(missing_ok=True)


def live_files(table: Path, version: int, may_hold: FileFilter = ()) -> list[Path]:
    """The files that make up `version`; of those, the ones that can hold such rows as the log's statistics tell.

    `may_hold`: groups of (column, operator, value), joined by OR, each group's conditions by AND; empty means all.
    Raises LakeError.
    """
    try:
        uris = DeltaTable(table, version=version).file_uris(file_pruning_predicate=[[*g] for g in may_hold] or None)
    except DeltaError as e:
        raise LakeError(f"version {version} cannot be read: {e}", where=str(table)) from e
    # deltalake gives the folder's name percent-encoded; the names below the table are ours, and plain.
    return [table / uri.rpartition(f"/{table.name}/")[2] for uri in uris]


def identity_ranges(file: Path) -> Iterator[tuple[OutboxKey, int, int]]:
    """What outboxes' sequence numbers a segment holds, as inclusive ranges. Raises OSError or ValueError."""
    columns = pq.ParquetFile(file).read(["site", "node", "epoch", "seq"])
    seqs: dict[OutboxKey, list[int]] = {}
    for site, node, epoch, seq in zip(*(column.to_pylist() for column in columns.columns), strict=True):
        seqs.setdefault((site, node, epoch), []).append(seq)
    for key, numbers in seqs.items():
        for first, last in seq_ranges(numbers):
            yield key, first, last


def _write_segment(
    table: Path, layout: TableLayout, values: dict[str, str], rows: pa.Table, now_ns: int
) -> dict[str, Any]:
    folder = table.joinpath(*(f"{name}={value}" for name, value in values.items()))
    make_folders(folder, table)
    path = folder / f"part-{uuid.uuid4().hex}.parquet"
    ordered = rows.sort_by([(name, "ascending") for name in layout.sort_by]).select(layout.file_schema.names)
    _write_durably(path, layout, ordered)
    return {
        "path": str(path.relative_to(table)),
        "partitionValues": values,
        "size": path.stat().st_size,
        "modificationTime": now_ns // 1_000_000,
        "dataChange": True,
        "stats": json.dumps(_stats(layout, ordered)),
    }


def _partitions(layout: TableLayout, rows: pa.Table) -> list[tuple[dict[str, str], pa.Table]]:
    if not layout.partition_by:
        return [({}, rows)]
    keys = rows.select(layout.partition_by).group_by(list(layout.partition_by)).aggregate([]).to_pylist()
    found = []
    for key in sorted(keys, key=str):
        mask = None
        for name, value in key.items():
            equal = pc.equal(rows[name], pa.scalar(value, rows.schema.field(name).type))
            mask = equal if mask is None else pc.and_(mask, equal)
        found.append(({name: _as_text(value) for name, value in key.items()}, rows.filter(mask)))
    return found


def _as_text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime.date) else str(value)


def _write_durably(path: Path, layout: TableLayout, rows: pa.Table) -> None:
    temporary = temporary_beside(path)
    texts = [f.name for f in rows.schema if pa.types.is_string(f.type)]
    try:
        with temporary.open("xb") as f:
            pq.write_table(
                rows,
                f,
                row_group_size=layout.row_group_rows,
                compression="zstd",
                compression_level=1,
                use_dictionary=texts,
                write_statistics=[*layout.stats],
            )
            f.flush()
            reached("segment.before_sync")
            os.fsync(f.fileno())
        reached("segment.before_rename")
        temporary.rename(path)
        reached("segment.after_rename")
    finally:
        temporary.unlink(missing_ok=True)
    sync_path(path.parent)


def _stats(layout: TableLayout, rows: pa.Table) -> dict[str, Any]:
    least, greatest = {}, {}
    for name in layout.stats:
        bounds = pc.min_max(rows[name]).as_py()
        least[name], greatest[name] = bounds["min"], bounds["max"]
    return {
        "numRecords": rows.num_rows,
        "minValues": least,
        "maxValues": greatest,
        "nullCount": {name: rows[name].null_count for name in layout.stats},
    }
