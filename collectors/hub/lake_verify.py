"""`lake verify`: the lake's own audit, with the dead letters as explanations, and the nodes' truth logs if given."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from collectors.hub.dead_letter_commands import refused_identities
from infomae_stream.errors import LakeError
from storage.audit import GRACE_S, Audit, audit
from storage.lake_place import ConfigOption, JsonOption, LakeOption, lake_at, lake_folder, missing_tables
from storage.lake_status import DEAD_LETTERS
from storage.plain_text import json_line, progress_bar
from storage.schemas import RECORD_TABLES
from storage.verify import Verification, compare


def verify(
    lake: LakeOption = None,
    config: ConfigOption = None,
    truth: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The nodes' truth logs, NODE.jsonl; what they accepted.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Leave the checksums of the samples out.")] = False,
    grace: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Stray files younger than this may be in the making.")
    ] = GRACE_S,
    as_json: JsonOption = False,
) -> None:
    """Find missing sequence numbers, bad checksums, torn, missing and orphan files; exit 1 when something is wrong."""
    folder = lake_folder(lake, config)
    if truth is not None and not truth.is_dir():
        raise LakeError("there is no such folder of truth logs", where=str(truth))
    lost = set(missing_tables(folder)) & {*RECORD_TABLES, "quarantine"}
    place = lake_at(folder)
    refused = refused_identities(place.path / DEAD_LETTERS)
    with progress_bar("verify", quiet=as_json) as advance:
        found = audit(place, checksums=not fast, refused=refused, grace_s=grace, advance=advance)
    for table in sorted(lost):
        found.add("missing_table", folder / table, "the table had no log")
    against = compare(truth, place) if truth is not None else None
    if as_json:
        typer.echo(json_line(_summary(found, against)))
    else:
        _print(found, against)
    if not found.passed or (against is not None and not against.passed):
        raise typer.Exit(1)


def _summary(found: Audit, against: Verification | None) -> dict[str, object]:
    passed = found.passed and (against is None or against.passed)
    return {
        "passed": passed,
        "by_kind": found.counts(),
        **asdict(found),
        "truth": None if against is None else {"passed": against.passed, **asdict(against)},
    }


def _print(found: Audit, against: Verification | None) -> None:
    for finding in found.findings:
        typer.echo(f"{finding.kind}: {finding.where}: {finding.what}; {finding.fix}")
    checked = "checksums compared" if found.checksums else "checksums left out"
    if found.maybe_shed:
        typer.echo(
            f"note: {found.maybe_shed} numbers are missing of outboxes that shed; --truth tells whether all were shed"
        )
    typer.echo(
        f"{found.files} files, {found.records} records ({checked}), {found.outboxes} outboxes,"
        f" {found.missing_numbers} numbers missing, {found.explained} explained by refused messages,"
        f" {found.young} files in the making"
    )
    if against is not None:
        for example in against.examples:
            typer.echo(f"truth: {example}")
        counts = {name: value for name, value in asdict(against).items() if name != "examples"}
        typer.echo("against the truth logs: " + ", ".join(f"{value} {name}" for name, value in counts.items()))
    good = found.passed and (against is None or against.passed)
    typer.echo("the lake is whole" if good else f"wrong: {len(found.findings)} findings above")
