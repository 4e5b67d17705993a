"""`node doctor`: everything that a node needs, looked at one after the other; one line and one fix each."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.text import Text

from collectors.deploying.check_broker import check_broker, check_certificate
from collectors.deploying.check_bundle import check_bundle
from collectors.deploying.check_machine import check_clock, check_disk, check_program
from collectors.deploying.check_sensors import check_sensors
from collectors.deploying.finding import Finding, bounded, good, refused, warn
from collectors.deploying.node_toml import check_sources
from collectors.deploying.running import PROMPT_S, check_hub, check_streams, running_node
from infomae_stream.config import load_config
from infomae_stream.errors import ConfigError
from infomae_stream.node_config import ClockSettings, NodeConfig

COLOURS: Final = {"ok": "green", "warning": "yellow", "failed": "bold red"}
MOST_LISTENING_S: Final = 120.0


def doctor(
    config: Annotated[Path, typer.Option("--config", help="The node's TOML file.")] = Path("/etc/infomae/node.toml"),
    listen_s: Annotated[
        float, typer.Option("--listen-s", min=0.5, max=MOST_LISTENING_S, help="For each sensor to give samples.")
    ] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines for people.")] = False,
) -> None:
    """Check config, sensors, clock, certificate, broker, disk and bundle; exit 1 when anything failed.

    A node that runs keeps its sensors: then its own metrics are read instead.
    """
    console = Console(highlight=False, soft_wrap=True)
    findings = []
    for finding in examine(config, listen_s):
        findings.append(finding)
        if not as_json:
            console.print(shown(finding))
    failed = sum(finding.state == "failed" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ok": not failed, "checks": [asdict(finding) for finding in findings]}))
    else:
        warnings = sum(finding.state == "warning" for finding in findings)
        typer.echo(f"{len(findings)} looked at, {failed} failed, {warnings} to look at")
    sys.stdout.flush()
    raise typer.Exit(1 if failed else 0)


def shown(finding: Finding) -> Text:
    """One line for a person."""
    text = Text(f"{finding.state:<8}", style=COLOURS[finding.state])
    text.append(f"{finding.check:<26} {finding.what}", style="default not bold")
    if finding.fix:
        text.append(f"; fix: {finding.fix}", style="default not bold")
    return text


def examine(path: Path, listen_s: float) -> Iterator[Finding]:
    """Everything, in the order in which a person would put it right. Never raises, and never hangs."""
    yield from bounded("program", check_program)
    try:
        config = load_config(path, NodeConfig)
        check_sources(config, str(path))
    except ConfigError as e:
        yield refused("config", e, f"correct it, or write a new one: infomae-stream node init --out {path}")
        yield from bounded("clock", lambda: check_clock(ClockSettings()))
        return
    yield good("config", f"{path}: {len(config.nodes)} node(s), {sum(len(n.sources) for n in config.nodes)} source(s)")
    running = running_node(config)
    if running is None:
        fix = f"sudo infomae-stream node install --config {path}, when the rest is well"
        yield warn("service", "the node does not run", fix)
        yield from check_sensors(config, str(path), listen_s)
    else:
        yield good("service", f"the node runs and answers at port {config.metrics.collect_port}")
        yield from bounded("sensor", lambda: check_streams(running, config))
    for clock in dict.fromkeys(node.clock for node in config.nodes):
        yield from bounded("clock", lambda clock=clock: check_clock(clock))  # type: ignore[misc]
    for node in config.nodes:
        yield from bounded(f"certificate {node.node}", lambda node=node: check_certificate(config, node))  # type: ignore[misc]
        yield from bounded(f"broker {node.node}", lambda node=node: check_broker(config, node))  # type: ignore[misc]
    if running is not None:
        yield from bounded("hub", lambda: check_hub(running, config, PROMPT_S))
    yield from bounded("disk", lambda: check_disk(config))
    yield from bounded("bundle", lambda: check_bundle(config))
