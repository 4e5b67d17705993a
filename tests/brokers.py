"""Real brokers for tests, each on a free loopback port."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from infomae_stream.session import MqttSession
from tests.waiting import PATIENCE_S, wait_until

_MOSQUITTO = shutil.which("mosquitto") or shutil.which("/usr/sbin/mosquitto")
HAS_MOSQUITTO = _MOSQUITTO is not None
_given: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on, another one each time, below those that the kernel gives to outgoing connections.

    Of those, one could be taken while a broker is down, even by the client that tries to reach it there.
    """
    for _ in range(200):
        port = random.SystemRandom().randint(10_000, 32_000)
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp, suppress(OSError):
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind(("127.0.0.1", port))
            udp.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port
    raise AssertionError("no free port")


def end(session: MqttSession) -> None:
    """Close it and see its thread end: a socket that it drops later would be a warning in whatever test runs then."""
    session.close()
    if session._thread.ident is not None:
        session._thread.join(PATIENCE_S)
        assert not session._thread.is_alive(), "the session's thread does not end"


class Broker:
    """kind: mosquitto or amqtt. `kill` is kill -9; `start` uses the same port again."""

    def __init__(self, kind: str, folder: Path, extra: str = "") -> None:
        self.kind, self.port = kind, free_port()
        if kind == "mosquitto":
            if _MOSQUITTO is None:
                pytest.skip("mosquitto is not installed")
            config = folder / f"mosquitto-{self.port}.conf"
            anonymous = "" if "allow_anonymous" in extra else "allow_anonymous true\n"
            # As root it would become the user mosquitto, who may not read the test's files.
            user = "user root\n" if os.geteuid() == 0 else ""
            config.write_text(f"{user}listener {self.port} 127.0.0.1\n{anonymous}{extra}\n", encoding="utf-8")
            self._command = [_MOSQUITTO, "-c", str(config)]
        else:
            self._command = [sys.executable, "-m", "infomae_stream.cli", "broker", "run", "--port", str(self.port)]
        self.log = folder / f"{kind}-{self.port}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Broker:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        try:
            wait_until(self._listens, what=f"{self.kind} listening (see {self.log})")
            assert self.process.poll() is None, self.log.read_text()
        except AssertionError:
            self.kill()
            raise
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def _listens(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            return True  # it ended: there is nothing to wait for
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0
