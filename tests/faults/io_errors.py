"""A disk that fails (EIO) or is slow, for a while and for one program: strace attaches, and its system calls do so.

Why not libfiu, made for this: its preloaded library takes malloc and mmap too, and a program that imports pyarrow or
deltalake under it hangs at its start now and then (two threads, the loader's lock and libfiu's, each holding one).
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.faults.processes import Program, wait_for

_ATTACH_S: Final = 30
_SYNCS: Final = ("fsync", "fdatasync")


def missing_for_io_errors() -> str:
    """Why no errors of the disk can be made here, "" when they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        try:
            command = ["timeout", "0.3", "strace", "-qq", "-p", str(sleeper.pid)]
            tried = subprocess.run(command, capture_output=True, text=True, check=False)
            return f"strace may not attach: {tried.stderr.strip()}" if "attach:" in tried.stderr else ""
        finally:
            sleeper.kill()


@contextmanager
def failing_calls(program: Program, calls: Sequence[str], every: int) -> Iterator[None]:
    """Every `every`-th of each of `calls` (fsync, fdatasync, write, pwrite64) fails with EIO; the kernel sees none."""
    # And `close`, to tell a descriptor from a later one of the same number.
    with _traced(program, [*calls, *_SYNCS, "close"], [f"{call}:error=EIO:when=1+{every}" for call in calls]):
        yield


@contextmanager
def slow_syncs(program: Program, seconds: float) -> Iterator[None]:
    """Every fsync and fdatasync takes so much longer, as on a disk that is busy; then the disk is quick again."""
    with _traced(program, _SYNCS, [f"{call}:delay_enter={round(seconds * 1e6)}" for call in _SYNCS]):
        yield


@contextmanager
def _traced(program: Program, calls: Sequence[str], injected: Sequence[str]) -> Iterator[None]:
    """strace is attached, writes down `calls` and does what `injected` says."""
    report = program.log_path.with_name(f"{program.name}.strace")
    inject = [f"--inject={what}" for what in injected]
    traced = f"trace={','.join(sorted(set(calls)))}"
    command = ["strace", "-f", "-y", "-e", traced, *inject, "-p", str(program.pid), "-o", str(report)]
    messages = Path(f"{report}.messages")
    with messages.open("wb") as f:
        tracer = subprocess.Popen(command, stderr=f)
    try:
        wait_for(lambda: "attached" in messages.read_text() or tracer.poll() is not None, _ATTACH_S, "strace attaches")
        yield
    finally:
        tracer.send_signal(signal.SIGINT)  # it lets the program go
        tracer.wait(_ATTACH_S)


def synced_again(program: Program) -> list[str]:
    """Files whose descriptor was synced once more after a sync of it had failed."""
    found: list[str] = []
    doubtful: set[str] = set()  # descriptors
    unfinished: dict[str, str] = {}  # thread -> descriptor
    for line in program.log_path.with_name(f"{program.name}.strace").read_text(errors="replace").splitlines():
        thread, _, rest = line.partition(" ")
        call = re.match(r"\s*(\w+)\((\d+<[^>]*>)", rest)
        if call is None and "resumed>" not in rest:
            continue
        name, descriptor = call.groups() if call else ("fsync", unfinished.pop(thread, ""))
        if "unfinished" in rest:
            unfinished[thread] = descriptor
        if name == "close":
            doubtful.discard(descriptor)
        elif "INJECTED" in rest and name in _SYNCS:
            doubtful.add(descriptor)
        elif name in _SYNCS and call and descriptor in doubtful:
            found.append(descriptor)
    return found


def failed_calls(program: Program) -> int:
    """How many calls have failed so far."""
    report = program.log_path.with_name(f"{program.name}.strace")
    return report.read_text(errors="replace").count("(INJECTED)") if report.exists() else 0
