"""Parquet segments: written beside their place, fsynced, renamed, folder fsynced; then fit for a commit."""

from __future__ import annotations

import datetime
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from infomae_stream.errors import LakeError
from infomae_stream.failpoints import reached
from infomae_stream.folders import make_folders, sync_path
from infomae_stream.wire import seq_ranges
from storage.durable import temporary_beside
from storage.identities import OutboxKey
from storage.schemas import TableLayout

# zstd level 1 costs a segment of audio some 20 us of CPU for 16 KB; compaction compresses what this left as it was.
WORTH_COMPRESSING: Final = 0.8
# Segments so large come from an ingest that catches up, and nobody waits for their rows. Kept in the page cache they
# would push out what others read, and each needs new memory: 35 us for 16 KB where the machine is virtual.
UNCACHED_BYTES: Final = 16_000_000
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
    make_folders(folder)
    path = folder / f"part-{uuid.uuid4().hex}.parquet"
    ordered = rows.select(layout.file_schema.names)
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
    """Each partition's rows in the order of a segment, without a copy where the rows came in that order."""
    order = [*layout.partition_by, *layout.sort_by]
    indices = pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in order])
    if not np.array_equal(indices.to_numpy(), np.arange(rows.num_rows)):
        rows = rows.take(indices)
    if not layout.partition_by:
        return [({}, rows)]
    begins = np.zeros(rows.num_rows, np.bool_)
    begins[:1] = True
    for name in layout.partition_by:
        codes = rows[name].combine_chunks().dictionary_encode().indices.to_numpy()
        begins[1:] |= codes[1:] != codes[:-1]
    starts = [int(start) for start in np.flatnonzero(begins)]
    return [
        ({name: _as_text(rows[name][start].as_py()) for name in layout.partition_by}, rows.slice(start, end - start))
        for start, end in zip(starts, [*starts[1:], rows.num_rows], strict=True)
    ]


def _as_text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime.date) else str(value)


def _write_durably(path: Path, layout: TableLayout, rows: pa.Table) -> None:
    temporary = temporary_beside(path)
    texts = [f.name for f in rows.schema if pa.types.is_string(f.type)]
    # zstd makes a context for each page, which for small pages costs more than all the rest of them.
    compression = {name: "zstd" if name == "times" else "lz4" for name in rows.schema.names}
    if "samples" in compression:
        compression["samples"] = _codec_of(rows["samples"])
    try:
        with temporary.open("xb") as f:
            pq.write_table(
                rows,
                f,
                row_group_size=layout.row_group_rows,
                compression=compression,
                compression_level={name: 1 for name, codec in compression.items() if codec == "zstd"},
                use_dictionary=texts,
                write_statistics=[*layout.stats],
            )
            f.flush()
            reached("segment.before_sync")
            os.fsync(f.fileno())
            if f.tell() >= UNCACHED_BYTES and hasattr(os, "posix_fadvise"):
                with suppress(OSError):
                    os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        reached("segment.before_rename")
        temporary.rename(path)
        reached("segment.after_rename")
    finally:
        temporary.unlink(missing_ok=True)
    sync_path(path.parent)


def _codec_of(samples: pa.ChunkedArray) -> str:
    """zstd where it saves enough, by a try on one chunk in the middle; raw audio is as good as incompressible."""
    one = samples[len(samples) // 2].as_buffer()
    packed = pa.Codec("zstd", compression_level=1).compress(one)
    return "zstd" if packed.size <= WORTH_COMPRESSING * one.size else "none"


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
