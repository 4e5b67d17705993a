"""Rows of several sorted files into few sorted files, a few megabytes at a time: for compaction and retention.

The sort columns of all inputs are read first and say where every row goes. The rows themselves then follow in batches;
because each input is sorted by the same columns, a batch needs one stretch of each input, and a row group is decoded
once. What is in memory: the keys, one row group an input, one batch.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infomae_stream.folders import make_folders
from storage.delta_log import Action
from storage.durable import new_file
from storage.log_files import LiveFile
from storage.schemas import RECORD_TABLES, TableLayout

_BATCH_BYTES: Final = 4_000_000
# Of a row group, decoded: what a narrow read decodes. Smaller rows come in larger groups, up to _MOST_GROUP_ROWS, for
# the footer of a file with thousands of groups costs a narrow read more than the group itself.
_GROUP_BYTES: Final = 1_000_000
_MOST_GROUP_ROWS: Final = 8192
_FILE, _ROW = "__file", "__row"  # where a key comes from
# Rows of the same identity and content are copies of one record; other contents are kept, as evidence.
COPY_COLUMNS: Final = ("site", "node", "stream", "epoch", "seq", "start_ns", "end_ns", "crc32")

Choose = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True, slots=True)
class Merged:
    """`adds`: actions for files that are durable and in no commit yet. `dropped`: rows that were left out."""

    adds: list[Action]
    rows: int
    dropped: int
    bytes_written: int


def decoded_group_bytes(file: Path) -> int:
    """What the largest row group of `file` takes in memory. Raises OSError or ValueError."""
    metadata = pq.read_metadata(file)
    return max((metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)), default=0)


def key_columns(table: str, layout: TableLayout) -> list[str]:
    copies = COPY_COLUMNS if table in RECORD_TABLES else ()
    return [n for n in layout.file_schema.names if n in {*layout.sort_by, *layout.stats, *copies}]


def without_copies(keys: pa.Table) -> pa.Table:
    """The first of all rows that are copies of one record; their order stays."""
    columns = [name for name in COPY_COLUMNS if name in keys.column_names]
    numbered = keys.append_column("__at", pa.array(np.arange(keys.num_rows)))
    firsts = numbered.group_by(columns, use_threads=False).aggregate([("__at", "min")])["__at_min"].to_numpy()
    return keys if len(firsts) == keys.num_rows else keys.take(pa.array(np.sort(firsts)))


def merge_files(
    root: Path,
    layout: TableLayout,
    files: Sequence[LiveFile],
    *,
    keys: Sequence[str],
    choose: Choose,
    target_bytes: int,
    now_ns: int,
) -> Merged:
    """Write the rows of `files` (one partition of the table at `root`) that `choose` keeps, in the layout's order.

    choose(keys): of the sorted key table (columns `keys` and two more) the rows to keep, in the same order.
    Raises OSError or ValueError; then nothing it wrote is left.
    """
    inputs = [_Input(root / file.path) for file in files]
    table = pa.concat_tables([part.keys(number, keys) for number, part in enumerate(inputs)])
    order = [(name, "ascending") for name in (*layout.sort_by, _FILE, _ROW)]
    kept = choose(table.sort_by(order))
    row_bytes = sum(part.decoded_bytes for part in inputs) / max(1, table.num_rows)
    rows_a_group = max(layout.row_group_rows, min(_MOST_GROUP_ROWS, int(_GROUP_BYTES / max(1.0, row_bytes))))
    # Whole groups, so that only the last of a file is short.
    rows_a_batch = rows_a_group * max(1, int(_BATCH_BYTES / max(1.0, row_bytes) / rows_a_group))
    batches = (
        _gather(inputs, kept.slice(start, rows_a_batch), layout) for start in range(0, kept.num_rows, rows_a_batch)
    )
    adds = _write(root, layout, dict(files[0].partition), batches, rows_a_group, target_bytes, now_ns)
    written = sum(action["add"]["size"] for action in adds)
    return Merged(adds, kept.num_rows, table.num_rows - kept.num_rows, written)


class _Input:
    """One file; keeps the row groups of the newest request."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path)
        metadata = self._file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self.decoded_bytes = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        self._ends = np.cumsum(sizes)
        self._groups: dict[int, pa.Table] = {}

    def keys(self, number: int, columns: Sequence[str]) -> pa.Table:
        table = self._file.read(list(columns), use_threads=False)
        rows = np.arange(table.num_rows)
        return table.append_column(_FILE, pa.array(np.full(len(rows), number))).append_column(_ROW, pa.array(rows))

    def rows(self, first: int, last: int, layout: TableLayout) -> tuple[int, pa.Table]:
        """A piece of the file that holds the rows first..last, and the number of its first row."""
        low, high = (int(i) for i in np.searchsorted(self._ends, [first, last], side="right"))
        wanted = range(low, high + 1)
        self._groups = {
            i: self._groups[i]
            if i in self._groups
            else layout.of_today(self._file.read_row_group(i, use_threads=False))
            for i in wanted
        }
        start = int(self._ends[low - 1]) if low else 0
        piece = pa.concat_tables(list(self._groups.values()))
        return first, piece.slice(first - start, last - first + 1)


def _gather(inputs: Sequence[_Input], keys: pa.Table, layout: TableLayout) -> pa.Table:
    """The whole rows that `keys` name, in its order."""
    number, row = (np.asarray(keys[name].to_numpy()) for name in (_FILE, _ROW))
    at: NDArray[np.int64] = np.empty(len(row), dtype=np.int64)
    pieces, offset = [], 0
    for i in np.unique(number):
        mine = number == i
        first, piece = inputs[i].rows(int(row[mine].min()), int(row[mine].max()), layout)
        at[mine] = row[mine] - first + offset
        offset += piece.num_rows
        pieces.append(piece)
    return pa.concat_tables(pieces).take(pa.array(at)).combine_chunks()


def _write(
    root: Path,
    layout: TableLayout,
    partition: dict[str, str],
    batches: Iterator[pa.Table],
    rows_a_group: int,
    target_bytes: int,
    now_ns: int,
) -> list[Action]:
    """`batches` into files of one partition, a new one whenever the last has reached its size; their actions."""
    folder = root.joinpath(*(f"{name}={value}" for name, value in partition.items()))
    make_folders(folder)
    adds: list[Action] = []
    batch = next(batches, None)
    try:
        while batch is not None:
            path, bounds = folder / f"part-{uuid.uuid4().hex}.parquet", _Bounds(layout.stats)
            with (
                new_file(path) as f,
                pq.ParquetWriter(f, layout.file_schema, **layout.parquet_options()) as writer,
            ):
                while batch is not None and f.tell() < target_bytes:
                    writer.write_table(batch, row_group_size=rows_a_group)
                    bounds.take(batch)
                    batch = next(batches, None)
            adds.append({"add": _add(path, root, partition, bounds.stats(), now_ns)})
    except BaseException:
        for action in adds:
            (root / action["add"]["path"]).unlink(missing_ok=True)
        raise
    return adds


def _add(path: Path, root: Path, partition: dict[str, str], stats: dict[str, Any], now_ns: int) -> dict[str, Any]:
    return {
        "path": str(path.relative_to(root)),
        "partitionValues": partition,
        "size": path.stat().st_size,
        "modificationTime": now_ns // 1_000_000,
        "dataChange": False,  # the rows were in the table before
        "stats": json.dumps(stats),
    }


class _Bounds:
    """Statistics of a file for the log, gathered while it is written."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._least: dict[str, Any] = dict.fromkeys(columns)
        self._greatest: dict[str, Any] = dict.fromkeys(columns)
        self._nulls = dict.fromkeys(columns, 0)
        self._rows = 0

    def take(self, rows: pa.Table) -> None:
        self._rows += rows.num_rows
        for name in self._nulls:
            found = pc.min_max(rows[name]).as_py()
            low, high = found["min"], found["max"]
            if low is not None:
                self._least[name] = low if self._least[name] is None else min(low, self._least[name])
                self._greatest[name] = high if self._greatest[name] is None else max(high, self._greatest[name])
            self._nulls[name] += rows[name].null_count

    def stats(self) -> dict[str, Any]:
        return {
            "numRecords": self._rows,
            "minValues": self._least,
            "maxValues": self._greatest,
            "nullCount": self._nulls,
        }
