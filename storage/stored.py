"""What the lake holds under given identities. Plain pyarrow, so that ingest does not carry DuckDB's memory.

A record sent again says when it began, and its copy in the lake says the same. So its copy is looked for first in the
files of that time: few, however long the lake. Only an identity without an equal copy there (a conflict, or what
retention took) is looked for everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infomae_stream.errors import LakeError
from infomae_stream.stored_chunk import StoredChunk
from infomae_stream.types import Chunk, Detection, Gap
from storage.identities import OutboxKey, SeqRanges
from storage.rows import record_crc32
from storage.schemas import RECORD_TABLES
from storage.segments import FileFilter, live_files
from storage.torn_files import whole_files

if TYPE_CHECKING:
    from storage.lake import Lake

Identity = tuple[OutboxKey, int]
# Table, stream ("" for detections), start_ns, end_ns, crc32: equal for a record that came twice, and only then.
Content = tuple[str, str, int, int, int]

# The log's statistics are asked about each group in turn for each file; beyond this about all outboxes at once.
_MOST_GROUPS: Final = 64
_OUTBOX: Final = ("site", "node", "epoch")
_Bounds = Mapping[str, tuple[int, int]]  # column: least and greatest value wanted


@dataclass(slots=True)
class Found:
    """`contents`: what is stored under an identity. `retired`: retention took it, and nothing is left to compare with.

    An identity that is in neither was never stored, or its file is torn.
    """

    contents: dict[Identity, set[Content]] = field(default_factory=dict)
    retired: set[Identity] = field(default_factory=set)


def content_of(record: Chunk | StoredChunk | Gap | Detection) -> Content:
    """What tells a record sent again from another record under the same identity."""
    if isinstance(record, Detection):
        return "detections", "", record.start_ns, record.end_ns, record_crc32(record)
    table, stream = ("gaps", record.stream) if isinstance(record, Gap) else ("chunks", record.spec.id)
    return table, stream.stream, record.start_ns, record.end_ns, record_crc32(record)


def look_up(lake: Lake, wanted: Mapping[Identity, Collection[Content]]) -> Found:
    """What the lake has under these identities, each given with the contents that it ought to have. Raises LakeError.

    Enough to judge by, and not always all: who is found with a content of that time is not looked for elsewhere.
    """
    found = Found()
    try:
        for table in RECORD_TABLES:
            starts = [content[2] for contents in wanted.values() for content in contents if content[0] == table]
            if starts:
                spans = _spans(starts)
                groups = [[("start_ns", ">=", first), ("start_ns", "<=", last)] for first, last in spans]
                _search(lake, table, groups, {"start_ns": (spans[0][0], spans[-1][1])}, wanted.keys(), found)
        left = {identity for identity in wanted if identity not in found.contents}
        found.retired = _retired(lake, left)
        left -= found.retired
        for table in RECORD_TABLES if left else ():
            _search(lake, table, _places(left), {}, left, found)
    except (OSError, ValueError) as e:
        raise LakeError(f"stored records cannot be read: {e}", where=str(lake.path)) from e
    return found


def quarantined(lake: Lake, wanted: Collection[Identity]) -> set[Identity]:
    """Those of `wanted` that no reader sees any more. Raises LakeError."""
    found: set[Identity] = set()
    try:
        for rows in _tables(lake, "quarantine", _places(wanted), {}, wanted, [*_OUTBOX, "seq"]):
            found.update(((site, node, epoch), seq) for site, node, epoch, seq in rows)
    except (OSError, ValueError) as e:
        raise LakeError(f"the quarantine cannot be read: {e}", where=str(lake.path)) from e
    return found & set(wanted)


def _retired(lake: Lake, wanted: Collection[Identity]) -> set[Identity]:
    ranges: dict[OutboxKey, SeqRanges] = {}
    places = _places(wanted, "seq_first", "seq_last")
    for rows in _tables(lake, "retired", places, {}, wanted, [*_OUTBOX, "seq_first", "seq_last"]):
        for site, node, epoch, first, last in rows:
            ranges.setdefault((site, node, epoch), SeqRanges()).add(first, last)
    return {identity for identity in wanted if identity[0] in ranges and identity[1] in ranges[identity[0]]}


def _search(
    lake: Lake, table: str, files: FileFilter, bounds: _Bounds, wanted: Collection[Identity], found: Found
) -> None:
    """Add to `found` what the `files` of a table hold under `wanted` within `bounds`."""
    stream = [] if table == "detections" else ["stream"]
    columns = [*_OUTBOX, "seq", "start_ns", "end_ns", "crc32", *stream]
    for rows in _tables(lake, table, files, bounds, wanted, columns):
        for site, node, epoch, seq, start_ns, end_ns, crc32, *name in rows:
            identity = (site, node, epoch), seq
            if identity in wanted:
                content = (table, name[0] if name else "", start_ns, end_ns, crc32)
                found.contents.setdefault(identity, set()).add(content)


def _tables(
    lake: Lake, table: str, files: FileFilter, bounds: _Bounds, wanted: Collection[Identity], columns: list[str]
) -> Iterator[Iterable[tuple[Any, ...]]]:
    """Rows of each of the `files` that may belong to `wanted`; all that do are among them."""
    if not wanted or (table not in RECORD_TABLES and lake.version(table) == 0):
        return
    nodes = pa.array(sorted({key[1] for key, _ in wanted}), pa.string())
    seqs = pa.array(sorted({seq for _, seq in wanted}), pa.int64())
    if "seq" in columns:
        bounds = {**bounds, "seq": (seqs[0].as_py(), seqs[-1].as_py())}
    for file in whole_files(table, live_files(lake.table_path(table), lake.version(table), files)):
        rows = _read(file, columns, bounds)
        mask = pc.is_in(rows["node"], nodes)
        if "seq" in columns:
            mask = pc.and_(mask, pc.is_in(rows["seq"], seqs))
        yield zip(*(column.to_pylist() for column in rows.filter(mask).columns), strict=True)


def _read(file: Path, columns: list[str], bounds: _Bounds) -> pa.Table:
    """Those row groups whose statistics allow rows within `bounds`; a compacted file has thousands."""
    with pq.ParquetFile(file) as parquet:
        place = {parquet.schema.column(i).path: i for i in range(len(parquet.schema))}

        def may_hold(group: int) -> bool:
            for name, (least, greatest) in bounds.items():
                told = parquet.metadata.row_group(group).column(place[name]).statistics
                if told is not None and told.has_min_max and not (told.min <= greatest and told.max >= least):
                    return False
            return True

        groups = [group for group in range(parquet.num_row_groups) if may_hold(group)]
        return parquet.read_row_groups(groups, columns)


def _places(wanted: Collection[Identity], first: str = "seq", last: str = "seq") -> FileFilter:
    """Files whose statistics allow rows of these outboxes; of very many outboxes, of their numbers."""
    spans: dict[OutboxKey, tuple[int, int]] = {}
    for key, seq in wanted:
        low, high = spans.get(key, (seq, seq))
        spans[key] = min(low, seq), max(high, seq)
    if len(spans) > _MOST_GROUPS:
        seqs = [seq for _, seq in wanted]
        return [[(last, ">=", min(seqs)), (first, "<=", max(seqs))]]
    return [
        [("site", "=", site), ("node", "=", node), ("epoch", "=", epoch), (last, ">=", low), (first, "<=", high)]
        for (site, node, epoch), (low, high) in spans.items()
    ]


def _spans(values: Iterable[int]) -> list[tuple[int, int]]:
    """_MOST_GROUPS ranges at most that hold all `values`, split at the widest holes."""
    ordered = sorted(set(values))
    holes = sorted(range(1, len(ordered)), key=lambda i: ordered[i] - ordered[i - 1])[-(_MOST_GROUPS - 1) :]
    edges = [0, *sorted(holes), len(ordered)]
    return [(ordered[i], ordered[j - 1]) for i, j in pairwise(edges)]
