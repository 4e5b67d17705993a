"""Our programs as processes of their own: started, armed with failpoints, killed, stopped, continued, weighed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from infomae_stream.failpoints import VARIABLE

ROOT: Final = Path(__file__).parents[2]
# Nothing outlives a trial whose own process was killed.
_WITH_PARENT: Final = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


class Stuck(AssertionError):
    """What had to come true did not."""


def wait_for(done: Callable[[], object], timeout_s: float, what: str, every_s: float = 0.03) -> None:
    """Look again and again until `done` holds. Raises Stuck after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            raise Stuck(f"not within {timeout_s:g} s: {what}")
        time.sleep(every_s)


class Program:
    """`infomae-stream <arguments>`, its log appended to `<folder>/<name>.log`.

    environment: added to ours at every start. preload: libraries to load first (LD_PRELOAD). within: a command that
    becomes the program somewhere else (a network namespace). hits: failpoints at which it has killed itself.
    ended: we ended it (or never started it), so nobody need start it again.
    """

    def __init__(self, name: str, folder: Path, arguments: Sequence[str]) -> None:
        self.name = name
        self.log_path = folder / f"{name}.log"
        self.environment: dict[str, str] = {}
        self.preload: list[Path] = []
        self.within: list[str] = []
        self.ended = True
        self.peak_memory_bytes = 0
        self.starts = 0
        self.hits: list[str] = []
        self._folder = folder
        self._up_event = f"{arguments[1]}_started"
        self._command = [sys.executable, "-m", "infomae_stream.cli", *arguments]
        self._process: subprocess.Popen[bytes] | None = None
        self._armed = ""
        self._log_from = 0

    def start(self, failpoint: str = "") -> None:
        """Start it; `failpoint` (as INFOMAE_FAILPOINTS) holds for this start only."""
        self._armed = failpoint
        self.ended = False
        self.starts += 1
        self._log_from = self.log_path.stat().st_size if self.log_path.exists() else 0
        own = {"PYTHONPATH": str(ROOT), VARIABLE: failpoint}
        # By way of env, so that the programs before ours do without the libraries.
        preload = ["env", f"LD_PRELOAD={':'.join(map(str, self.preload))}"] if self.preload else []
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*_WITH_PARENT, *self.within, *preload, *self._command],
                cwd=self._folder,
                stdout=log,
                stderr=log,
                env={**os.environ, **own, **self.environment},
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def up(self) -> bool:
        """It has come up since it was started last; before that a SIGTERM finds no handler."""
        return self.running and self._up_event in self.log_since_start()

    def exit_code(self) -> int | None:
        """None while it runs or has not been started. Notes a failpoint that killed it."""
        code = None if self._process is None else self._process.poll()
        if code == -signal.SIGKILL and "=kill" in self._armed:
            self.hits += [part.partition("=")[0] for part in self._armed.split(",") if "=kill" in part]
            self._armed = ""
        return code

    def weigh(self) -> None:
        """Take down the peak of its resident memory so far."""
        if self._process is None:
            return
        with suppress(OSError, StopIteration, IndexError):
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
            peak = int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
            self.peak_memory_bytes = max(self.peak_memory_bytes, peak)

    def kill(self) -> None:
        """SIGKILL; nothing happens when it is not there any more."""
        self.ended = True
        if self._process is None:
            return
        self.weigh()
        self.exit_code()
        self._armed = ""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()

    def signal(self, signum: int) -> None:
        assert self._process is not None
        self._process.send_signal(signum)

    def stop(self, timeout_s: float = 30) -> int:
        """SIGTERM; the exit code. Raises Stuck, after a SIGKILL, when it does not end."""
        assert self._process is not None
        self.ended = True
        self.weigh()
        self._process.terminate()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Stuck(f"{self.name} did not end within {timeout_s:g} s of SIGTERM") from None

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_since_start(self) -> str:
        with self.log_path.open(errors="replace") as f:
            f.seek(self._log_from)
            return f.read()
