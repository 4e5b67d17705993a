"""Starts a few commands of this program as processes of their own, and starts one again when it ends unasked."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from infomae_stream.clock import Clock
from infomae_stream.telemetry import EventLog

BAD_CONFIG_EXIT = 78
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 60.0
STEADY_S = 30.0  # a child that lived this long starts its back-off anew
STOP_TIMEOUT_S = 20.0
PROGRAM = [sys.executable, "-m", "infomae_stream.cli"]


@dataclass
class _Child:
    name: str
    arguments: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    started_ns: int = 0
    backoff_s: float = FIRST_BACKOFF_S
    start_at_ns: int = 0
    restarts: int = field(default=0)


class Supervisor:
    """`children` maps a name to the arguments that follow `program`, which is `infomae-stream`."""

    def __init__(
        self, children: dict[str, Sequence[str]], clock: Clock, log: EventLog, program: Sequence[str] = PROGRAM
    ) -> None:
        self._children = [_Child(name, arguments) for name, arguments in children.items()]
        self._program = program
        self._clock = clock
        self._log = log
        self._stop = threading.Event()

    def run(self) -> int:
        """Watch until SIGINT or SIGTERM, or until a child says that its configuration is bad; return the exit code."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda *_: self._stop.set())
        exit_code = 0
        try:
            while not self._stop.is_set():
                if any(self._tend(child) == BAD_CONFIG_EXIT for child in self._children):
                    exit_code = BAD_CONFIG_EXIT
                    break
                self._stop.wait(0.2)
        finally:
            self._stop_children()
        return exit_code

    def _tend(self, child: _Child) -> int | None:
        now_ns = self._clock.monotonic_ns()
        if child.process is None:
            if now_ns >= child.start_at_ns:
                child.process = subprocess.Popen([*self._program, *child.arguments])
                child.started_ns = now_ns
                self._log.info("child_started", child=child.name, pid=child.process.pid, restarts=child.restarts)
            return None
        code = child.process.poll()
        if code is None:
            return None
        if now_ns - child.started_ns > STEADY_S * 1e9:
            child.backoff_s = FIRST_BACKOFF_S
        self._log.warning("child_ended", child=child.name, exit=code, again_in_s=child.backoff_s)
        child.process, child.start_at_ns = None, now_ns + round(child.backoff_s * 1e9)
        child.backoff_s = min(child.backoff_s * 2, LONGEST_BACKOFF_S)
        child.restarts += 1
        return code

    def _stop_children(self) -> None:
        running = [c.process for c in self._children if c.process is not None and c.process.poll() is None]
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._log.warning("child_killed", pid=process.pid, after_s=STOP_TIMEOUT_S)
                process.kill()
