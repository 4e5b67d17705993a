"""`hub align` as it runs: its own process, a real broker, a real training child, real bundles over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aligner.labels import Purpose, take_labels
from infomae_stream.bundle import generate_keys, open_bundle, save_keys
from infomae_stream.clock import ManualClock
from infomae_stream.node_config import MqttSettings
from infomae_stream.session import MqttSession
from infomae_stream.topics import node_topic
from storage import query
from storage.lake import Lake
from tests.brokers import Broker, end
from tests.flows.test_learn_flow import CLASSES, SECONDS, rhythm, write_labels
from tests.recordings import recording
from tests.waiting import PATIENCE_S, json_lines, wait_until

pytestmark = pytest.mark.slow
DEADLINE_S = 240.0


def until(ready: Callable[[], Any], what: str) -> Any:
    """What `ready` gives once it gives something."""
    found: list[Any] = []

    def look() -> bool:
        found[:] = [ready()]
        return bool(found[0])

    wait_until(look, DEADLINE_S, what)
    return found[0]


@pytest.fixture
def broker_port(tmp_path: Path) -> Iterator[int]:
    broker = Broker("mosquitto", tmp_path).start()
    yield broker.port
    broker.stop()


class Hub:
    """A hub's folder with a lake that has all it takes for one run, and its `hub align` process."""

    def __init__(self, folder: Path, broker_port: int) -> None:
        self.folder, self.mqtt = folder, MqttSettings(port=broker_port)
        private, self.public = generate_keys()
        save_keys(folder / "keys", private)
        self.config = folder / "hub.toml"
        self.config.write_text(
            f"""
            [mqtt]
            port = {broker_port}
            [metrics]
            align_port = 0
            [matcher]
            modalities = ["phone_imu", "watch_imu"]
            interval_s = 0.5
            [align]
            classes = {json.dumps(CLASSES)}
            validation_sites = ["s06"]
            test_sites = ["s07"]
            [align.trigger]
            min_pairs = 60
            min_new_pairs = 20
            settle_s = 0.5
            [align.train]
            threads = 1
            pretrain.epochs = 1
            front_end.max_hz = 10.0
            encoder = {{ width = 16, depths = [1, 1], heads = 2 }}
            align = {{ steps = 20, critic_warm_up = 5, shared_width = 8, private_width = 8, view_copies = 2 }}
            [gates]
            min_gain_over_unaligned = -1.0
            [release]
            signing_key = "keys/release.pem"
            port = 0
            """,
            encoding="utf-8",
        )
        self.lake = Lake(folder / "lake", ManualClock())
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "align.log"

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "infomae_stream.cli", "hub", "align", "--config", str(self.config)]
            self.process = subprocess.Popen(command, stderr=log)

    def stop(self, signum: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(signum)
        return self.process.wait(PATIENCE_S)

    def record(self, *sites: str) -> None:
        for site in sites:
            first_s = 120 if site == "s03" else 0
            chunks = recording(site, "phone", 0, SECONDS, rhythm_hz=rhythm)
            chunks += recording(site, "watch", first_s, first_s + SECONDS, rhythm_hz=rhythm)
            self.lake.append_chunks([c for c in chunks if c.seq % 12 != 11], 0)
            file = self.folder / "labels.csv"
            write_labels(file, [(site, "phone", 0)])
            take_labels(file, self.lake, CLASSES, Purpose.evaluate if site in ("s06", "s07") else Purpose.train)
            write_labels(file, [(site, "watch", first_s)])
            take_labels(file, self.lake, CLASSES, Purpose.evaluate)

    @property
    def status(self) -> dict[str, Any]:
        try:
            status: dict[str, Any] = json.loads((self.folder / "aligner" / "status.json").read_text())
        except OSError:
            return {}
        return status

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in json_lines(self.log) if line["event"] == name]


@pytest.fixture
def hub(tmp_path: Path, broker_port: int) -> Iterator[Hub]:
    made = Hub(tmp_path, broker_port)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def test_pairs_become_a_bundle_on_every_node_and_a_kill_changes_nothing(hub: Hub) -> None:
    node = MqttSession(hub.mqtt, "s01-watch", subscriptions=[(node_topic("s01", "s01-watch", "bundle/desired"), 1)])
    node.start()
    node.publish(node_topic("s01", "s01-watch", "birth"), b'{"v": 1, "streams": []}', retain=True)
    try:
        hub.record("s01", "s02", "s03", "s06", "s07")
        # Killed in mid-training: its child ends too, no bundle is told, and the next start runs anew.
        short = hub.config.read_text()
        hub.config.write_text(short.replace("steps = 20,", "steps = 100_000,"))  # so that it cannot end before
        hub.start()
        started = until(lambda: hub.events("alignment_started"), "a run")[0]
        until(lambda: hub.events("training_progress"), "progress")
        hub.stop(signal.SIGKILL)
        until(lambda: not alive(started["pid"]), "the end of the orphaned training process")
        assert not list((hub.folder / "aligner" / "bundles").glob("*.zip"))
        hub.config.write_text(short)
        hub.start()
        released = until(lambda: hub.events("bundle_released"), "a release")[0]
        message = until(lambda: node.poll(0.5), "bundle/desired")[-1]
        desired = json.loads(message.payload)
        assert desired == {"v": 1, **{k: released[k] for k in ("version", "sha256", "url")}}
        with urllib.request.urlopen(desired["url"], timeout=PATIENCE_S) as answer:
            (hub.folder / "got.zip").write_bytes(answer.read())
        bundle = open_bundle(hub.folder / "got.zip", [hub.public], now_ns=time.time_ns(), min_version=0)
        assert (bundle.version, bundle.sha256) == (1, desired["sha256"])

        observed = {"v": 1, "version": 1, "sha256": bundle.sha256, "state": "serving", "reason": "", "verified": True}
        node.publish(node_topic("s01", "s01-watch", "bundle/observed"), json.dumps(observed).encode(), retain=True)
        until(lambda: hub.events("bundle_observed"), "bundle/observed")
        status = until(lambda: hub.status if hub.status.get("nodes") else None, "the node in the status file")
        assert status["bundle"]["version"] == 1 and status["nodes"]["s01/s01-watch"]["state"] == "serving"
        assert status["runs"][-1]["outcome"] == "promoted" and status["runs"][-1]["version"] == 1
        assert status["pairs"] > status["pairs_to_learn_from"] > 60 and status["pairs_refused"]["no_partner"] > 0

        # More pairs start another run; stage 1 serves again; whatever the verdict, one version serves.
        hub.record("s04")
        until(lambda: len(hub.events("alignment_evaluated")) == 2, "a second run")
        until(lambda: len(query.read_runs(hub.lake)) == 2, "its row in the lake")
        assert hub.events("alignment_evaluated")[1]["stage_1"].startswith("reused from run ")
        assert hub.stop() == 0
        before = hub.status  # its last word: while it runs, the file may be older than the lake
        serving = before["bundle"]["version"]

        # Started again, everything is as it was.
        hub.start()
        until(lambda: len(hub.events("align_started")) == 3, "the third start")
        until(lambda: hub.status["updated_ns"] > before["updated_ns"], "its first status")
        assert hub.status["bundle"]["version"] == serving and len(hub.status["runs"]) == 2
        assert hub.stop() == 0
    finally:
        end(node)


def test_a_run_that_fails_is_told_and_matching_goes_on(hub: Hub) -> None:
    hub.record("s01", "s02", "s06")
    hub.config.write_text(hub.config.read_text().replace('test_sites = ["s07"]', 'test_sites = ["s09"]'))
    hub.start()
    failed = until(lambda: hub.events("alignment_failed"), "a failed run")[0]
    assert "s09" in failed["error"] or "no windows" in failed["error"]
    before = hub.status["pairs"]
    hub.record("s07")
    until(lambda: hub.status["pairs"] > before, "new pairs after the failure")
    assert hub.status["runs"][0]["outcome"] == "failed" and "bundle" in hub.status
    assert hub.stop() == 0


def test_settings_that_cannot_work_end_with_78_before_anything_starts(hub: Hub) -> None:
    text = hub.config.read_text()
    for wrong, says in (
        (text.replace('validation_sites = ["s06"]', ""), "align.validation_sites"),
        (text.replace("pretrain.epochs", "pretrain.epoch"), "align.train.pretrain.epoch: unknown key"),
        (text.replace("front_end.max_hz = 10.0", "front_end.window_s = 3.0"), "matcher.window_s is 2.0"),
    ):
        hub.config.write_text(wrong)
        command = [sys.executable, "-m", "infomae_stream.cli", "hub", "align", "--config", str(hub.config)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ, check=False)
        assert ended.returncode == 78 and says in ended.stderr, ended.stderr
