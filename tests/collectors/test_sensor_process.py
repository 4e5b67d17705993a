"""Sensors in the real collecting process: bytes on a socket become records in the outbox's truth log."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.brokers import free_port
from tests.sensor_files import T0_S
from tests.waiting import PATIENCE_S, json_lines, metrics_of, wait_until


@pytest.mark.slow
def test_a_shake_a_file_and_a_sensor_that_is_not_there(tmp_path: Path) -> None:
    udp, metrics = free_port(), free_port()
    rows = "".join(f"{T0_S + i / 100:.2f},{i}\n" for i in range(500))
    (tmp_path / "log.csv").write_text(f"t,x\n{rows}no,row\n", encoding="utf-8")
    config = tmp_path / "node.toml"
    config.write_text(
        textwrap.dedent(f"""
        truth_log_dir = "truth"
        [mqtt]
        port = {free_port()}
        [metrics]
        collect_port = {metrics}
        [outbox]
        commit_interval_s = 0.2
        [[nodes]]
        site = "s01"
        node = "s01-node"
        [[nodes.sources]]
        type = "raspberry_shake"
        station = "R1234"
        port = {udp}
        [[nodes.sources]]
        type = "csv"
        path = "log.csv"
        kind = "seismic"
        rate_hz = 100
        speed = 0
        time = {{ column = "t" }}
        columns = [{{ column = "x", channel = "x", unit = "V" }}]
        [[nodes.sources]]
        type = "iio"
        device = "none"
        rate_hz = 100
        sysfs_dir = "{tmp_path}"
        """),
        encoding="utf-8",
    )
    program = [sys.executable, "-m", "infomae_stream.cli"]
    truth = tmp_path / "truth" / "s01-node.jsonl"

    def counted(stream: str) -> int:
        return sum(r["n_samples"] for r in json_lines(truth) if r["stream"] == stream)

    def no_device() -> bool:
        failed = [e for e in json_lines(tmp_path / "log") if e["event"] == "source_failed"]
        return any("there is no device 'none'" in e["reason"] for e in failed)

    refused = 'infomae_source_refused_total{node="s01-node",reason="row",site="s01",stream="csv"} 1.0'

    with (tmp_path / "log").open("wb") as log:
        node = subprocess.Popen([*program, "node", "collect", "--config", str(config)], stderr=log)
        shake = subprocess.Popen(
            [*program, "sensor", "simulate-shake", "--to", f"127.0.0.1:{udp}"], stderr=subprocess.DEVNULL
        )
        try:
            wait_until(lambda: counted("ehz") >= 200 and counted("csv") == 500, what="samples of both")
            wait_until(lambda: refused in metrics_of(metrics), what="the last row refused")
            wait_until(no_device, what="the missing sensor told")
            node.send_signal(signal.SIGTERM)
            assert node.wait(PATIENCE_S) == 0
        finally:
            for process in (node, shake):
                process.kill()
                process.wait()
