"""A wall clock that is told what to show, for programs of a trial: libfaketime, by a file that is read at every look.

Monotonic time is left alone, as the kernel does. Beside it a stand-in of `chronyc`, which a node asks how wrong its
clock is: it knows the truth at once, since /proc/uptime goes on rightly whatever the clock shows.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from tests.faults.processes import ROOT, Program

LIBRARY: Final = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
# The fields of `chronyc -c tracking`; the fifth: what the clock shows minus the truth.
_CHRONYC: Final = """#!/bin/sh
read -r up rest < /proc/uptime
date +%s.%N | awk -v up="$up" -v booted={booted:.3f} \
  '{{ printf "7F7F0101,truth,1,0,%.6f,0,0,0,0,0,0.000001,0.000001,1,Normal\\n", $1 - booted - up }}'
"""
# libfaketime 0.9.10 lets clock_nanosleep until a monotonic time, so Python's time.sleep, fail with EINVAL: always.
_SLEEP: Final = """import threading, time
def _sleep(seconds): threading.Event().wait(seconds)
time.sleep = _sleep
"""


def missing_for_faked_clocks() -> str:
    """Why no clock can be faked here, "" when it can."""
    return "" if LIBRARY.exists() else f"libfaketime is not installed: no {LIBRARY} (Debian: faketime)"


class FakedClock:
    """`set` it to a libfaketime description: "+2", "-1d", "@2038-01-19 03:14:05" (goes on from there), "+0 x1.0002",
    "2001-01-01 00:00:00" (stands still); or to "freeze": it stands still from now on."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._file = folder / "clock"
        self._tools = folder / "bin"
        self._tools.mkdir()
        up_s = float(Path("/proc/uptime").read_text().split()[0])
        chronyc = self._tools / "chronyc"
        chronyc.write_text(_CHRONYC.format(booted=time.time() - up_s))
        chronyc.chmod(0o755)
        (self._tools / "sitecustomize.py").write_text(_SLEEP)
        self.set("+0")

    def give_to(self, program: Program) -> None:
        """For its next starts."""
        program.preload.append(LIBRARY)
        program.environment |= {
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "1",
            "TZ": "UTC",
            "PATH": f"{self._tools}:{os.environ['PATH']}",
            "PYTHONPATH": f"{self._tools}:{ROOT}",
        }

    def take_from(self, program: Program) -> None:
        """From its next start on it has the true clock again."""
        program.preload.clear()
        program.environment.clear()

    def set(self, text: str) -> None:
        if text == "freeze":
            text = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        new = self._file.with_suffix(".new")
        new.write_text(f"{text}\n")
        new.replace(self._file)
