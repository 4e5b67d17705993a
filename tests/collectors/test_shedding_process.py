"""A node whose outbox is too small for the outage: what matters most arrives, and the rest is told as missing."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from infomae_stream.clock import NS_PER_S, SystemClock
from infomae_stream.outbox import Outbox
from storage import query
from storage.lake import Lake
from storage.verify import compare
from tests.brokers import Broker, free_port
from tests.collectors.test_collect_process import Collect
from tests.faults.hub_process import IngestProcess
from tests.waiting import wait_until

SECONDS = 150
DETECTIONS = 30


def write_config(folder: Path, broker_port: int, extra: str = "") -> Path:
    config = folder / "node.toml"
    config.write_text(
        textwrap.dedent(f"""
        truth_log_dir = "truth"
        [mqtt]
        port = {broker_port}
        [metrics]
        collect_port = {free_port()}
        [outbox]
        commit_interval_s = 0.2
        max_bytes = 1_000_000
        [uplink]
        max_bytes_per_s = 400_000
        start_jitter_s = 0.5
        [[nodes]]
        site = "s01"
        node = "n1"
        [[nodes.sources]]
        type = "synthetic"
        kinds = ["acoustic", "imu"]
        start = 2026-01-01T00:00:00Z
        duration_s = {SECONDS}
        speed = 25
        """)
        + textwrap.dedent(extra),
        encoding="utf-8",
    )
    return config


def put_detections(path: Path) -> None:
    """As the detecting process does, by an outbox of its own."""
    detector = Outbox.open(path, SystemClock(), max_bytes=10**9, reserve_bytes=0)
    for second in range(DETECTIONS):
        detector.put_detection(
            site="s01",
            node="n1",
            start_ns=second * NS_PER_S,
            end_ns=(second + 2) * NS_PER_S,
            label="car",
            scores={"car": 1.0},
            modalities=("imu",),
            bundle_version=1,
            bundle_sha256="ab",
        )
        detector.commit()
    detector.close()


@pytest.mark.slow
def test_after_a_long_outage_the_lake_has_all_but_audio_and_a_gap_record_for_that(tmp_path: Path) -> None:
    broker = Broker("mosquitto", tmp_path)
    node = Collect(write_config(tmp_path, broker.port))
    ingest = IngestProcess(tmp_path / "hub", broker.port)
    outbox_file = tmp_path / "state" / "s01" / "n1" / "outbox.sqlite"
    try:
        node.start()
        wait_until(lambda: "collect_started" in node.events() and outbox_file.exists(), what="the node's outbox")
        put_detections(outbox_file)
        wait_until(lambda: "sources_finished" in node.events(), what="the scene over, with no broker")
        assert outbox_file.stat().st_size < 2_000_000
        broker.start()
        ingest.start()
        wait_until(lambda: "outbox_drained" in node.events(), what="everything acknowledged")
        assert node.stop() == 0
        assert ingest.stop() == 0
    finally:
        node.close()
        if ingest.process is not None and ingest.process.poll() is None:
            ingest.kill()
        broker.stop()
    lake = Lake(ingest.lake_path)
    found = compare(tmp_path / "truth", lake)
    assert found.passed and found.lost == 0, found
    chunks, gaps = query.read_chunks(lake), query.read_gaps(lake)
    samples = {kind: sum(c.n_samples for c in chunks if c.spec.kind == kind) for kind in ("acoustic", "imu")}
    rates_hz = {c.spec.kind: c.spec.rate_hz for c in chunks}
    told = sum(g.n_samples for g in gaps)
    assert samples["imu"] == SECONDS * rates_hz["imu"]
    assert len(query.read_detections(lake)) == DETECTIONS
    assert {(g.stream.stream, g.reason) for g in gaps} == {("acoustic", "shed")}
    assert samples["acoustic"] + told == SECONDS * rates_hz["acoustic"]
    assert found.shed > SECONDS / 2 and told > samples["acoustic"]
    assert node.events().count("shedding_began") == 1


def test_shedding_of_a_stream_that_is_not_there_ends_with_78(tmp_path: Path) -> None:
    extra = "[nodes.shedding.accoustic]\npriority = 2\n"
    config = write_config(tmp_path, free_port(), extra)
    command = [sys.executable, "-m", "infomae_stream.cli", "node", "collect", "--config", str(config)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 78, ended.stderr
    assert "nodes.0.shedding.accoustic: no such stream; known: acoustic, imu" in ended.stderr
