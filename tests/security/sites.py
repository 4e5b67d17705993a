"""A site with a certificate authority, its mosquitto over TLS, and nodes that are enrolled in it, for tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from collectors.enrolment.enrol import enrol, revoke
from collectors.enrolment.site import Site, SiteOptions
from infomae_stream.node_config import MqttSettings
from infomae_stream.node_request import make_request
from tests.brokers import free_port
from tests.waiting import PATIENCE_S, wait_until

HAS_MOSQUITTO = shutil.which("mosquitto") is not None


class TlsSite:
    """`folder/hub` is the hub's folder; keys of nodes lie in `folder/<node>`."""

    def __init__(self, folder: Path, hosts: Sequence[str] = ("127.0.0.1", "localhost")) -> None:
        self.folder = folder
        self.port = free_port()
        self.site = Site(folder / "hub")
        user = "root" if os.geteuid() == 0 else "mosquitto"
        options = SiteOptions(hosts=tuple(hosts), port=self.port, broker_user=user)
        self.made, _ = self.site.initialise(options, datetime.now(UTC))
        self.log = folder / "mosquitto.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> TlsSite:
        with self.log.open("ab") as log:
            command = ["mosquitto", "-c", str(self.site.broker / "mosquitto.conf")]
            self._process = subprocess.Popen(command, stderr=log)
        wait_until(self._listens, what=f"mosquitto listening (see {self.log})")
        return self

    @property
    def pid(self) -> int:
        """0 while it does not run."""
        return self._process.pid if self._process else 0

    def reload(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def restart(self) -> None:
        self.stop()
        self.start()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE_S)
            self._process = None

    def enrol(self, node: str, *, at: datetime | None = None, days: int = 30, renew: bool = False) -> MqttSettings:
        """Enrol a node as if it were `at`; its connection's settings."""
        request = make_request(node, self.folder / node / f"{node}.key")
        _, handed_out = enrol(
            self.site, node, request.request_path, days=days, now=at or datetime.now(UTC), renew=renew
        )
        for name in (f"{node}.pem", "ca.pem"):
            shutil.copy(handed_out / name, self.folder / node / name)
        return self.settings(node)

    def revoke(self, node: str) -> None:
        revoke(self.site, node, now=datetime.now(UTC))

    def settings(self, node: str = "") -> MqttSettings:
        """Of an enrolled node, or of the hub."""
        folder, name = (self.folder / node, node) if node else (self.site.tls, "hub")
        return MqttSettings(
            host="127.0.0.1",
            port=self.port,
            ca_file=str(folder / "ca.pem"),
            cert_file=str(folder / f"{name}.pem"),
            key_file=str(folder / f"{name}.key"),
        )

    def _listens(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self.log.read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False
