"""What the lake holds under given identities. Plain pyarrow, so that ingest does not carry DuckDB's memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from infomae_stream.errors import LakeError
from infomae_stream.types import Chunk, Detection, Gap
from storage.identities import OutboxKey
from storage.lake import Lake
from storage.rows import record_crc32
from storage.schemas import RECORD_TABLES

Identity = tuple[OutboxKey, int]
# Table, stream ("" for detections), start_ns, end_ns, crc32: equal for a record that came twice, and only then.
Content = tuple[str, str, int, int, int]


def content_of(record: Chunk | Gap | Detection) -> Content:
    """What tells a record sent again from another record under the same identity."""
    if isinstance(record, Detection):
        return "detections", "", record.start_ns, record.end_ns, record_crc32(record)
    table, stream = ("chunks", record.spec.id) if isinstance(record, Chunk) else ("gaps", record.stream)
    return table, stream.stream, record.start_ns, record.end_ns, record_crc32(record)


def stored_contents(lake: Lake, wanted: Iterable[Identity]) -> dict[Identity, set[Content]]:
    """Contents of those of `wanted` that are stored. Reads only files that can hold them. Raises LakeError."""
    seqs_of: dict[OutboxKey, list[int]] = {}
    for key, seq in wanted:
        seqs_of.setdefault(key, []).append(seq)
    found: dict[Identity, set[Content]] = {}
    try:
        for table in RECORD_TABLES if seqs_of else ():
            for file, keys in _files_with(lake.table_path(table), lake.version(table), seqs_of):
                for row in _rows(file, table, sorted({seq for key in keys for seq in seqs_of[key]})):
                    key = (row["site"], row["node"], row["epoch"])
                    if row["seq"] in seqs_of.get(key, ()):
                        content = (table, row.get("stream", ""), row["start_ns"], row["end_ns"], row["crc32"])
                        found.setdefault((key, row["seq"]), set()).add(content)
    except (OSError, ValueError, DeltaError) as e:
        raise LakeError(f"stored records cannot be read: {e}", where=str(lake.path)) from e
    return found


def quarantined(lake: Lake, wanted: Iterable[Identity]) -> set[Identity]:
    """Those of `wanted` that no reader sees any more. Raises LakeError."""
    seqs_of: dict[OutboxKey, list[int]] = {}
    for key, seq in wanted:
        seqs_of.setdefault(key, []).append(seq)
    found: set[Identity] = set()
    if not seqs_of or lake.version("quarantine") == 0:
        return found
    try:
        for file, keys in _files_with(lake.table_path("quarantine"), lake.version("quarantine"), seqs_of):
            rows = pq.read_table(file, columns=["site", "node", "epoch", "seq"], partitioning=None).to_pylist()
            stored = {((row["site"], row["node"], row["epoch"]), row["seq"]) for row in rows}
            found |= stored & {(key, seq) for key in keys for seq in seqs_of[key]}
    except (OSError, ValueError, DeltaError) as e:
        raise LakeError(f"the quarantine cannot be read: {e}", where=str(lake.path)) from e
    return found


def _files_with(
    table: Path, version: int, seqs_of: dict[OutboxKey, list[int]]
) -> Iterator[tuple[Path, list[OutboxKey]]]:
    """Files whose statistics allow rows of these outboxes, and of which."""
    files = pa.table(DeltaTable(table, version=version).get_add_actions(flatten=True))
    if files.num_rows == 0:
        return
    names = ("site", "node", "epoch", "seq")
    columns = ["path", *(f"{bound}.{name}" for name in names for bound in ("min", "max"))]
    for row in files.select(columns).to_pylist():
        keys = [
            key
            for key, seqs in seqs_of.items()
            if all(row[f"min.{n}"] <= part <= row[f"max.{n}"] for n, part in zip(names, key, strict=False))
            and row["min.seq"] <= max(seqs)
            and row["max.seq"] >= min(seqs)
        ]
        if keys:
            yield table / row["path"], keys


def _rows(file: Path, table: str, seqs: list[int]) -> list[dict[str, Any]]:
    stream = [] if table == "detections" else ["stream"]
    columns = ["site", "node", *stream, "epoch", "seq", "start_ns", "end_ns", "crc32"]
    rows = pq.read_table(file, columns=columns, partitioning=None)
    return list(rows.filter(pc.is_in(rows["seq"], pa.array(seqs, pa.int64()))).to_pylist())
