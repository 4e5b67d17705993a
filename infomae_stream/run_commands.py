"""`node run` and `hub run`: the supervised process pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from infomae_stream.clock import SystemClock
from infomae_stream.config import load_config
from infomae_stream.hub_config import HubConfig
from infomae_stream.node_config import NodeConfig
from infomae_stream.supervisor import Children, Supervisor
from infomae_stream.telemetry import EventLog, configure_logging

ConfigOption = Annotated[Path, typer.Option("--config", help="The TOML file.")]


def node_run(config: ConfigOption) -> None:
    """Start and watch `node collect` and `node detect`; each is started again when it ends. SIGHUP reloads the file."""

    def children() -> dict[str, Sequence[str]]:
        wanted = ["collect", "detect"] if load_config(config, NodeConfig).detect.enabled else ["collect"]
        return {name: ["node", name, "--config", str(config)] for name in wanted}

    # Whatever becomes of the detector: collecting goes on.
    _supervise(children(), "node", spare=("detect",), notifying="collect", reload=children)


def hub_run(config: ConfigOption) -> None:
    """Start and watch `hub ingest`, `hub maintain` and `hub align`; each is started again when it ends."""
    load_config(config, HubConfig)
    _supervise({name: ["hub", name, "--config", str(config)] for name in ("ingest", "maintain", "align")}, "hub")


def _supervise(
    children: Children,
    name: str,
    *,
    spare: Sequence[str] = (),
    notifying: str = "",
    reload: Callable[[], Children] | None = None,
) -> None:
    configure_logging()
    log = EventLog(f"infomae.{name}")
    raise typer.Exit(Supervisor(children, SystemClock(), log, spare=spare, notifying=notifying, reload=reload).run())
