"""`hub train`: one training run in a process of its own, so that matching and releasing go on beside it.

It writes its folder and prints one JSON object a line: {"event": "progress", "stage", "done", "total", "eta_s",
"metrics"}, last {"event": "done", "candidate": path} or {"event": "failed", "error": text} (exit 1).
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from infomae_stream.config import load_config
from infomae_stream.errors import InfomaeError
from infomae_stream.hub_config import HubConfig


class ProgressLines:
    """A Progress that prints. `eta_s` is for the stage at hand, from its pace so far; null before there is any."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._stage = ""
        self._began_s = self._last_s = time.monotonic()

    def __call__(self, stage: str, done: int, total: int, metrics: dict[str, float]) -> None:
        now_s = time.monotonic()
        if stage != self._stage:
            self._stage, self._began_s = stage, self._last_s  # a stage begins where the one before it ended
        self._last_s = now_s
        eta_s = round((now_s - self._began_s) / done * (total - done), 1) if done > 0 else None
        numbers = {name: round(float(value), 5) for name, value in metrics.items()}
        say(self._out, event="progress", stage=stage, done=done, total=total, eta_s=eta_s, metrics=numbers)


def say(out: TextIO, **fields: Any) -> None:
    from aligner.status import finite

    print(json.dumps(finite(fields)), file=out, flush=True)


def train(
    config: Annotated[Path, typer.Option("--config", help="The hub's TOML file.")],
    snapshot: Annotated[Path, typer.Option(help="Snapshot file (JSON).")],
    out: Annotated[Path, typer.Option(help="Folder for what the run makes.")],
    run: Annotated[int, typer.Option(help="Number of the run.")] = 0,
    reuse: Annotated[Path | None, typer.Option(help="Folder of a run whose stage 1 may serve again.")] = None,
    serving: Annotated[Path | None, typer.Option(help="Folder of the run whose model serves now.")] = None,
    watch_parent: Annotated[bool, typer.Option(help="End when standard input closes (used by hub align).")] = False,
) -> None:
    """One alignment run: a function of snapshot, configuration and seed."""
    settings = load_config(config, HubConfig)
    if watch_parent:
        threading.Thread(target=_end_with_parent, name="watch-parent", daemon=True).start()
    os.nice(5)  # ingest and detection on this machine go first
    from aligner.run_files import CANDIDATE
    from aligner.snapshot import Snapshot
    from aligner.training_run import RunInputs
    from aligner.training_run import run as run_training
    from storage.lake import Lake

    try:
        inputs = RunInputs(run, out, settings.gates, reuse, serving)
        run_training(Snapshot.read(snapshot), Lake(settings.lake_path), inputs, ProgressLines(sys.stdout))
    except InfomaeError as e:
        say(sys.stdout, event="failed", error=str(e))
        raise
    say(sys.stdout, event="done", candidate=str(out / CANDIDATE))


def _end_with_parent() -> None:
    """The parent holds the other end of standard input: it closes when the parent dies, however it dies."""
    # Not through sys.stdin: a thread that holds its lock when the interpreter ends aborts the process.
    while os.read(0, 4096):
        pass
    os._exit(1)
