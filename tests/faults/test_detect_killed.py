"""`node detect` as a real process: killed in mid-work, started again, and weighed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from infomae_stream.bundle import save_keys
from infomae_stream.clock import SystemClock
from infomae_stream.config import load_config
from infomae_stream.node_config import NodeConfig
from infomae_stream.outbox import Outbox
from infomae_stream.types import ClockQuality, StreamId, StreamSpec
from infomae_stream.wire import decode_detection
from tests.tiny_bundle import IMU_CHANNELS, IMU_UNITS, PRIVATE_KEY, TinyBundle
from tests.waiting import PATIENCE_S

S = 10**9
START_NS = 1_500_000_000 * S


class DetectProcess:
    """A folder with a configuration of `n_nodes` nodes, and `node detect` over it."""

    def __init__(self, folder: Path, n_nodes: int) -> None:
        self.folder = folder
        save_keys(folder, PRIVATE_KEY)
        nodes = "".join(
            f'[[nodes]]\nsite = "s{i:02}"\nnode = "s{i:02}-phone"\nsources = [{{ type = "none" }}]\n'
            for i in range(n_nodes)
        )
        (folder / "node.toml").write_text(
            "[metrics]\ncollect_port = 0\ndetect_port = 0\n"
            f'[detect]\ntrusted_keys = ["release.pub"]\nmax_lag_s = 600.0\n'
            # Every window is a part of its own, written soon; the events are told in test_detect_flow.
            f"[detect.events]\nmax_s = 0.001\nmerge_gap_s = 0.0\nidle_s = 0.5\n{nodes}"
        )
        self.settings = load_config(folder / "node.toml", NodeConfig)
        self.outboxes = [
            Outbox.open(self.settings.outbox_path(node), SystemClock(), max_bytes=10**9, reserve_bytes=0)
            for node in self.settings.nodes
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "infomae_stream.cli", "node", "detect", "--config", "node.toml"]
        root = str(Path(__file__).parents[2])
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stderr=log, env={**os.environ, "PYTHONPATH": root}
            )

    def end(self, signum: int) -> int:
        assert self.process is not None
        self.process.send_signal(signum)
        code = self.process.wait(PATIENCE_S)
        self.process = None
        return code

    def close(self) -> None:
        if self.process is not None:
            self.end(signal.SIGKILL)
        for outbox in self.outboxes:
            outbox.close()

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def desire(self, tiny: TinyBundle) -> None:
        info = tiny.write(self.folder / f"{tiny.fields['version']}.zip")
        desired = {"v": 1, "version": info.version, "sha256": info.sha256, "url": info.path.as_uri()}
        for outbox in self.outboxes:
            outbox.set_state("bundle_desired", json.dumps(desired).encode())

    def observed(self) -> str:
        payload = self.outboxes[-1].get_state("bundle_observed")
        return "" if payload is None else str(json.loads(payload)["state"])

    def collect(self, node: int, second: int) -> None:
        site = self.settings.nodes[node]
        stream = StreamId(site.site, site.node, "imu")
        spec = StreamSpec(stream, "imu", 100.0, IMU_CHANNELS, IMU_UNITS, (100.0,) * 6, "phone_imu")
        counts = np.random.default_rng((node, second)).integers(-900, 900, size=(6, 100)).astype(np.int16)
        self.outboxes[node].put_chunk(spec, START_NS + second * S, counts, ClockQuality("test"))
        self.outboxes[node].commit()

    def starts_s(self, node: int = 0) -> list[float]:
        """Of the windows, each of which is the last of one record."""
        records = self.outboxes[node].pending(10**9)
        found = [decode_detection(r.payload) for r in records if r.topic.endswith("/detections")]
        return sorted((d.end_ns - START_NS) / S - 2.0 for d in found)


def until(done: Callable[[], bool], what: Callable[[], str], timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


@pytest.fixture
def hosted(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[DetectProcess]:
    with closing(DetectProcess(tmp_path, getattr(request, "param", 1))) as made:
        yield made


@pytest.mark.slow
def test_detections_are_complete_and_none_is_double_after_kills_in_mid_work(hosted: DetectProcess) -> None:
    rng = random.Random(1)
    hosted.start()
    hosted.desire(TinyBundle())
    until(lambda: hosted.observed() == "serving", hosted.log)
    n_s = 60
    kills = 0
    kill_at_s = {15, 30, 45}
    for second in range(n_s):
        hosted.collect(0, second)
        if second in kill_at_s:
            # Somewhere between two commits: it has seen a part of what is there.
            until(lambda seen=second - 12: bool(hosted.starts_s()) and hosted.starts_s()[-1] >= seen, hosted.log)
            time.sleep(rng.uniform(0, 1))
            assert hosted.end(signal.SIGKILL) == -signal.SIGKILL
            kills += 1
            hosted.start()
        time.sleep(0.02)
    until(lambda: hosted.starts_s()[-1:] == [n_s - 2.0], hosted.log)
    assert hosted.starts_s() == [i / 2 for i in range(2 * n_s - 3)]
    assert kills == 3
    assert hosted.end(signal.SIGTERM) == 0
    assert hosted.starts_s() == [i / 2 for i in range(2 * n_s - 3)]
    assert "Traceback" not in hosted.log()


@pytest.mark.slow
@pytest.mark.parametrize("hosted", [17], indirect=True)
def test_seventeen_nodes_fit_into_200_mb(hosted: DetectProcess) -> None:
    hosted.start()
    # As large as a small preset: 0.3 million weights an encoder.
    hosted.desire(TinyBundle(dim=120))
    until(lambda: hosted.observed() == "serving", hosted.log)
    for second in range(6):
        for node in range(17):
            hosted.collect(node, second)
    until(lambda: all(hosted.starts_s(node)[-1:] == [4.0] for node in range(17)), hosted.log)
    assert hosted.process is not None
    status = Path(f"/proc/{hosted.process.pid}/status").read_text()
    peak_kb = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    assert peak_kb < 200_000, f"{peak_kb} kB"
    print(f"peak resident: {peak_kb} kB")
    assert hosted.end(signal.SIGTERM) == 0


def test_a_detecting_process_imports_nothing_heavy() -> None:
    code = (
        "import sys, inference.service, inference.runtimes.onnx\n"
        "print(sorted({'torch','pyarrow','duckdb','deltalake','paho','onnx','scipy','storage','collectors'}"
        " & {name.split('.')[0] for name in sys.modules}))"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert run.stdout.strip() == "[]"


def test_a_missing_key_file_ends_with_the_code_for_bad_settings(hosted: DetectProcess) -> None:
    (hosted.folder / "release.pub").unlink()
    hosted.start()
    assert hosted.process is not None
    assert hosted.process.wait(PATIENCE_S) == 78
    hosted.process = None
    assert "no ed25519 public key" in hosted.log() and "keygen" in hosted.log()
