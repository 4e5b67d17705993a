"""Starts a few commands of this program as processes of their own, and starts one again when it ends unasked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from infomae_stream.clock import Clock
from infomae_stream.errors import ConfigError
from infomae_stream.sd_notify import SOCKET, Notifier
from infomae_stream.telemetry import RESTARTS, EventLog

BAD_CONFIG_EXIT = 78
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 60.0
STEADY_S = 30.0  # a child that lived this long starts its back-off anew
STOP_TIMEOUT_S = 20.0
LOOK_S = 0.2
PROGRAM = [sys.executable, "-m", "infomae_stream.cli"]

Children = Mapping[str, Sequence[str]]


@dataclass
class _Child:
    name: str
    arguments: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    started_ns: int = 0
    backoff_s: float = FIRST_BACKOFF_S
    start_at_ns: int = 0
    restarts: int = 0
    given_up: bool = False  # its configuration is bad: not before a reload


class Supervisor:
    """`children` maps a name to the arguments that follow `program`, which is `infomae-stream`.

    spare: children without which the others go on when their configuration is bad (exit 78); any other ends all.
    notifying: the child that talks to systemd itself; the rest never see its socket.
    reload: with it, SIGHUP is taken: it returns the children there should be now, or raises ConfigError; those that
        stay get the signal passed on, and tell on their own what they make of it.
    """

    def __init__(
        self,
        children: Children,
        clock: Clock,
        log: EventLog,
        program: Sequence[str] = PROGRAM,
        *,
        spare: Collection[str] = (),
        notifying: str = "",
        reload: Callable[[], Children] | None = None,
    ) -> None:
        self._children = [_Child(name, arguments) for name, arguments in children.items()]
        self._program = program
        self._clock = clock
        self._log = log
        self._spare, self._notifying, self._reload = spare, notifying, reload
        self._notifier = Notifier(log)
        self._stop, self._hang_up = threading.Event(), threading.Event()

    def run(self) -> int:
        """Watch until SIGINT or SIGTERM, or until a child says that its configuration is bad; return the exit code."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda *_: self._stop.set())
        if self._reload is not None:
            signal.signal(signal.SIGHUP, lambda *_: self._hang_up.set())
        exit_code = 0
        try:
            while not self._stop.is_set():
                if self._hang_up.is_set():
                    self._hang_up.clear()
                    self._take_reload()
                if any(self._tend(child) == BAD_CONFIG_EXIT for child in self._children):
                    exit_code = BAD_CONFIG_EXIT
                    break
                self._stop.wait(LOOK_S)
        finally:
            self._notifier.stopping()
            self._stop_children(self._children)
        return exit_code

    def _tend(self, child: _Child) -> int | None:
        """Start it when it is time, or see how it ended; the exit code when that concerns all."""
        now_ns = self._clock.monotonic_ns()
        if child.process is None:
            if now_ns >= child.start_at_ns and not child.given_up:
                self._start(child, now_ns)
            return None
        code = child.process.poll()
        if code is None:
            return None
        child.process = None
        if code == BAD_CONFIG_EXIT and child.name in self._spare:
            child.given_up = True
            self._log.error("child_given_up", child=child.name, exit=code, fix="correct the file, then reload (SIGHUP)")
            return None
        if now_ns - child.started_ns > STEADY_S * 1e9:
            child.backoff_s = FIRST_BACKOFF_S
        self._log.warning("child_ended", child=child.name, exit=code, again_in_s=child.backoff_s)
        child.start_at_ns = now_ns + round(child.backoff_s * 1e9)
        child.backoff_s = min(child.backoff_s * 2, LONGEST_BACKOFF_S)
        child.restarts += 1
        return code

    def _start(self, child: _Child, now_ns: int) -> None:
        environment = {**os.environ, RESTARTS: str(child.restarts)}
        if child.name != self._notifying:
            environment.pop(SOCKET, None)
        # A reload that comes before the child can take it must not end it; it reads the new file anyway.
        shield = self._ignore_hang_up if self._reload is not None else None
        child.process = subprocess.Popen([*self._program, *child.arguments], env=environment, preexec_fn=shield)
        child.started_ns = now_ns
        self._log.info("child_started", child=child.name, pid=child.process.pid, restarts=child.restarts)

    @staticmethod
    def _ignore_hang_up() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _take_reload(self) -> None:
        assert self._reload is not None
        try:
            wanted = self._reload()
        except ConfigError as e:
            # The children say so, too, where it shows in their metrics; who runs goes on running.
            self._log.error("config_rejected", reason=str(e), effect="the processes stay as they are")
            wanted = {child.name: child.arguments for child in self._children}
        gone = [child for child in self._children if child.name not in wanted]
        self._stop_children(gone)
        self._children = [child for child in self._children if child not in gone]
        for child in self._children:
            child.given_up = False
            if child.process is not None:
                child.process.send_signal(signal.SIGHUP)
        known = {child.name for child in self._children}
        self._children += [_Child(name, arguments) for name, arguments in wanted.items() if name not in known]
        self._log.info("reload_passed_on", children=sorted(known), stopped=[child.name for child in gone])

    def _stop_children(self, children: Sequence[_Child]) -> None:
        running = [c.process for c in children if c.process is not None and c.process.poll() is None]
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._log.warning("child_killed", pid=process.pid, after_s=STOP_TIMEOUT_S)
                process.kill()
