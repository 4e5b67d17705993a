"""The tables of the lake: their columns, how they are cut into folders, how rows lie in a segment.

Times are int64 nanoseconds UTC. Partition columns (`day`, `kind`) stand in the folder's name and not in the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

_IDENTITY = [("site", pa.string()), ("node", pa.string())]
_STREAM_IDENTITY = [*_IDENTITY, ("stream", pa.string())]
_RECORD = [("epoch", pa.string()), ("seq", pa.int64())]

# One row a chunk. `samples`: C x N values, row-major, little-endian, of type `dtype`; `times`: N int64, or null.
CHUNKS: Final = pa.schema(
    [
        *_STREAM_IDENTITY,
        *_RECORD,
        ("start_ns", pa.int64()),
        ("end_ns", pa.int64()),
        ("n_samples", pa.int64()),
        ("crc32", pa.int64()),
        ("modality", pa.string()),
        ("rate_hz", pa.float64()),
        ("channels", pa.list_(pa.string())),
        ("units", pa.list_(pa.string())),
        ("sensitivity", pa.list_(pa.float64())),
        ("seed_id", pa.string()),
        ("clock_source", pa.string()),
        ("clock_offset_ns", pa.int64()),
        ("clock_uncertainty_ns", pa.int64()),
        ("clock_synchronised", pa.bool_()),
        ("clock_boot_id", pa.string()),
        ("clock_monotonic_ns", pa.int64()),
        ("accepted_ns", pa.int64()),
        ("received_ns", pa.int64()),
        ("dtype", pa.string()),
        ("samples", pa.binary()),
        ("times", pa.binary()),
        ("day", pa.date32()),
        ("kind", pa.string()),
    ]
)

GAPS: Final = pa.schema(
    [
        *_STREAM_IDENTITY,
        *_RECORD,
        ("start_ns", pa.int64()),
        ("end_ns", pa.int64()),
        ("n_samples", pa.int64()),
        ("crc32", pa.int64()),
        ("reason", pa.string()),
        ("received_ns", pa.int64()),
    ]
)

# Of an event (types.Event); null for a detection of one window, as versions before events wrote them.
# `attribution` is a JSON object: modality -> fall of the score.
_EVENT: Final = [
    ("windows", pa.int64()),
    ("peak_score", pa.float64()),
    ("part", pa.int64()),
    ("ongoing", pa.bool_()),
    ("missing", pa.list_(pa.string())),
    ("attribution", pa.string()),
    ("threshold_on", pa.float64()),
    ("threshold_off", pa.float64()),
]

# `scores` is a JSON object: class -> probability.
DETECTIONS: Final = pa.schema(
    [
        *_IDENTITY,
        *_RECORD,
        ("start_ns", pa.int64()),
        ("end_ns", pa.int64()),
        ("crc32", pa.int64()),
        ("label", pa.string()),
        ("scores", pa.string()),
        ("modalities", pa.list_(pa.string())),
        ("bundle_version", pa.int64()),
        ("bundle_sha256", pa.string()),
        ("received_ns", pa.int64()),
        *_EVENT,
    ]
)

# `streams` are "site/node/stream", sorted as their modalities are. `revision` grows when a pair is judged anew.
PAIRS: Final = pa.schema(
    [
        ("site", pa.string()),
        ("start_ns", pa.int64()),
        ("streams", pa.list_(pa.string())),
        ("modalities", pa.list_(pa.string())),
        ("coverage", pa.float64()),
        ("lag_ns", pa.int64()),
        ("uncertainty_ns", pa.int64()),
        ("reason", pa.string()),
        ("revision", pa.int64()),
    ]
)

LABELS: Final = pa.schema(
    [
        *_IDENTITY,
        ("start_ns", pa.int64()),
        ("end_ns", pa.int64()),
        ("label", pa.string()),
        ("purpose", pa.string()),
    ]
)

# One row a training run; `body` is what the aligner wrote about it, as JSON.
RUNS: Final = pa.schema(
    [("run_id", pa.string()), ("ended_ns", pa.int64()), ("outcome", pa.string()), ("body", pa.string())]
)

# Identities that came twice with different bytes. Their rows stay where they are, and no reader sees them.
QUARANTINE: Final = pa.schema([*_IDENTITY, *_RECORD, ("reason", pa.string()), ("found_ns", pa.int64())])

# Identities that retention took out of the lake: durable once, known for ever, and never taken again. [start_ns,
# end_ns) spans their records; `reason`: "age" or "bytes".
RETIRED: Final = pa.schema(
    [
        *_IDENTITY,
        ("epoch", pa.string()),
        ("seq_first", pa.int64()),
        ("seq_last", pa.int64()),
        ("start_ns", pa.int64()),
        ("end_ns", pa.int64()),
        ("reason", pa.string()),
        ("retired_ns", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class TableLayout:
    """`sort_by`: order of rows in a segment. `stats`: columns whose least and greatest value the log tells.

    `added`: nullable columns that tables and files of older versions do not have.
    """

    schema: pa.Schema
    partition_by: tuple[str, ...]
    sort_by: tuple[str, ...]
    stats: tuple[str, ...]
    row_group_rows: int = 128
    added: tuple[str, ...] = ()

    @property
    def file_schema(self) -> pa.Schema:
        """Columns that stand in the Parquet files."""
        return pa.schema([field for field in self.schema if field.name not in self.partition_by])

    def of_today(self, rows: pa.Table) -> pa.Table:
        """`rows` of a file with the columns of `file_schema`: null where the file is older than a column."""
        for name in self.added:
            if name not in rows.column_names:
                rows = rows.append_column(name, pa.nulls(rows.num_rows, self.schema.field(name).type))
        return rows.select(self.file_schema.names).cast(self.file_schema)

    def parquet_options(self) -> dict[str, Any]:
        """How every writer of this table encodes its files (`pyarrow.parquet.ParquetWriter`)."""
        return {
            "compression": "zstd",
            "compression_level": 1,
            "use_dictionary": [field.name for field in self.file_schema if pa.types.is_string(field.type)],
            "write_statistics": [*self.stats],
        }


_STREAM_ORDER = ("site", "node", "stream", "start_ns", "seq")
_STREAM_STATS = ("site", "node", "stream", "epoch", "seq", "start_ns", "end_ns")

TABLES: Final[dict[str, TableLayout]] = {
    "chunks": TableLayout(CHUNKS, ("day", "kind"), _STREAM_ORDER, _STREAM_STATS),
    "gaps": TableLayout(GAPS, (), _STREAM_ORDER, _STREAM_STATS, 1024),
    "detections": TableLayout(
        DETECTIONS,
        (),
        ("site", "node", "start_ns", "seq"),
        ("site", "node", "epoch", "seq", "start_ns", "end_ns"),
        1024,
        tuple(name for name, _ in _EVENT),
    ),
    "pairs": TableLayout(PAIRS, (), ("site", "start_ns"), ("site", "start_ns"), 4096),
    "labels": TableLayout(LABELS, (), ("site", "node", "start_ns"), ("site", "node", "start_ns"), 4096),
    "runs": TableLayout(RUNS, (), ("ended_ns",), ("ended_ns",)),
    "quarantine": TableLayout(QUARANTINE, (), ("site", "node", "seq"), ("site", "node", "epoch", "seq"), 1024),
    "retired": TableLayout(
        RETIRED,
        (),
        ("site", "node", "epoch", "seq_first"),
        ("site", "node", "epoch", "seq_first", "seq_last", "start_ns", "end_ns"),
        4096,
    ),
}
# The tables whose rows have an identity of the wire: (site, node, epoch, seq).
RECORD_TABLES: Final = ("chunks", "gaps", "detections")
