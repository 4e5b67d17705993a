"""What gpsd knows of this machine's clock: its PPS and TOFF reports compare the system's time with the satellites'."""

from __future__ import annotations

import json
import math
import socket
from typing import Any, Final

from infomae_stream.clock import NS_PER_S, Clock
from infomae_stream.types import ClockQuality

WATCH: Final = b'?WATCH={"enable":true,"json":true,"pps":true};\n'
MOST_BYTES: Final = 1_000_000  # of one unfinished line, or of one look
STALE_NS: Final = 10 * NS_PER_S  # a report that is older says nothing of now
# Without a pulse the time comes over a serial line, late by an unknown part of a second.
SERIAL_UNCERTAINTY_NS: Final = NS_PER_S // 2
MOST_OFFSET_NS: Final = NS_PER_S // 10  # a clock that is farther off is not kept by the receiver
FIX_2D: Final = 2


class Gpsd:
    """Keeps a connection to gpsd and never waits for it. host, port: where it listens."""

    def __init__(self, clock: Clock, host: str = "127.0.0.1", port: int = 2947) -> None:
        self._clock, self._address = clock, (host, port)
        self._socket: socket.socket | None = None
        self._buffer = b""
        self._reports: dict[str, tuple[int, dict[str, Any]]] = {}  # class -> when it was read, and the report

    def ask(self, boot_id: str = "") -> ClockQuality | None:
        """The quality by the newest report; None when gpsd, the receiver or the fix is missing."""
        self._listen()
        fix = self._fresh("TPV")
        if fix is None or not isinstance(fix.get("mode"), int) or fix["mode"] < FIX_2D:
            return None
        for kind in ("PPS", "TOFF"):
            report = self._fresh(kind)
            offset_ns = None if report is None else _offset_ns(report)
            if report is None or offset_ns is None:
                continue
            error_ns = SERIAL_UNCERTAINTY_NS if kind == "TOFF" else _precision_ns(report)
            kept = abs(offset_ns) <= MOST_OFFSET_NS
            return ClockQuality(f"gpsd_{kind.lower()}", offset_ns, abs(offset_ns) + error_ns, kept, boot_id)
        return None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._buffer = None, b""

    def _fresh(self, kind: str) -> dict[str, Any] | None:
        found = self._reports.get(kind)
        return found[1] if found and self._clock.monotonic_ns() - found[0] <= STALE_NS else None

    def _listen(self) -> None:
        """Read what has come; connect where there is no connection. A failure is tried again with the next look."""
        try:
            if self._socket is None:
                self._socket = socket.create_connection(self._address, timeout=0.2)
                self._socket.setblocking(False)
                self._socket.sendall(WATCH)
            received = 0
            while received < MOST_BYTES:
                data = self._socket.recv(65_536)
                if not data or len(self._buffer) > MOST_BYTES:
                    self.close()
                    return
                received += len(data)
                *lines, self._buffer = (self._buffer + data).split(b"\n")
                for line in lines:
                    self._hear(line)
        except BlockingIOError:
            return
        except OSError:
            self.close()

    def _hear(self, line: bytes) -> None:
        try:
            report = json.loads(line)
        except (ValueError, RecursionError):
            return
        if isinstance(report, dict) and report.get("class") in ("TPV", "PPS", "TOFF"):
            self._reports[report["class"]] = (self._clock.monotonic_ns(), report)


def _offset_ns(report: dict[str, Any]) -> int | None:
    """What the system's clock showed minus the satellites' time; None when the report lacks a part."""
    parts = [report.get(key) for key in ("real_sec", "real_nsec", "clock_sec", "clock_nsec")]
    if not all(isinstance(part, int) and not isinstance(part, bool) for part in parts):
        return None
    real_s, real_ns, clock_s, clock_ns = (int(part) for part in parts if part is not None)
    return (clock_s - real_s) * NS_PER_S + clock_ns - real_ns


def _precision_ns(report: dict[str, Any]) -> int:
    """gpsd's precision is a power of two, in seconds; a microsecond where it says none."""
    precision = report.get("precision")
    if isinstance(precision, int) and -40 <= precision <= 0:
        return math.ceil(2.0**precision * NS_PER_S)
    return 1_000
