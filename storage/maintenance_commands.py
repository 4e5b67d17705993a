"""`lake compact` and `lake vacuum`, by hand; `hub maintain` does the same at its hours."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from storage.compaction import DEFAULT_TARGET_BYTES, compact
from storage.lake_place import ConfigOption, JsonOption, LakeOption, existing_lake
from storage.plain_text import bytes_text, json_line
from storage.schemas import TABLES
from storage.vacuum import DEFAULT_GRACE_S, vacuum


def compact_lake(
    lake: LakeOption = None,
    config: ConfigOption = None,
    table: Annotated[list[str] | None, typer.Option("--table", help="Only this table; may be given again.")] = None,
    target_mb: Annotated[float, typer.Option(min=1, help="Size of the files that come out.")] = (
        DEFAULT_TARGET_BYTES / 1e6
    ),
    everything: Annotated[bool, typer.Option("--everything", help="Merge also what could still wait.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Merge small files into few large ones; order, rows and old versions stay. Ingest may go on meanwhile."""
    for name in table or []:
        if name not in TABLES:
            raise typer.BadParameter(f"no table {name!r}; known: {', '.join(TABLES)}", param_hint="--table")
    place = existing_lake(lake, config)
    report = compact(place, tables=table, target_bytes=round(target_mb * 1e6), everything=everything)
    if as_json:
        typer.echo(json_line(asdict(report)))
        return
    typer.echo(
        f"{report.files_before} files are now {report.files_after}: {report.merges} merges read"
        f" {bytes_text(report.bytes_read)} and wrote {bytes_text(report.bytes_written)},"
        f" {report.duplicates_dropped} copies dropped, {report.conflicts} merges left to another writer"
    )
    if report.merges:
        typer.echo("The old files stay for old versions; lake vacuum deletes those that no kept version names.")


def vacuum_lake(
    lake: LakeOption = None,
    config: ConfigOption = None,
    grace: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Keep what was in use this long ago.")
    ] = DEFAULT_GRACE_S,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete files that no kept version names; versions in a model's lineage are kept."""
    report = vacuum(existing_lake(lake, config), grace_s=grace, dry_run=dry_run)
    if as_json:
        typer.echo(json_line({"dry_run": dry_run, **asdict(report)}))
        return
    typer.echo(
        f"{'would delete' if dry_run else 'deleted'} {report.files} files, {bytes_text(report.bytes)}"
        f" ({report.orphans} that no commit named), {report.temporaries} temporaries, {report.log_files} log files"
    )
    for table, versions in report.pinned.items():
        typer.echo(f"kept for models: {table} versions {', '.join(map(str, versions))}")
