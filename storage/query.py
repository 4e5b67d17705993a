"""Every read of the lake, and all SQL there is. Each read takes a table version; None means the newest.

Rows are logical: a record that was stored twice comes once, and a quarantined identity not at all. What is quarantined
is told by `quarantine_version`, so that a read of named versions gives the same rows for ever.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from infomae_stream.types import Chunk, Detection, Gap, Pair, StreamId, StreamSpec
from storage.duck import connect, fetch, open_tables, register_files
from storage.rows import (
    LabelInterval,
    chunk_from,
    detection_from,
    gap_from,
    label_from,
    pair_from,
    spec_from,
)
from storage.selection import Selection

if TYPE_CHECKING:
    from storage.lake import Lake

_SPEC_COLUMNS: Final = "site, node, stream, kind, modality, rate_hz, channels, units, sensitivity, seed_id"
_NOT_QUARANTINED: Final = (
    "NOT EXISTS (SELECT 1 FROM quarantine q WHERE q.site = r.site AND q.node = r.node"
    " AND q.epoch = r.epoch AND q.seq = r.seq)"
)
# The newest judgement of each key, without keys that a wider one covers.
CURRENT_PAIRS: Final = """
    WITH newest AS (
        SELECT * FROM pairs {where}
        QUALIFY row_number() OVER (PARTITION BY site, start_ns, streams ORDER BY revision DESC) = 1
    )
    SELECT * FROM newest n WHERE NOT EXISTS (
        SELECT 1 FROM newest w WHERE w.site = n.site AND w.start_ns = n.start_ns
        AND len(w.streams) > len(n.streams) AND list_has_all(w.streams, n.streams)
    )
"""


def read_chunks(
    lake: Lake,
    *,
    streams: Sequence[StreamId] | None = None,
    sites: Sequence[str] | None = None,
    modalities: Sequence[str] | None = None,
    from_ns: int | None = None,
    to_ns: int | None = None,
    version: int | None = None,
    quarantine_version: int | None = None,
) -> list[Chunk]:
    """Chunks that overlap [from_ns, to_ns), sorted by stream, start and seq. Raises LakeError."""
    selection = Selection(streams, sites, modalities, from_ns, to_ns)
    rows = _select(lake, "chunks", selection, "site, node, stream, start_ns, seq", version, quarantine_version)
    return [chunk_from(row) for row in _once(rows)]


def read_gaps(
    lake: Lake,
    *,
    streams: Sequence[StreamId] | None = None,
    sites: Sequence[str] | None = None,
    from_ns: int | None = None,
    to_ns: int | None = None,
    version: int | None = None,
    quarantine_version: int | None = None,
) -> list[Gap]:
    """Gap records that overlap [from_ns, to_ns), sorted by stream and start."""
    selection = Selection(streams, sites, None, from_ns, to_ns)
    rows = _select(lake, "gaps", selection, "site, node, stream, start_ns, seq", version, quarantine_version)
    return [gap_from(row) for row in _once(rows)]


def read_detections(
    lake: Lake,
    *,
    sites: Sequence[str] | None = None,
    from_ns: int | None = None,
    to_ns: int | None = None,
    version: int | None = None,
    quarantine_version: int | None = None,
) -> list[Detection]:
    """Detections that overlap [from_ns, to_ns), sorted by start, site and node."""
    selection = Selection(None, sites, None, from_ns, to_ns)
    rows = _select(lake, "detections", selection, "start_ns, site, node, seq", version, quarantine_version)
    return [detection_from(row) for row in _once(rows)]


def stream_specs(lake: Lake, *, version: int | None = None) -> list[StreamSpec]:
    """Every description that chunks carry; a stream whose description changed stands there once for each."""
    with open_tables(lake, {"chunks": version}) as db:
        return [spec_from(row) for row in fetch(db, f"SELECT DISTINCT {_SPEC_COLUMNS} FROM chunks ORDER BY ALL", [])]


def chunk_ranges_since(lake: Lake, from_version: int, to_version: int) -> list[tuple[StreamSpec, int, int]]:
    """What the commits in (from_version, to_version] brought: (stream, start_ns, end_ns), neighbours joined, sorted.

    `from_version` -1 means from the beginning. The cost grows with what is new, not with the lake.
    """
    files = [str(file) for file in lake.added_files("chunks", from_version, to_version)]
    sql = f"""
        WITH ordered AS (
            SELECT *, start_ns > lag(max_end) OVER w AS fresh FROM (
                SELECT {_SPEC_COLUMNS}, start_ns, end_ns, max(end_ns) OVER (
                    PARTITION BY site, node, stream ORDER BY start_ns ROWS UNBOUNDED PRECEDING) AS max_end
                FROM chunks
            ) WINDOW w AS (PARTITION BY {_SPEC_COLUMNS} ORDER BY start_ns, end_ns)
        ), numbered AS (
            SELECT *, sum(CASE WHEN fresh IS false THEN 0 ELSE 1 END) OVER (
                PARTITION BY {_SPEC_COLUMNS} ORDER BY start_ns, end_ns ROWS UNBOUNDED PRECEDING) AS island FROM ordered
        )
        SELECT {_SPEC_COLUMNS}, min(start_ns) AS first_ns, max(end_ns) AS last_ns
        FROM numbered GROUP BY {_SPEC_COLUMNS}, island ORDER BY site, node, stream, first_ns
    """
    if not files:
        return []
    with connect() as db:
        register_files(db, "chunks", files)
        return [(spec_from(row), row["first_ns"], row["last_ns"]) for row in fetch(db, sql, [])]


def read_pairs(
    lake: Lake, *, sites: Sequence[str] | None = None, paired_only: bool = False, version: int | None = None
) -> list[Pair]:
    """The pairs, and the refused candidates unless `paired_only`, sorted by site, start and streams."""
    where, values = Selection(sites=sites).conditions()
    keep = " AND reason = ''" if paired_only else ""
    sql = CURRENT_PAIRS.format(where=_where(where)) + keep + " ORDER BY site, start_ns, streams"
    with open_tables(lake, {"pairs": version}) as db:
        return [pair_from(row) for row in fetch(db, sql, values)]


def pair_counts(lake: Lake, *, version: int | None = None) -> dict[str, int]:
    """Candidates by outcome: "paired", or the reason of refusal."""
    current = CURRENT_PAIRS.format(where="")
    sql = (
        f"SELECT if(reason = '', 'paired', reason) AS outcome, count(*) AS n FROM ({current}) GROUP BY ALL ORDER BY ALL"
    )
    with open_tables(lake, {"pairs": version}) as db:
        return {row["outcome"]: row["n"] for row in fetch(db, sql, [])}


def read_judgements(
    lake: Lake, places: Sequence[tuple[str, int]], *, version: int
) -> dict[tuple[str, int, tuple[StreamId, ...]], Pair]:
    """The newest judgement of every key at these (site, start_ns), covered ones too; for `upsert_pairs`."""
    wanted = pa.table(
        {
            "site": pa.array([site for site, _ in places], pa.string()),
            "start_ns": pa.array([start_ns for _, start_ns in places], pa.int64()),
        }
    )
    sql = """
        SELECT * FROM pairs SEMI JOIN wanted USING (site, start_ns) WHERE start_ns BETWEEN ? AND ?
        QUALIFY row_number() OVER (PARTITION BY site, start_ns, streams ORDER BY revision DESC) = 1
    """
    starts = [start_ns for _, start_ns in places]
    with open_tables(lake, {"pairs": version}) as db:
        db.register("wanted", wanted)
        found = [pair_from(row) for row in fetch(db, sql, [min(starts), max(starts)])]
    return {(pair.site, pair.start_ns, pair.streams): pair for pair in found}


def read_labels(
    lake: Lake,
    *,
    purpose: str | None = None,
    sites: Sequence[str] | None = None,
    version: int | None = None,
) -> list[LabelInterval]:
    """Labelled intervals, sorted by site, node and start."""
    where, values = Selection(sites=sites).conditions()
    if purpose is not None:
        where.append("purpose = ?")
        values.append(purpose)
    sql = f"SELECT DISTINCT * FROM labels {_where(where)} ORDER BY site, node, start_ns, end_ns, label, purpose"
    with open_tables(lake, {"labels": version}) as db:
        return [label_from(row) for row in fetch(db, sql, values)]


def read_runs(lake: Lake, *, version: int | None = None) -> list[dict[str, Any]]:
    """Training runs in the order they ended, each as it was given to `append_run`."""
    sql = "SELECT * FROM runs QUALIFY row_number() OVER (PARTITION BY run_id) = 1 ORDER BY ended_ns, run_id"
    with open_tables(lake, {"runs": version}) as db:
        return [json.loads(row["body"]) for row in fetch(db, sql, [])]


def logical_identities(
    lake: Lake,
    table: str,
    *,
    version: int | None = None,
    quarantined: bool = False,
    quarantine_version: int | None = None,
) -> pa.Table:
    """Of chunks, gaps or detections: site, node, stream, epoch, seq, crc32, start_ns, `copies` on disk, quarantined.

    `stream` is "" for detections. One row an identity and content; quarantined ones only when asked for.
    """
    stream = "''" if table == "detections" else "r.stream"
    keep = "" if quarantined else f"WHERE {_NOT_QUARANTINED}"
    sql = f"""
        SELECT r.site, r.node, {stream} AS stream, r.epoch, r.seq, r.crc32, r.start_ns, count(*) AS copies,
            NOT ({_NOT_QUARANTINED}) AS quarantined
        FROM {table} r {keep} GROUP BY ALL ORDER BY ALL
    """
    with open_tables(lake, {table: version, "quarantine": quarantine_version}) as db:
        return db.sql(sql).to_arrow_table()


def lake_size(lake: Lake) -> tuple[int, int]:
    """(bytes, files) of everything below the lake's folder, logs and dead letters too."""
    return lake.size()


def _select(
    lake: Lake, table: str, selection: Selection, order: str, version: int | None, quarantine_version: int | None
) -> Iterator[dict[str, Any]]:
    where, values = selection.conditions()
    sql = f"SELECT * FROM {table} r {_where([*where, _NOT_QUARANTINED])} ORDER BY {order}"
    versions = {table: version, "quarantine": quarantine_version}
    with open_tables(lake, versions, {table: selection.files()}) as db:
        yield from fetch(db, sql, values)


def _where(conditions: Sequence[str]) -> str:
    return "WHERE " + " AND ".join(conditions) if conditions else ""


def _once(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Leave out copies of a record that was stored twice."""
    seen: set[tuple[Any, ...]] = set()
    for row in rows:
        identity = (row["site"], row["node"], row.get("stream"), row["epoch"], row["seq"])
        if identity not in seen:
            seen.add(identity)
            yield row
