"""Waiting for what other processes and threads do, and reading what they are about to write."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

# Spent only where something never comes. A loaded machine takes much of it: no test should have a shorter one.
PATIENCE_S: Final = 120.0
_SO_MEMINFO: Final = 55  # Linux


def wait_until(condition: Callable[[], object], timeout_s: float = PATIENCE_S, what: str = "condition") -> None:
    """Look again and again until `condition` holds; fail the test when it does not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s} s"
        time.sleep(0.02)


def json_lines(path: Path, offset: int = 0) -> list[dict[str, Any]]:
    """The JSON objects in a file that somebody still writes, from byte `offset` on; none while it is not there.

    A last line without its end is left out; so are lines of other programs.
    """
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes()[offset:].rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")]


def send_datagram(data: bytes, receiver: socket.socket) -> None:
    """Send over loopback, and return once the kernel has queued or dropped it: that may be later than `sendto` ends."""

    def queue() -> tuple[int, int]:
        numbers = struct.unpack("9I", receiver.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))
        return numbers[0], numbers[8]  # bytes that wait, datagrams dropped

    before = queue()
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        sender.sendto(data, ("127.0.0.1", receiver.getsockname()[1]))
    wait_until(lambda: queue() != before, what="the datagram")


def metrics_of(port: int) -> str:
    """What a process says on its /metrics; "" while nobody answers there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as answer:
            return str(answer.read().decode())
    except (OSError, http.client.HTTPException):
        return ""


def sample(port: int, name: str) -> float:
    """One sample of /metrics by its name with labels; 0 while it is not there."""
    lines = [line.rsplit(" ", 1) for line in metrics_of(port).splitlines()]
    return next((float(line[1]) for line in lines if line[0] == name), 0.0)
