"""The whole demonstration at reduced length: real processes, both brokers, kills in the middle, a real Prometheus."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from demo import summary
from demo.alignment_story import Story
from demo.deployment import Deployment
from demo.people import REDUCED
from demo.processes import find_mosquitto
from demo.story_loop import play
from demo.watching import Facts
from tests.brokers import free_port
from tests.demo.hold import Hold
from tests.deploy.test_dashboard import PANELS, without_variables
from tests.waiting import PATIENCE_S, json_lines, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")]

ROOT = Path(__file__).parents[2]
LIMIT_S = 900.0  # some 60 s suffice where nothing else runs
# Queries that have an answer only when something goes wrong.
OF_TROUBLE = (
    "infomae_samples_refused_total",
    "infomae_chunks_dropped_total",
    "infomae_step_failures_total",
    "infomae_messages_refused_total",
    "infomae_ingest_failures_total",
    "infomae_dead_letters_total",
    "infomae_bundle_rollbacks_total",
    "infomae_windows_dropped_total",
    "infomae_records_shed_total",
    "infomae_source_refused_total",
    "infomae_stream_clipped_samples_total",
    "infomae_stream_flatline_seconds_total",
    "infomae_mqtt_refusals_total",
    "infomae_broker_refusals_total",
    "infomae_lake_retired_",
    "infomae_lake_copies_dropped_total",
    "infomae_maintenance_failures_total",
    "infomae_outbox_failures_total",
    "infomae_int8_refused_total",
    "infomae_windows_suppressed_total",
    "infomae_fusion_node_up",  # nothing is fused in the demonstration
    "infomae_certificate_expiry_timestamp_seconds",  # the demonstration has no certificates
)


def run_demo(out: Path, *options: str) -> subprocess.Popen[bytes]:
    """What it says goes to `said(out)`: nobody reads a pipe meanwhile, and it would fill up."""
    command = [sys.executable, "-m", "demo", "--reduced", "--plain", "--out", str(out), "--seconds", str(LIMIT_S)]
    with said(out).open("wb") as file:
        return subprocess.Popen([*command, *options], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)


def said(out: Path) -> Path:
    return out.with_suffix(".txt")


@dataclass
class Prometheus:
    """A real one, with the configuration of deploy/ aimed at the ports that the demo chose."""

    folder: Path
    port: int = field(default_factory=free_port)  # not of the range that the demo's are of
    began_s: float = 0.0
    process: subprocess.Popen[bytes] | None = None

    def start(self, out: Path) -> None:
        self.began_s = time.time()
        files = {
            name: tomllib.loads((out / f"{name}.toml").read_text())["metrics"] for name in ("phones", "watches", "hub")
        }
        targets = {
            "9101": [files[name]["collect_port"] for name in ("phones", "watches")],
            "9102": [files[name]["detect_port"] for name in ("phones", "watches")],
            "9201": [files["hub"]["ingest_port"]],
            "9202": [files["hub"]["align_port"]],
            "9203": [files["hub"]["maintain_port"]],
        }
        text = (ROOT / "deploy" / "prometheus.yml").read_text().replace("scrape_interval: 5s", "scrape_interval: 1s")
        for default, ports in targets.items():
            assert f'["127.0.0.1:{default}"]' in text
            text = text.replace(f'["127.0.0.1:{default}"]', json.dumps([f"127.0.0.1:{p}" for p in ports]))
        (self.folder / "prometheus.yml").write_text(text)
        shutil.copy(ROOT / "deploy" / "alerts.yml", self.folder)
        command = ["prometheus", f"--config.file={self.folder}/prometheus.yml"]
        command += [f"--storage.tsdb.path={self.folder}/tsdb", f"--web.listen-address=127.0.0.1:{self.port}"]
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)

    def ask(self, promql: str) -> list[Any]:
        """The series now."""
        return self._get("query", query=promql)

    def ask_of_all_times(self, promql: str) -> list[Any]:
        """The series that there were at some second since it was started."""
        return self._get("query_range", query=promql, start=str(self.began_s), end=str(time.time()), step="1")

    def up(self) -> bool:
        """It answers, and has scraped something."""
        with suppress(OSError, http.client.HTTPException):
            return bool(self.ask("infomae_build_info"))
        return False

    def _get(self, what: str, **parameters: str) -> list[Any]:
        url = f"http://127.0.0.1:{self.port}/api/v1/{what}?" + urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            return list(json.load(answer)["data"]["result"])

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(PATIENCE_S)


@dataclass
class WatchedRun:
    code: int
    text: str
    out: Path
    answered: set[str]
    firing: set[str]

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads((self.out / "summary.json").read_text()))


@pytest.fixture(scope="module")
def watched_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedRun]:
    """`python -m demo` with the embedded broker from start to end, and a Prometheus beside it where there is one."""
    out = tmp_path_factory.mktemp("demo") / "out"
    prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"))
    demo = run_demo(out, "--broker", "amqtt")
    answered: set[str] = set()
    firing: set[str] = set()
    hold = Hold(out)
    try:
        if shutil.which("prometheus"):
            # Its own files it writes before anything of it runs.
            wait_until(lambda: demo.poll() is not None or "broker " in said(out).read_text(), what="the demo's files")
            prometheus.start(out)
            wait_until(lambda: demo.poll() is not None or prometheus.up(), what="Prometheus")
        wait_until(lambda: hold() or demo.poll() is not None, 2 * LIMIT_S, what="the demo's end")
        if prometheus.process is not None:
            answered = {q for _, q in PANELS if prometheus.ask_of_all_times(without_variables(q))}
            alerts = prometheus.ask_of_all_times('ALERTS{alertstate="firing"}')
            firing = {a["metric"]["alertname"] for a in alerts}
        yield WatchedRun(demo.returncode, said(out).read_text(), out, answered, firing)
    finally:
        hold.release()
        prometheus.stop()
        if demo.poll() is None:
            demo.send_signal(signal.SIGINT)
        demo.wait()


def test_demo_with_the_embedded_broker_is_sound(watched_run: WatchedRun) -> None:
    assert watched_run.code == 0, watched_run.text
    told = watched_run.summary
    assert summary.problems(told) == []
    assert (told["lost"], told["logical_duplicates"]) == (0, 0)
    assert told["chunks_accepted"] == told["chunks_in_lake"] > 300
    assert told["bundle"]["verified"] and told["bundle"]["promoted"]
    assert told["watches_of_unseen_people"]["detections"] > 0
    assert told["rss_mb"]["collect"] < 100 and told["rss_mb"]["detect"] < 200
    assert told["pairs_refused"]["clock_unsynchronised"] > 0
    assert set(told["alignment"]["held_out_people"]) == {"s13"}
    assert len(told["candidates"]) >= 2, "the later candidate has no verdict"


def test_demo_tells_its_story_in_plain_lines(watched_run: WatchedRun) -> None:
    for words in ("mqtt://127.0.0.1:", "run 1 begins", "macro-F1", "bundle v1 released", "What it came to"):
        assert words in watched_run.text
    assert "\x1b" not in watched_run.text


def test_no_process_is_left_behind(watched_run: WatchedRun) -> None:
    def left() -> list[bytes]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # others come and go
                found.append(path.read_bytes())
        return [line for line in found if os.fsencode(watched_run.out) in line]

    wait_until(lambda: not left(), what="the end of every process")


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not here")
def test_every_panel_has_an_answer_from_the_running_demo(watched_run: WatchedRun) -> None:
    silent = [q for _, q in PANELS if q not in watched_run.answered]
    assert [q for q in silent if not any(name in q for name in OF_TROUBLE)] == []


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not here")
def test_no_alert_but_the_expected_ones_fires(watched_run: WatchedRun) -> None:
    assert not watched_run.firing & {"InfomaeChunksDropped", "InfomaeIngestConflict", "InfomaeBundleRefused"}


@dataclass
class Killer:
    """kill -9 of one process after the other, each when the demo has come far enough."""

    deployment: Deployment
    hold: Hold
    killed: list[str] = field(default_factory=list)

    def __call__(self, facts: Facts, story: Story) -> None:
        self.hold()
        turns = [
            # First of all: its time is short.
            ("hub align", story.running and story.stage != ""),
            ("watches collect", facts.samples > 4_000),
            ("hub ingest", facts.samples > 10_000),
            ("broker", facts.samples > 18_000),
            ("phones collect", facts.samples > 26_000),
            ("watches detect", facts.n_detections > 3),
        ]
        for name, due in turns:
            if due and name not in self.killed and self._kill(name):
                self.killed.append(name)
                return  # one a turn, so that each death meets a running deployment

    def _kill(self, name: str) -> bool:
        if name == "broker":
            broker = self.deployment.processes.running.pop("broker")
            broker.kill()
            broker.wait()
            self.deployment.start_broker()
            return True
        parent, role = name.split()
        pid = self.deployment.processes.pid(parent, role)
        if not pid:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
        return False


@pytest.mark.skipif(not find_mosquitto(), reason="mosquitto is not here")
def test_kills_in_the_middle_lose_nothing(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "out", REDUCED, "mosquitto")
    killer = Killer(deployment, Hold(deployment.out))
    began_s = time.monotonic()
    try:
        deployment.start()
        watcher = deployment.watcher()
        try:
            result = play(deployment, watcher, LIMIT_S, lambda *_: None, killer, candidates=1)
        finally:
            watcher.close()
    finally:
        killer.hold.release()
        deployment.stop()
    took_s = time.monotonic() - began_s
    told = summary.build(
        deployment.out, deployment.devices, result.status, deployment.processes.peaks_mb, took_s, time.time_ns()
    )
    assert set(killer.killed) == {
        "watches collect",
        "phones collect",
        "hub ingest",
        "hub align",
        "broker",
        "watches detect",
    }
    assert (told["lost"], told["logical_duplicates"]) == (0, 0), told["records"]
    assert result.in_time and not result.ended_early
    assert summary.problems(told) == []
    restarts = {(n, r) for n, r in re.findall(r"(\w+) (\w+)", " ".join(deployment.processes.seen_pids))}
    assert {("watches", "collect"), ("hub", "ingest"), ("hub", "align")} <= restarts
    for name in ("watches collect", "phones collect", "hub ingest", "hub align", "watches detect"):
        assert len(deployment.processes.seen_pids[name]) >= 2, f"{name} was not started again"


def test_ctrl_c_gives_the_summary_and_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    demo = run_demo(out)

    def accepted() -> int:
        return sum(len(json_lines(path)) for path in (out / "truth").glob("*.jsonl"))

    try:
        # In the middle of the first recordings.
        wait_until(lambda: demo.poll() is not None or accepted() > 100, what="records")
        wait_until(lambda: demo.poll() is not None or "-- recordings" in said(out).read_text(), what="the watching")
        demo.send_signal(signal.SIGINT)
        demo.wait(2 * PATIENCE_S)
    finally:
        if demo.poll() is None:
            demo.kill()
            demo.wait()
    text = said(out).read_text()
    assert demo.returncode == 0, text
    assert "What it came to" in text and "ended by hand" in text
    told = json.loads((out / "summary.json").read_text())
    assert told["chunks_accepted"] > 0 and (told["lost"], told["logical_duplicates"]) == (0, 0)
