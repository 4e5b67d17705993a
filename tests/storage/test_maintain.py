from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from infomae_stream.clock import NS_PER_S, ManualClock, SystemClock
from infomae_stream.config import load_config
from infomae_stream.hub_config import HubConfig
from storage import query
from storage.lake import Lake
from storage.maintain_service import MaintainService
from storage.segments import live_files
from tests.brokers import free_port
from tests.hub_records import START_NS, make_chunk
from tests.waiting import PATIENCE_S, sample, wait_until

BASE = "[matcher]\nmodalities = ['phone_imu', 'watch_imu']\n[align]\nclasses = ['walking', 'standing']\n"
CLI = [sys.executable, "-m", "infomae_stream.cli"]


def filled(folder: Path, commits: int = 10) -> Lake:
    lake = Lake(folder / "lake")
    for k in range(commits):
        lake.append_chunks([make_chunk(k, n=4)], 7)
    return lake


def write_config(folder: Path, text: str = "") -> Path:
    path = folder / "hub.toml"
    path.write_text(BASE + text)
    return path


def test_a_round_merges_retires_and_leaves_old_versions(tmp_path: Path) -> None:
    lake = filled(tmp_path)
    config = write_config(tmp_path, f"[retention]\nmax_age_days = {95.5 / 86_400}\n")
    clock = ManualClock(START_NS + 100 * NS_PER_S)  # so the first five chunks are too old
    service = MaintainService(load_config(config, HubConfig), clock, threading.Event())
    reports = service.round(vacuum_too=True)
    assert (reports["compact"].merges, reports["retire"].records, reports["vacuum"].files) == (1, {"age": 5}, 0)
    assert [c.seq for c in query.read_chunks(lake)] == list(range(5, 10))
    assert len(query.read_chunks(lake, version=10)) == 10 and service.failures == 0


def test_a_step_that_fails_is_counted_and_the_others_go_on(tmp_path: Path) -> None:
    lake = filled(tmp_path)
    live_files(lake.table_path("chunks"), 10)[3].write_bytes(b"torn")
    service = MaintainService(load_config(write_config(tmp_path), HubConfig), SystemClock(), threading.Event())
    reports = service.round(vacuum_too=True)
    assert set(reports) == {"retire", "vacuum"} and service.failures == 1


@pytest.mark.slow
def test_the_process_keeps_the_lake_in_few_files_while_others_write(tmp_path: Path) -> None:
    port = free_port()
    text = f"[metrics]\nmaintain_port = {port}\n[maintenance]\ninterval_s = 0.1\n"
    filled(tmp_path, 2)
    config = write_config(tmp_path, text)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*CLI, "hub", "maintain", "--config", str(config)], stderr=log)
    try:
        succeeded = "infomae_maintenance_last_success_timestamp_seconds"
        wait_until(lambda: sample(port, succeeded) > 0, what="the first round's end")
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == min(own + 10, 19)
        lake = Lake(tmp_path / "lake")
        for k in range(2, 40):
            lake.append_chunks([make_chunk(k, n=4)], 7)
        table = lake.table_path("chunks")
        wait_until(lambda: len(live_files(table, lake.version("chunks"))) < 16, what="merged files")
        wait_until(lambda: sample(port, "infomae_lake_compacted_bytes_total") > 0, what="the bytes counted")
        assert len(query.read_chunks(lake)) == 40
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_once_makes_a_round_and_says_what_it_did(tmp_path: Path) -> None:
    filled(tmp_path)
    command = [*CLI, "hub", "maintain", "--once", "--json", "--config", str(write_config(tmp_path))]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(ended.stdout)
    assert (told["compact"]["files_before"], told["compact"]["files_after"]) == (10, 1)
    assert set(told) == {"compact", "retire", "vacuum"}
