"""SQL over the tables, for people: reading only, one statement, bounded in memory and time.

The tables are views of logical rows: copies and quarantined records are left out, pairs are the newest judgements.
DuckDB may open the files of these versions and nothing else, and its settings are locked before it sees the statement.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

import duckdb

from infomae_stream.errors import LakeError
from storage.duck import register_files
from storage.lake import Lake
from storage.query import CURRENT_PAIRS
from storage.schemas import RECORD_TABLES, TABLES
from storage.segments import live_files
from storage.torn_files import whole_files

MEMORY_LIMIT: Final = "1GB"
_ROWS_AT_ONCE: Final = 1000
_KINDS: Final = {duckdb.StatementType.SELECT}
_IDENTITY: Final = {
    "chunks": "site, node, stream, epoch, seq",
    "gaps": "site, node, stream, epoch, seq",
    "detections": "site, node, epoch, seq",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """`cut`: there are more rows than were asked for. `versions`: of the tables that the statement names.

    torn_files: of these versions, left out because they cannot be read.
    """

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    cut: bool
    versions: dict[str, int]
    torn_files: int


def run_query(
    lake: Lake,
    sql: str,
    *,
    at: Mapping[str, int] | None = None,
    limit: int = 1000,
    timeout_s: float = 60.0,
) -> Answer:
    """Run one SELECT over the tables. `at`: versions, the newest where not named. At most `limit` rows come.

    Raises LakeError, with DuckDB's own words and the place, for SQL that is wrong, that is no SELECT, or that takes too
    long or too much memory.
    """
    asked = dict(at or {})
    for table, version in asked.items():
        newest = lake.version(table)
        if version > newest:
            raise LakeError(f"table {table} has no version {version}", fix=f"the newest is {newest}")
    # A table costs the reading of its log, so only those that the text names are opened; more is harmless.
    named = {table for table in TABLES if re.search(rf"\b{table}\b", sql, re.IGNORECASE)}
    versions = {table: asked.get(table, lake.version(table)) for table in TABLES if table in named}
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": MEMORY_LIMIT,
        "threads": 2,
        "python_enable_replacements": False,
        "temp_directory": "",
    }
    with closing(duckdb.connect(config=settings)) as db:
        _check_one_select(db, sql)
        try:
            torn = _open_views(db, lake, versions, asked)
        except duckdb.Error as e:
            fix = "infomae-stream lake verify finds the damaged file"
            raise LakeError(f"the tables cannot be opened: {e}", where=str(lake.path), fix=fix) from e
        columns, rows = _run(db, sql, limit, timeout_s)
    return Answer(columns, rows[:limit], len(rows) > limit, versions, torn)


def _check_one_select(db: duckdb.DuckDBPyConnection, sql: str) -> None:
    try:
        statements = db.extract_statements(sql)
    except duckdb.Error as e:
        raise LakeError(str(e)) from e
    if len(statements) != 1:
        raise LakeError(f"{len(statements)} statements", fix="give exactly one SELECT")
    if statements[0].type not in _KINDS:
        raise LakeError(
            f"a {statements[0].type.name} statement is not taken here", fix="the lake is read only: give one SELECT"
        )


def _open_views(
    db: duckdb.DuckDBPyConnection, lake: Lake, versions: Mapping[str, int], asked: Mapping[str, int]
) -> int:
    """Make a view a table, then shut every other door and lock the settings; how many torn files are left out."""
    wanted = dict(versions)
    if not wanted.keys().isdisjoint(RECORD_TABLES):
        wanted.setdefault("quarantine", asked.get("quarantine", lake.version("quarantine")))
    listed = {table: live_files(lake.table_path(table), version) for table, version in wanted.items()}
    files = {table: [str(f) for f in whole_files(table, paths)] for table, paths in listed.items()}
    for table, paths in files.items():
        register_files(db, table, paths, view=f"stored_{table}", numbered=table in _IDENTITY)
    for table, paths in files.items():
        db.execute(_view(db, table, bool(paths)))
    db.execute("SET allowed_paths = ?", [[path for paths in files.values() for path in paths]])
    db.execute("SET enable_external_access = false")
    db.execute("SET lock_configuration = true")
    return sum(map(len, listed.values())) - sum(map(len, files.values()))


def _view(db: duckdb.DuckDBPyConnection, table: str, any_file: bool) -> str:
    if table == "pairs":
        return f"CREATE VIEW pairs AS {CURRENT_PAIRS.format(where='').replace('FROM pairs', 'FROM stored_pairs')}"
    if table == "labels":
        return "CREATE VIEW labels AS SELECT DISTINCT * FROM stored_labels"
    if table == "runs":
        return "CREATE VIEW runs AS SELECT * FROM stored_runs QUALIFY row_number() OVER (PARTITION BY run_id) = 1"
    if table not in _IDENTITY or not any_file:
        return f"CREATE VIEW {table} AS SELECT * FROM stored_{table}"
    # Copies are rare: where there are none, the view keeps DuckDB's way to skip row groups.
    db.execute(
        f"CREATE TABLE copies_{table} AS SELECT filename, file_row_number FROM stored_{table}"
        f" QUALIFY row_number() OVER (PARTITION BY {_IDENTITY[table]} ORDER BY filename, file_row_number) > 1"
    )
    copies = db.execute(f"SELECT count(*) FROM copies_{table}").fetchone()
    once = f" AND (filename, file_row_number) NOT IN (FROM copies_{table})" if copies and copies[0] else ""
    return (
        f"CREATE VIEW {table} AS SELECT * EXCLUDE (filename, file_row_number) FROM stored_{table} r"
        " WHERE NOT EXISTS (SELECT 1 FROM stored_quarantine q WHERE q.site = r.site AND q.node = r.node"
        f" AND q.epoch = r.epoch AND q.seq = r.seq){once}"
    )


def _run(
    db: duckdb.DuckDBPyConnection, sql: str, limit: int, timeout_s: float
) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    alarm = threading.Timer(timeout_s, db.interrupt)
    alarm.start()
    try:
        result = db.execute(sql)
        rows: list[tuple[Any, ...]] = []
        while len(rows) <= limit and (some := result.fetchmany(min(_ROWS_AT_ONCE, limit + 1 - len(rows)))):
            rows += [tuple(_small(value) for value in row) for row in some]
        return tuple(column[0] for column in result.description or ()), rows
    except duckdb.InterruptException as e:
        raise LakeError(f"stopped after {timeout_s:g} s", fix="narrow the time range, or give --timeout") from e
    except duckdb.OutOfMemoryException as e:
        raise LakeError(f"more than {MEMORY_LIMIT} of memory: {e}", fix="narrow the range or the columns") from e
    except (duckdb.Error, UnicodeDecodeError) as e:
        raise LakeError(str(e)) from e
    finally:
        alarm.cancel()
        alarm.join()


def _small(value: Any) -> Any:
    """Samples are shown as their size, and do not stay in memory."""
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else value
