"""Holds the watches back while the first model is learned: however long that takes, something is left to detect."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from demo.people import REDUCED


class Hold:
    """Call it again and again. Once there are pairs enough for a first model it stops the watches' supervisor and
    kills their collector; once there is a bundle, the supervisor goes on, and starts a collector that goes on, too.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._held = 0  # the supervisor's pid
        self._over = False

    def __call__(self) -> None:
        if self._over:
            return
        status = self._status()
        if self._held and status.get("bundle"):
            self.release()
        elif not self._held and status.get("pairs_to_learn_from", 0) >= REDUCED.min_pairs:
            self._hold()

    def release(self) -> None:
        self._over = True
        if self._held:
            with suppress(ProcessLookupError):
                os.kill(self._held, signal.SIGCONT)

    def _hold(self) -> None:
        supervisor = self._pid("run")
        if supervisor:
            os.kill(supervisor, signal.SIGSTOP)
            self._held = supervisor
            if collector := self._pid("collect"):
                with suppress(ProcessLookupError):
                    os.kill(collector, signal.SIGKILL)

    def _pid(self, command: str) -> int:
        """`node <command>` of the watches; 0 when it is not there."""
        wanted = {b"node", command.encode(), os.fsencode(self._out / "watches.toml")}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # others come and go
                if wanted <= set(path.read_bytes().split(b"\0")):
                    return int(path.parent.name)
        return 0

    def _status(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self._out / "aligner" / "status.json").read_text(encoding="utf-8")))
        except OSError:  # not there yet
            return {}
