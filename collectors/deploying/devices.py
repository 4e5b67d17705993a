"""`node devices`: what is plugged in, each with the lines for node.toml."""

from __future__ import annotations

import json
from typing import Annotated, Final

import typer

from collectors.deploying.scan import Device, Found, described, plugged_in
from collectors.deploying.source_lines import source_lines

CLOCK_LINES: Final = ["[nodes.clock]", 'source = "gpsd"', "# or chrony, with gpsd behind it: docs/deploy-node.md"]
STATION: Final = "R0000"  # stands in the lines of a Shake, for the person to replace


def devices(
    listen_s: Annotated[float, typer.Option("--listen-s", help="How long to listen for Shakes; 0: not at all.")] = 3.0,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(help="The UDP port to listen on.")] = 8888,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines for people.")] = False,
) -> None:
    """List the sensors that are plugged in, with the lines to paste; what is missing comes with its fix."""
    found = plugged_in(listen_s=listen_s, host=host, port=port)
    if as_json:
        typer.echo(json.dumps({"devices": described(found)}))
        return
    for entry in found:
        typer.echo("\n".join(shown(entry)) + "\n")
    if not any(isinstance(entry, Device) for entry in found):
        typer.echo("nothing that measures was found")


def shown(entry: Found) -> list[str]:
    """What a person reads, and pastes."""
    if not isinstance(entry, Device):
        return [f"# {entry.kind}: {entry.why}; {entry.fix}"]
    head = [f"# {entry.what}"] + ([f"# {entry.note}"] if entry.note else [])
    if entry.kind == "gps":
        return head + CLOCK_LINES
    known = {"station": STATION, **entry.options} if entry.kind == "raspberry_shake" else entry.options
    return head + source_lines(entry.kind, known)
