"""DuckDB over table versions: which files a version has is the log's to tell, so DuckDB needs no Delta extension."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import duckdb

from infomae_stream.errors import LakeError
from storage.schemas import TABLES
from storage.segments import FileFilter, live_files
from storage.torn_files import whole_files

if TYPE_CHECKING:
    from storage.lake import Lake

# DuckDB takes 80 % of the machine's memory unless told otherwise; hubs are small, and do other things too.
_MEMORY_LIMIT: Final = "1GB"
_THREADS: Final = 2


@contextmanager
def connect() -> Iterator[duckdb.DuckDBPyConnection]:
    db = duckdb.connect(
        config={"memory_limit": _MEMORY_LIMIT, "threads": _THREADS, "python_enable_replacements": False}
    )
    try:
        yield db
    except duckdb.Error as e:
        raise LakeError(f"a read failed: {e}") from e
    finally:
        db.close()


@contextmanager
def open_tables(
    lake: Lake, versions: dict[str, int | None], may_hold: dict[str, FileFilter] | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that sees each of these tables, at its version, under its own name.

    `may_hold`: by table, which files can matter (`live_files`); the query still has to choose the rows.
    """
    with connect() as db:
        for table, version in versions.items():
            at = lake.version(table) if version is None else version
            register_files(
                db,
                table,
                [str(file) for file in live_files(lake.table_path(table), at, (may_hold or {}).get(table, ()))],
            )
        yield db


def register_files(
    db: duckdb.DuckDBPyConnection, table: str, files: Sequence[str], *, view: str = "", numbered: bool = False
) -> None:
    """Make `view` (by default the table's name); `numbered` adds the columns filename and file_row_number."""
    layout = TABLES[table]
    files = [str(file) for file in whole_files(table, map(Path, files))]
    if not files:
        db.register(view or table, layout.schema.empty_table())
        return
    hive = "true, hive_types = {'day': DATE, 'kind': VARCHAR}" if layout.partition_by else "false"
    listed = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
    numbers = ", filename = true, file_row_number = true" if numbered else ""
    union = ", union_by_name = true" if layout.added else ""
    read = f"SELECT * FROM read_parquet([{listed}], hive_partitioning = {hive}{union}{numbers})"
    if layout.added:  # which none of the files may have
        db.register(f"columns_of_{table}", layout.schema.empty_table())
        read += f" UNION ALL BY NAME SELECT * FROM columns_of_{table}"
    db.execute(f"CREATE VIEW {view or table} AS {read}")


def fetch(db: duckdb.DuckDBPyConnection, sql: str, values: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for batch in db.sql(sql, params=list(values)).to_arrow_reader(4096):
        yield from batch.to_pylist()
