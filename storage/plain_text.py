"""Figures as people read them: bytes, times, durations; and the table and progress bar of the lake's commands."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from infomae_stream.clock import NS_PER_S


class Advance(Protocol):
    def __call__(self, done: float, total: float) -> None:
        """Tell how far the work is, in any unit."""


def no_progress(done: float, total: float) -> None:
    """For callers that show nothing."""


def console() -> Console:
    """Standard output; as wide as its lines need where it is no terminal, so that nothing is cut in a file."""
    return Console() if sys.stdout.isatty() else Console(width=200)


@contextmanager
def progress_bar(text: str, *, quiet: bool = False) -> Iterator[Advance]:
    """A bar with the time that is left, on standard error, only where that is a terminal."""
    screen = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True, disable=quiet or not screen.is_terminal) as progress:
        task = progress.add_task(text, total=None)

        def advance(done: float, total: float) -> None:
            progress.update(task, completed=done, total=total)

        yield advance


def bytes_text(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def duration_text(seconds: float) -> str:
    sign, seconds = ("-", -seconds) if seconds < 0 else ("", seconds)
    if seconds < 60:
        return f"{sign}{seconds:.1f} s"
    days, rest = divmod(round(seconds), 86_400)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{sign}{days} d {clock}" if days else f"{sign}{clock}"


def time_text(ns: int) -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.fromtimestamp(ns // NS_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def exact_time_text(ns: int) -> str:
    """ISO 8601, UTC, to the nanosecond."""
    return time_text(ns)[:-1] + f".{ns % NS_PER_S:09}Z"


def json_line(value: Any) -> str:
    """One line of JSON by the standard: what is not finite becomes null."""
    return json.dumps(jsonable(value), allow_nan=False)


def jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, datetime | date):
        return value.isoformat()
    return value if isinstance(value, str | int | bool | None) else str(value)
