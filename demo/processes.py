"""Starts the deployment's processes exactly as an operator would, watches their memory, and stops them in order."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from infomae_stream.errors import InfomaeError

CLI: Final = (sys.executable, "-m", "infomae_stream.cli")
STOP_TIMEOUT_S: Final = 30.0
ROLE_OF_COMMAND: Final = {
    "node collect": "collect",
    "node detect": "detect",
    "hub ingest": "ingest",
    "hub align": "align",
    "hub maintain": "maintain",
    "hub train": "train",
    "label import": "labels",
}


class DemoError(InfomaeError):
    """The demonstration cannot go on; the message names the log to read."""


def free_ports(count: int) -> list[int]:
    """`count` different loopback ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [int(s.getsockname()[1]) for s in sockets]
    finally:
        for s in sockets:
            s.close()


def find_mosquitto() -> str:
    """The program's path, also where Debian hides it from users' PATH; "" when it is not there."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin") or ""


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 30.0) -> None:
    """Return once something listens on `port`. Raises DemoError when `process` ends or takes too long."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError as e:
            if process.poll() is not None or time.monotonic() > deadline:
                raise DemoError(f"nothing listens on port {port}", where=str(log), fix="read that log") from e
            time.sleep(0.05)


@dataclass(frozen=True)
class RunningProcess:
    """One process of the deployment as /proc shows it."""

    pid: int
    parent: str
    role: str
    peak_rss_mb: float


@dataclass
class Processes:
    """The top processes by name, in the order in which they were started; each writes OUT/logs/NAME.jsonl."""

    logs: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    peaks_mb: dict[str, float] = field(default_factory=dict)
    seen_pids: dict[str, set[int]] = field(default_factory=dict)

    def log_of(self, name: str) -> Path:
        return self.logs / f"{name}.jsonl"

    def start(self, name: str, command: Sequence[str], environ: dict[str, str] | None = None) -> None:
        """Start `command` in a session of its own, so that a Ctrl-C at the terminal reaches the demo alone."""
        self.logs.mkdir(parents=True, exist_ok=True)
        with self.log_of(name).open("ab") as log:
            self.running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **(environ or {})},
            )

    def ended(self) -> dict[str, int]:
        """Exit codes of the processes that are no longer there, though nobody stopped them."""
        return {name: p.returncode for name, p in self.running.items() if p.poll() is not None}

    def stop(self, name: str) -> int:
        """End one process and its children: first asked, at last forced. Returns its exit code."""
        process = self.running.pop(name)
        if process.poll() is None:
            process.terminate()
        try:
            code = process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        return code

    def stop_all(self) -> dict[str, int]:
        """Nodes first, so that nothing new arrives; then the hub; the broker last. Returns the exit codes."""
        return {name: self.stop(name) for name in reversed(list(self.running))}

    def table(self) -> list[RunningProcess]:
        """Every process there is now; also remembers each role's highest memory."""
        found = []
        for name, process in self.running.items():
            for pid in [process.pid, *_descendants(process.pid)]:
                role = _role(pid) or ("broker" if name == "broker" else "supervisor")
                peak_mb = _peak_rss_mb(pid)
                if peak_mb > 0:
                    found.append(RunningProcess(pid, name, role, peak_mb))
                    self.peaks_mb[role] = max(self.peaks_mb.get(role, 0.0), peak_mb)
                    self.seen_pids.setdefault(f"{name} {role}", set()).add(pid)
        return found

    def pid(self, name: str, role: str) -> int:
        """The process of `role` below the top process `name`; 0 when it is not there now."""
        return next((p.pid for p in self.table() if (p.parent, p.role) == (name, role)), 0)


def _descendants(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += [int(c) for c in (task / "children").read_text().split()]
    except OSError:  # it ended meanwhile, or this system has no /proc
        return []
    return children + [grandchild for child in children for grandchild in _descendants(child)]


def _role(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    line = " ".join(words)
    return next((role for command, role in ROLE_OF_COMMAND.items() if f" {command} " in line), "")


def _peak_rss_mb(pid: int) -> float:
    """VmHWM: the most memory that the process ever had resident; 0 when it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0
