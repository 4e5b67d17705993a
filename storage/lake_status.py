"""What is in the lake, in figures: tables from the log's statistics, streams from the chunks' small columns."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from infomae_stream.errors import LakeError
from storage.duck import fetch, open_tables
from storage.lake import Lake
from storage.schemas import TABLES
from storage.segments import live_files
from storage.torn_files import whole_files

DEAD_LETTERS: Final = "_dead_letters"

# Identities once, whatever copies there are on disk, and without the quarantined; then one row a stream.
_STREAMS: Final = """
    WITH logical AS (
        SELECT site, node, stream, epoch, seq, any_value(kind) AS kind, any_value(rate_hz) AS rate_hz,
            min(start_ns) AS start_ns, max(end_ns) AS end_ns, max(n_samples) AS n_samples
        FROM chunks r WHERE NOT EXISTS (SELECT 1 FROM quarantine q WHERE q.site = r.site AND q.node = r.node
            AND q.epoch = r.epoch AND q.seq = r.seq)
        GROUP BY site, node, stream, epoch, seq
    ), missing AS (
        SELECT site, node, stream, count(DISTINCT (epoch, seq)) AS gaps, sum(n_samples) AS gap_samples
        FROM gaps GROUP BY ALL
    ), held AS (
        SELECT site, node, stream, arg_max(kind, start_ns) AS kind, arg_max(rate_hz, start_ns) AS rate_hz,
            min(start_ns) AS first_ns, max(end_ns) AS last_ns, count(*) AS chunks,
            sum(n_samples)::BIGINT AS samples, sum(end_ns - start_ns)::BIGINT AS covered_ns
        FROM logical GROUP BY site, node, stream
    )
    SELECT held.*, coalesce(missing.gaps, 0)::BIGINT AS gaps, coalesce(missing.gap_samples, 0)::BIGINT AS gap_samples
    FROM held LEFT JOIN missing USING (site, node, stream) ORDER BY site, node, stream
"""


@dataclass(frozen=True, slots=True)
class TableFigures:
    """`rows` are those on disk, copies and quarantined ones too; `size_bytes` and `files` are the newest version's."""

    table: str
    version: int
    rows: int
    size_bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class StreamFigures:
    """Logical rows. coverage: share of [first_ns, last_ns) that chunks cover. gaps: gap records, of which samples."""

    stream: str
    kind: str
    rate_hz: float
    first_ns: int
    last_ns: int
    chunks: int
    samples: int
    gaps: int
    gap_samples: int
    coverage: float
    newest_age_s: float


@dataclass(frozen=True, slots=True)
class LakeFigures:
    """disk_bytes: everything below the lake's folder, also old versions, logs and dead letters."""

    path: str
    tables: tuple[TableFigures, ...]
    streams: tuple[StreamFigures, ...]
    quarantined: int
    dead_letters: int
    dead_letter_bytes: int
    disk_bytes: int
    disk_files: int
    disk_free_bytes: int
    torn_files: int


def lake_figures(lake: Lake, now_ns: int) -> LakeFigures:
    """Read the lake's figures; the cost grows with the number of files, not with the bytes. Raises LakeError."""
    disk_bytes, disk_files = lake.size()
    letters, letter_bytes = _letters(lake.path / DEAD_LETTERS)
    with open_tables(lake, {"quarantine": None}) as db:
        (row,) = fetch(db, "SELECT count(DISTINCT (site, node, epoch, seq)) AS n FROM quarantine", [])
    return LakeFigures(
        path=str(lake.path),
        tables=tuple(table_figures(lake, table) for table in TABLES),
        streams=tuple(stream_figures(lake, now_ns)),
        quarantined=row["n"],
        dead_letters=letters,
        dead_letter_bytes=letter_bytes,
        disk_bytes=disk_bytes,
        disk_files=disk_files,
        disk_free_bytes=shutil.disk_usage(lake.path).free,
        torn_files=sum(_torn(lake, table) for table in ("chunks", "gaps")),
    )


def table_figures(lake: Lake, table: str) -> TableFigures:
    """From the log alone: no Parquet file is opened. Raises LakeError."""
    version = lake.version(table)
    try:
        actions = pa.table(DeltaTable(lake.table_path(table), version=version).get_add_actions(flatten=True))
    except DeltaError as e:
        raise LakeError(f"version {version} cannot be read: {e}", where=str(lake.table_path(table))) from e
    rows, size = (pc.sum(actions.column(name)).as_py() or 0 for name in ("num_records", "size_bytes"))
    return TableFigures(table, version, rows, size, actions.num_rows)


def stream_figures(lake: Lake, now_ns: int) -> Iterator[StreamFigures]:
    """One for each stream that has chunks, sorted by name. Raises LakeError."""
    with open_tables(lake, {"chunks": None, "gaps": None, "quarantine": None}) as db:
        for row in fetch(db, _STREAMS, []):
            yield _stream(row, now_ns)


def _stream(row: dict[str, Any], now_ns: int) -> StreamFigures:
    first_ns, last_ns = row["first_ns"], row["last_ns"]
    same = ("kind", "rate_hz", "first_ns", "last_ns", "chunks", "samples", "gaps", "gap_samples")
    return StreamFigures(
        stream=f"{row['site']}/{row['node']}/{row['stream']}",
        coverage=min(row["covered_ns"] / max(last_ns - first_ns, 1), 1.0),
        newest_age_s=(now_ns - last_ns) / 1e9,
        **{name: row[name] for name in same},
    )


def _torn(lake: Lake, table: str) -> int:
    """Files of the newest version that readers leave out, because they cannot be read."""
    files = live_files(lake.table_path(table), lake.version(table))
    return len(files) - len(whole_files(table, files))


def _letters(folder: Path) -> tuple[int, int]:
    """(letters, bytes) of the folder of dead letters; a letter is there when its JSON file is."""
    if not folder.is_dir():
        return 0, 0
    notes, total = list(folder.glob("*.json")), 0
    for note in notes:
        try:
            total += note.stat().st_size + int(json.loads(note.read_bytes())["bytes"])
        except (OSError, ValueError, KeyError, TypeError):  # dropped by ingest meanwhile, or damaged
            continue
    return len(notes), total
