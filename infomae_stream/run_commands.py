"""`node run` and `hub run`: the supervised process pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from infomae_stream.clock import SystemClock
from infomae_stream.config import load_config
from infomae_stream.hub_config import HubConfig
from infomae_stream.node_config import NodeConfig
from infomae_stream.supervisor import Supervisor
from infomae_stream.telemetry import EventLog, configure_logging

ConfigOption = Annotated[Path, typer.Option("--config", help="The TOML file.")]


def node_run(config: ConfigOption) -> None:
    """Start and watch `node collect` and `node detect`; each is started again when it ends."""
    settings = load_config(config, NodeConfig)
    children: dict[str, Sequence[str]] = {"collect": ["node", "collect", "--config", str(config)]}
    if settings.detect.enabled:
        children["detect"] = ["node", "detect", "--config", str(config)]
    _supervise(children, "node")


def hub_run(config: ConfigOption) -> None:
    """Start and watch `hub ingest`, `hub maintain` and `hub align`; each is started again when it ends."""
    load_config(config, HubConfig)
    _supervise({name: ["hub", name, "--config", str(config)] for name in ("ingest", "maintain", "align")}, "hub")


def _supervise(children: dict[str, Sequence[str]], name: str) -> None:
    configure_logging()
    raise typer.Exit(Supervisor(children, SystemClock(), EventLog(f"infomae.{name}")).run())
