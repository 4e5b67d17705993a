"""`node collect` or `node run` as a process that tests provoke: its log, its metrics, its Raspberry Shakes, systemd."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from collectors.sources.raspberry_shake import format_datagram
from tests.brokers import free_port
from tests.waiting import metrics_of, wait_until


class Shake(threading.Thread):
    """Sends 100 Hz of one channel to a UDP port, a quarter of a second each, until it is told to pause or to stop."""

    def __init__(self, port: int, channel: str = "EHZ") -> None:
        super().__init__()
        self.port, self.channel = port, channel
        self._end = threading.Event()
        self._playing, self._lock = True, threading.Lock()
        self.counts: list[int] = []  # all that was sent, each number once
        self.start()

    def run(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            while not self._end.wait(0.25):
                with self._lock:
                    if self._playing:
                        counts = range(len(self.counts), len(self.counts) + 25)
                        s.sendto(format_datagram(self.channel, time.time_ns(), counts), ("127.0.0.1", self.port))
                        self.counts.extend(counts)

    def play(self, on: bool) -> None:
        """Nothing is sent any more when this returns for `on` False."""
        with self._lock:
            self._playing = on

    def stop(self) -> None:
        self._end.set()
        self.join()


class Systemd:
    """The socket that a service tells systemd on."""

    def __init__(self, address: str) -> None:
        self.variable = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)
        self.heard: list[str] = []

    def listen(self) -> list[str]:
        """All lines so far, in order."""
        while True:
            try:
                self.heard += self._socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return self.heard

    def count(self, word: str) -> int:
        return self.listen().count(word)

    def close(self) -> None:
        self._socket.close()


class NodeProcess:
    """`write` makes its file; the log is read from a pipe, so that a limit on the size of files does not stop it."""

    def __init__(self, folder: Path, command: str = "collect", **environment: str) -> None:
        self.folder, self.command = folder, command
        self.config = folder / "node.toml"
        self.metrics_port = free_port()
        self._environment = {**os.environ, **environment}
        self.process: subprocess.Popen[bytes] | None = None
        self.log: list[dict[str, Any]] = []
        self._reader: threading.Thread | None = None

    def start(self) -> NodeProcess:
        program = [sys.executable, "-m", "infomae_stream.cli", "node", self.command, "--config", str(self.config)]
        self.process = subprocess.Popen(program, stderr=subprocess.PIPE, env=self._environment)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in list(self.log) if line["event"] == name]

    def wait_for(self, event: str, n: int = 1, **fields: Any) -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            return [e for e in self.events(event) if all(e.get(k) == v for k, v in fields.items())]

        try:
            wait_until(lambda: len(found()) >= n, what=f"{n} x {event} {fields}")
        except AssertionError as e:
            raise AssertionError(f"{e}; the log: {self.log[-30:]}") from e
        return found()[n - 1]

    def metric(self, name: str, **labels: str) -> float | None:
        """The value now; None while there is none."""
        for line in metrics_of(self.metrics_port).splitlines():
            found = re.fullmatch(rf"{name}(?:{{(.*)}})? (\S+)", line)
            if found and all(f'{k}="{v}"' in (found[1] or "") for k, v in labels.items()):
                return float(found[2])
        return None

    def wait_for_metric(self, name: str, value: float, **labels: str) -> None:
        wait_until(lambda: self.metric(name, **labels) == value, what=f"{name}{labels} == {value}")

    def hang_up(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def stop(self) -> int:
        assert self.process is not None and self._reader is not None
        if self.process.poll() is None:
            self.process.terminate()
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    def _read(self) -> None:
        assert self.process is not None and self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith(b"{"):
                self.log.append(json.loads(line))
            else:
                self.log.append({"event": "", "text": line.decode(errors="replace")})
