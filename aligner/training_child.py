"""A training run as a child process: started, listened to, ended. It ends by itself when this process dies."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

MAX_LINES: Final = 1000
STOP_TIMEOUT_S: Final = 10.0


class TrainingChild:
    """`lines` gives what it has said; `ended` its exit code once it is gone and all it said was read."""

    def __init__(self, arguments: Sequence[str], run: int, folder: Path) -> None:
        self.run = run
        self.folder = folder
        self._queue: queue.Queue[dict[str, Any]] = queue.Queue(MAX_LINES)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "infomae_stream.cli", "hub", "train", *arguments, "--watch-parent"],
            stdin=subprocess.PIPE,  # held open, never written: it closes when this process dies
            stdout=subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._read, name=f"training {run}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def lines(self) -> list[dict[str, Any]]:
        """What has arrived since the last call, oldest first."""
        out = []
        while True:
            try:
                out.append(self._queue.get_nowait())
            except queue.Empty:
                return out

    def ended(self) -> int | None:
        if self._reader.is_alive() or not self._queue.empty():
            return None
        return self._process.poll()

    def stop(self) -> None:
        """End it, by force when it does not listen; what it has written stays, and counts for nothing."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        while self._reader.is_alive():
            self.lines()  # make room for the last words
            self._reader.join(0.1)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _read(self) -> None:
        """Waits when nobody takes the lines: the child then waits, too."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                continue  # a library's print; errors come on standard error, which is ours
            if isinstance(message, dict):
                self._queue.put(message)
