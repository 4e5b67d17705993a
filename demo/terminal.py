"""The live view on a terminal's own screen."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live

from demo.view import Scene, render
from demo.watching import Facts


class LiveView:
    """Redraws the whole picture at each `show`; the terminal gets its old screen back at the end."""

    def __init__(self, scene: Scene, console: Console) -> None:
        self._scene = scene
        self._facts = Facts()
        self._live = Live(render(scene, self._facts), console=console, screen=True, auto_refresh=False)

    def __enter__(self) -> LiveView:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, facts: Facts, events: list[dict[str, Any]], phase: str) -> None:
        self._facts = facts
        self.phase(phase)

    def phase(self, phase: str) -> None:
        self._scene.phase = phase
        self._live.update(render(self._scene, self._facts), refresh=True)
