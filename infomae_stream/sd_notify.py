"""What a service tells systemd: ready, alive, its status, reloading, stopping. One datagram a message (sd_notify(3)).

Under `node run` it is the collecting child that says READY=1 and WATCHDOG=1, because only it sees samples move; the
parent, systemd's main process, says STOPPING=1. The unit therefore needs `NotifyAccess=all`. The child is not the
process that WATCHDOG_PID names, so that variable is left aside.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Final

from infomae_stream.telemetry import EventLog

SOCKET: Final = "NOTIFY_SOCKET"
MOST_STATUS: Final = 200  # characters


class Notifier:
    """Tells nobody where $NOTIFY_SOCKET is not set: the program was not started by systemd."""

    def __init__(self, log: EventLog, environ: Mapping[str, str] = os.environ) -> None:
        self._log = log
        self._address = environ.get(SOCKET, "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]  # Linux's abstract namespace
        self._failed = False

    def ready(self, status: str = "") -> None:
        """Started, or reloaded."""
        self._send("READY=1", status)

    def alive(self) -> None:
        """Pet the watchdog."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """The line that `systemctl status` shows."""
        self._send("", text)

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, words: str, status: str = "") -> None:
        if not self._address:
            return
        lines = [words] if words else []
        if status:
            lines.append("STATUS=" + " ".join(status.split())[:MOST_STATUS])
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
                s.setblocking(False)  # a manager that does not read must not hold up the sensors
                s.connect(self._address)
                s.send("\n".join(lines).encode())
        except OSError as e:
            if not self._failed:
                self._log.warning("notify_failed", socket=self._address.replace("\0", "@"), reason=str(e))
            self._failed = True
        else:
            self._failed = False
