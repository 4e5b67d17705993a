"""What the lake holds under given identities. Plain pyarrow, so that ingest does not carry DuckDB's memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infomae_stream.errors import LakeError
from infomae_stream.stored_chunk import StoredChunk
from infomae_stream.types import Chunk, Detection, Gap
from storage.identities import OutboxKey
from storage.rows import record_crc32
from storage.schemas import RECORD_TABLES
from storage.segments import identity_ranges, live_files
from storage.torn_files import whole_files

if TYPE_CHECKING:
    from storage.lake import Lake

Identity = tuple[OutboxKey, int]
# Table, stream ("" for detections), start_ns, end_ns, crc32: equal for a record that came twice, and only then.
Content = tuple[str, str, int, int, int]


def content_of(record: Chunk | StoredChunk | Gap | Detection) -> Content:
    """What tells a record sent again from another record under the same identity."""
    if isinstance(record, Detection):
        return "detections", "", record.start_ns, record.end_ns, record_crc32(record)
    table, stream = ("gaps", record.stream) if isinstance(record, Gap) else ("chunks", record.spec.id)
    return table, stream.stream, record.start_ns, record.end_ns, record_crc32(record)


def stored_contents(lake: Lake, wanted: Iterable[Identity]) -> dict[Identity, set[Content]]:
    """Contents of those of `wanted` that are stored. Reads only files that can hold them. Raises LakeError."""
    seqs_of: dict[OutboxKey, list[int]] = {}
    for key, seq in wanted:
        seqs_of.setdefault(key, []).append(seq)
    found: dict[Identity, set[Content]] = {}
    try:
        for table in RECORD_TABLES if seqs_of else ():
            for file in _files_with(lake.table_path(table), lake.version(table), seqs_of):
                for row in _rows(file, table, sorted({seq for seqs in seqs_of.values() for seq in seqs})):
                    key = (row["site"], row["node"], row["epoch"])
                    if row["seq"] in seqs_of.get(key, ()):
                        content = (table, row.get("stream", ""), row["start_ns"], row["end_ns"], row["crc32"])
                        found.setdefault((key, row["seq"]), set()).add(content)
    except (OSError, ValueError) as e:
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
        for file in _files_with(lake.table_path("quarantine"), lake.version("quarantine"), seqs_of):
            for key, first, last in identity_ranges(file):
                found |= {(key, seq) for seq in seqs_of.get(key, ()) if first <= seq <= last}
    except (OSError, ValueError) as e:
        raise LakeError(f"the quarantine cannot be read: {e}", where=str(lake.path)) from e
    return found


def _files_with(table: Path, version: int, seqs_of: dict[OutboxKey, list[int]]) -> Iterator[Path]:
    """Files whose statistics allow rows of these outboxes."""
    groups = []
    for (site, node, epoch), seqs in seqs_of.items():
        place = [("site", "=", site), ("node", "=", node), ("epoch", "=", epoch)]
        groups.append([*place, ("seq", ">=", min(seqs)), ("seq", "<=", max(seqs))])
    yield from whole_files(table.name, live_files(table, version, groups))


def _rows(file: Path, table: str, seqs: list[int]) -> list[dict[str, Any]]:
    stream = [] if table == "detections" else ["stream"]
    columns = ["site", "node", *stream, "epoch", "seq", "start_ns", "end_ns", "crc32"]
    rows = pq.ParquetFile(file).read(columns)
    return list(rows.filter(pc.is_in(rows["seq"], pa.array(seqs, pa.int64()))).to_pylist())
