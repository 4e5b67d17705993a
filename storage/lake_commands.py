"""`lake status` and `lake query`: what is in the lake. Neither changes anything, nor makes a lake that is not there."""

from __future__ import annotations

import csv
import re
import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from infomae_stream.clock import SystemClock
from storage.lake_place import ConfigOption, JsonOption, LakeOption, existing_lake
from storage.lake_status import LakeFigures, StreamFigures, lake_figures
from storage.plain_text import bytes_text, console, duration_text, json_line, time_text
from storage.sql_console import Answer, run_query


def status(lake: LakeOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show tables, streams, gaps, dead letters and the disk."""
    figures = lake_figures(existing_lake(lake, config), SystemClock().now_ns())
    if as_json:
        typer.echo(json_line(asdict(figures)))
        return
    out = console()
    out.print(_tables(figures))
    out.print(_streams(figures) if figures.streams else "No stream yet: no chunk has arrived.")
    out.print(
        f"quarantined {figures.quarantined:,}   dead letters {figures.dead_letters:,}"
        f" ({bytes_text(figures.dead_letter_bytes)})   on disk {bytes_text(figures.disk_bytes)}"
        f" in {figures.disk_files:,} files   disk free {bytes_text(figures.disk_free_bytes)}",
        highlight=False,
    )
    if figures.torn_files:
        out.print(f"{figures.torn_files} files are torn and not counted; lake verify lists them.", style="red")
    if figures.quarantined or figures.dead_letters:
        out.print("infomae-stream lake dead-letters tells why records were refused.", style="yellow")


def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT over chunks, gaps, detections, pairs, ...")],
    lake: LakeOption = None,
    config: ConfigOption = None,
    at: Annotated[
        list[str] | None, typer.Option("--at", metavar="TABLE=VERSION", help="An old version; may be given again.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="Rows at most.")] = 1000,
    timeout: Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds at most.")] = 60.0,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV with a header.")] = False,
) -> None:
    """Ask the lake in DuckDB's SQL; read only. Copies and quarantined records are left out."""
    if as_json and as_csv:
        raise typer.BadParameter("give --json or --csv, not both")
    versions = dict(_version(text) for text in at or [])
    answer = run_query(existing_lake(lake, config), sql, at=versions, limit=limit, timeout_s=timeout)
    if as_json:
        typer.echo(
            json_line({**asdict(answer), "rows": [dict(zip(answer.columns, r, strict=True)) for r in answer.rows]})
        )
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(answer.columns)
        writer.writerows(answer.rows)
    else:
        console().print(_rows(answer))
    if answer.torn_files:
        typer.echo(f"{answer.torn_files} torn files are left out; lake verify lists them", err=True)
    if answer.cut and not as_json:
        typer.echo(f"only the first {limit} rows; --limit gives more", err=True)


def _version(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"([a-z]+)=(\d{1,18})", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not TABLE=VERSION, such as chunks=12", param_hint="--at")
    return match[1], int(match[2])


def _tables(figures: LakeFigures) -> Table:
    table = Table("table", title=f"lake {figures.path}", title_justify="left")
    for name in ("version", "rows", "bytes", "files"):
        table.add_column(name, justify="right")
    for t in figures.tables:
        table.add_row(t.table, f"{t.version:,}", f"{t.rows:,}", bytes_text(t.size_bytes), f"{t.files:,}")
    return table


def _streams(figures: LakeFigures) -> Table:
    table = Table("stream", "kind")
    for name in ("rate", "first", "last", "duration", "chunks", "samples", "gaps", "coverage", "newest"):
        table.add_column(name, justify="right")
    for s in figures.streams:
        table.add_row(*_stream_cells(s))
    return table


def _stream_cells(s: StreamFigures) -> tuple[str, ...]:
    colour = "green" if s.coverage >= 0.999 else "yellow" if s.coverage >= 0.9 else "red"
    return (
        s.stream,
        s.kind,
        f"{s.rate_hz:g} Hz",
        time_text(s.first_ns),
        time_text(s.last_ns),
        duration_text((s.last_ns - s.first_ns) / 1e9),
        f"{s.chunks:,}",
        f"{s.samples:,}",
        f"{s.gaps:,}",
        # Rounded down: 100 % means that nothing is missing.
        f"[{colour}]{int(s.coverage * 10_000) / 100:.2f} %[/]",
        f"{duration_text(s.newest_age_s)} ago",
    )


def _rows(answer: Answer) -> Table:
    table = Table(*answer.columns)
    for row in answer.rows:
        table.add_row(*("" if value is None else _cell(value) for value in row))
    return table


def _cell(value: object) -> str:
    return str(value).replace("[", r"\[")
