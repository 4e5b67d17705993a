"""The demonstration's deployment: its folder, its files, its processes, in the order in which they need each other."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from demo.configs import NODE_FILES, Device, Ports, devices_of, write_all
from demo.people import Schedule
from demo.processes import CLI, DemoError, Processes, find_mosquitto, free_ports, wait_for_port
from demo.watching import Watcher, scrape
from infomae_stream.node_config import MqttSettings

BROKERS: Final = ("auto", "amqtt", "mosquitto")
OWN_NAMES: Final = ("logs", "state", "truth", "lake", "aligner", "keys", "labels")  # what an earlier demo left


class Deployment:
    """Writes the files on construction; `start` brings everything up, `stop` takes it down again.

    Raises DemoError when a broker was asked for that is not here, or when `out` holds other things than a demo.
    """

    def __init__(self, out: Path, schedule: Schedule, broker: str = "auto") -> None:
        self.out, self.schedule = out.resolve(), schedule
        self.broker = _which_broker(broker)
        self.ports = Ports(*free_ports(9))
        self.devices: list[Device] = devices_of(schedule)
        _empty(self.out)
        write_all(self.out, self.ports, schedule, self.devices)
        self.processes = Processes(self.out / "logs")
        self._labels_to_import = [("train", "train.csv"), ("evaluate", "evaluate.csv")]

    @property
    def addresses(self) -> list[tuple[str, str]]:
        """What a person may open, by name."""
        p = self.ports
        return [
            ("broker", f"mqtt://127.0.0.1:{p.mqtt} ({self.broker})    bundles  http://127.0.0.1:{p.bundles}"),
            (
                "metrics",
                f"http://127.0.0.1:PORT/metrics  phones {p.phones_collect} {p.phones_detect}  "
                f"watches {p.watches_collect} {p.watches_detect}  hub {p.ingest} {p.align}",
            ),
            ("files", f"{_short(self.out)}/  phones.toml watches.toml hub.toml logs/ lake/ aligner/ truth/"),
        ]

    def start(self) -> None:
        """Broker, hub, nodes. Raises DemoError when the broker or the hub does not come up."""
        self._run("make keys", ["bundle", "keygen", str(self.out / "keys")])
        self.start_broker()
        self.start_hub()
        for name in NODE_FILES.values():
            self.processes.start(name, [*CLI, "node", "run", "--config", str(self.out / f"{name}.toml")])

    def start_broker(self) -> None:
        if self.broker == "mosquitto":
            command = [find_mosquitto(), "-c", str(self.out / "mosquitto.conf")]
        else:
            command = [*CLI, "broker", "run", "--port", str(self.ports.mqtt)]
        self.processes.start("broker", command)
        wait_for_port(self.ports.mqtt, self.processes.running["broker"], self.processes.log_of("broker"))

    def start_hub(self) -> None:
        # Training shares its cores with everything else here: threads that spin while they wait would stop the rest.
        passive = {"OMP_WAIT_POLICY": "PASSIVE"}
        self.processes.start("hub", [*CLI, "hub", "run", "--config", str(self.out / "hub.toml")], passive)
        wait_for_port(self.ports.ingest, self.processes.running["hub"], self.processes.log_of("hub"), timeout_s=60)

    def import_next_labels(self) -> bool:
        """Start the next label import when the one before is through; False when all are. Never waits.

        Raises DemoError when one failed.
        """
        code = self.processes.ended().get("labels")
        if code is not None:
            self.processes.stop("labels")
            if code:
                raise DemoError(
                    f"label import ended with {code}", where=str(self.processes.log_of("labels")), fix="read that log"
                )
        if "labels" in self.processes.running:
            return True
        if not self._labels_to_import:
            return False
        purpose, name = self._labels_to_import.pop(0)
        arguments = ["label", "import", str(self.out / "labels" / name), "--purpose", purpose]
        self.processes.start("labels", [*CLI, *arguments, "--config", str(self.out / "hub.toml"), "--json"])
        return True

    def watcher(self) -> Watcher:
        urls = {name: f"http://127.0.0.1:{port}/metrics" for name, port in self.ports.metrics().items()}
        logs = {name: self.processes.log_of(name) for name in ("broker", "hub", *NODE_FILES.values())}
        mqtt = MqttSettings(port=self.ports.mqtt)
        return Watcher(urls, logs, self.out / "aligner" / "status.json", mqtt)

    def metrics(self, process: str) -> Any:
        return scrape(f"http://127.0.0.1:{self.ports.metrics()[process]}/metrics")

    def stop(self) -> dict[str, int]:
        """Nodes, hub, broker. Returns the exit codes by name."""
        return self.processes.stop_all()

    def _run(self, what: str, arguments: Sequence[str]) -> None:
        done = subprocess.run([*CLI, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise DemoError(f"{what}: {done.stderr.strip()}", where=" ".join(arguments))


def _which_broker(wanted: str) -> str:
    if wanted not in BROKERS:
        raise DemoError(f"unknown broker {wanted!r}", where="--broker", fix=f"one of {', '.join(BROKERS)}")
    if wanted == "mosquitto" and not find_mosquitto():
        raise DemoError("mosquitto is not here", where="--broker", fix="install it, or take --broker amqtt")
    return ("mosquitto" if find_mosquitto() else "amqtt") if wanted == "auto" else wanted


def _empty(out: Path) -> None:
    """Make the folder; take away what an earlier demonstration left there, and nothing else."""
    if out.exists() and any(out.iterdir()) and not (out / "hub.toml").exists():
        raise DemoError("the folder is not empty and holds no demonstration", where=str(out), fix="name another --out")
    out.mkdir(parents=True, exist_ok=True)
    for name in OWN_NAMES:
        shutil.rmtree(out / name, ignore_errors=True)
    (out / "summary.json").unlink(missing_ok=True)


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
