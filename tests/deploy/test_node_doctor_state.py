"""`node doctor`: the disk, the bundle, and a node that runs, each made wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import start_http_server

from collectors.deploying import check_machine
from collectors.deploying.check_bundle import check_bundle
from collectors.deploying.check_machine import check_disk
from collectors.deploying.finding import Finding
from collectors.deploying.running import check_hub, running_node
from infomae_stream.bundle_store import POINTER
from infomae_stream.telemetry import Telemetry
from tests.brokers import free_port
from tests.commands import run_command
from tests.deploy.doctor_rig import DECLARED, assert_found, config_of, doctor, only, put_bundle, toml
from tests.faults.small_disk import SmallDisk, missing_for_mounts
from tests.tiny_bundle import TinyBundle

NO_MOUNTS = missing_for_mounts()
pytestmark = pytest.mark.usefixtures("patient")


# -- disk --------------------------------------------------------------------------------------------------------------


def disk(folder: Path, outbox: str) -> Finding:
    (folder / "state").mkdir(exist_ok=True)
    return only(check_disk(config_of(folder, head=f"[outbox]\n{outbox}")))


def test_a_disk_with_less_than_the_reserve_or_the_outbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = "max_bytes = 1_000_000\nreserve_bytes = 0"
    assert_found([disk(tmp_path, small)], "ok", "a commit reaches it in")
    reserve = disk(tmp_path, "reserve_bytes = 1_000_000_000_000_000_000")
    assert_found([reserve], "failed", "data are given up", "du -xh")
    large = disk(tmp_path, "max_bytes = 1_000_000_000_000_000_000")
    assert_found([large], "warning", "the outbox may grow by", "set outbox.max_bytes = ")
    fits = large.fix.rpartition(" ")[2]
    assert_found([disk(tmp_path, f"max_bytes = {fits}")], "ok", "free for outboxes")
    monkeypatch.setattr(check_machine, "SLOW_FSYNC_S", 0.0)
    assert_found([disk(tmp_path, small)], "warning", "ms to reach it", "commit_interval_s")


@pytest.mark.skipif(bool(NO_MOUNTS), reason=NO_MOUNTS)
def test_a_disk_that_is_full_to_the_last_byte(tmp_path: Path) -> None:
    with SmallDisk(tmp_path / "small", 4_000_000) as small:
        (small.path / "state").mkdir()
        small.fill()
        assert_found([disk(small.path, "reserve_bytes = 0")], "failed", "0 MB free", "du -xh")


# -- bundle ------------------------------------------------------------------------------------------------------------


def bundle(folder: Path, detect: str = 'trusted_keys = ["k.pub"]') -> Finding:
    return only(check_bundle(config_of(folder, head=f"[detect]\n{detect}")))


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    assert_found([bundle(tmp_path, "enabled = false")], "ok", "switched off")
    assert_found([bundle(tmp_path, "")], "failed", "trusted_keys is empty", "tls/release.pub")
    assert_found([bundle(tmp_path)], "failed", "k.pub", "copy release.pub")
    put_bundle(tmp_path)
    (tmp_path / "state" / "bundles" / POINTER).unlink()
    assert_found([bundle(tmp_path)], "warning", "none is installed yet", "hub run")
    (tmp_path / "state" / "bundles" / POINTER).write_text("{")
    assert_found([bundle(tmp_path)], "failed", "cannot be read", "restore it from a backup")


def test_a_bundle_that_rotted_or_computes_something_else(tmp_path: Path) -> None:
    served = put_bundle(tmp_path)
    content = bytearray(served.read_bytes())
    content[len(content) // 2] ^= 1
    served.write_bytes(content)
    assert_found([bundle(tmp_path)], "failed", "", "release the weights again")
    served.unlink()
    assert_found([bundle(tmp_path)], "failed", "No such file", "release the weights again")


def test_a_bundle_of_another_hub_or_with_other_scores(tmp_path: Path) -> None:
    wrong = TinyBundle()
    wrong.golden.scores["all"][:] = wrong.golden.scores["all"][:, ::-1]
    put_bundle(tmp_path, wrong)
    assert_found([bundle(tmp_path)], "failed", "differ from the golden ones", "computes something else")
    run_command("bundle", "keygen", tmp_path / "other").ok()
    other = bundle(tmp_path, 'trusted_keys = ["other/release.pub"]')
    assert_found([other], "failed", "not signed by any", "release.pub of the hub that released it")


# -- a node that runs --------------------------------------------------------------------------------------------------


@contextmanager
def running(set_metrics: Callable[[Telemetry], Any]) -> Iterator[int]:
    """The metrics of a node, on a port."""
    telemetry = Telemetry()
    set_metrics(telemetry)
    server, thread = start_http_server(0, addr="127.0.0.1", registry=telemetry.registry)
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_node_that_runs_is_asked_and_its_sensors_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collectors.deploying.doctor.PROMPT_S", 0.01)

    def said(telemetry: Telemetry) -> None:
        labels = {"site": "orchard", "node": "orchard-1"}
        telemetry.gauge("infomae_stream_alive").labels(**labels, stream="mic").set(1)
        telemetry.gauge("infomae_stream_alive").labels(**labels, stream="ehz").set(0)
        telemetry.gauge("infomae_sources_missing").labels(**labels).set(1)
        telemetry.gauge("infomae_mqtt_connected").labels(**labels).set(1)
        telemetry.gauge("infomae_outbox_oldest_seconds").labels(**labels).set(700)

    with running(said) as port:
        head = f"[mqtt]\nport = {free_port()}\n[metrics]\ncollect_port = {port}"
        (tmp_path / "node.toml").write_text(
            toml(f'sources = [{{ type = "replay", path = "gone.wav" }}]\n{DECLARED}', head)
        )
        ran = doctor(tmp_path / "node.toml", "--json")
    told = {check["check"]: check for check in json.loads(ran.out)["checks"]}
    assert told["service"]["state"] == told["sensor orchard-1/mic"]["state"] == "ok"
    assert "journalctl" in told["sensor orchard-1/ehz"]["fix"]
    assert "1 of 1 sources are not there" in told["sensor orchard-1"]["what"]
    assert "sensor orchard-1/replay" not in told, "it was not opened a second time"
    assert told["hub orchard-1"]["state"] == "warning" and "hub ingest" in told["hub orchard-1"]["fix"]


@pytest.mark.parametrize(("connected", "oldest_s", "state"), [(1, 0.0, "ok"), (1, 700, "warning"), (0, 700, "failed")])
def test_the_hub_is_judged_by_what_waits(connected: int, oldest_s: float, state: str, tmp_path: Path) -> None:
    def said(telemetry: Telemetry) -> None:
        telemetry.gauge("infomae_mqtt_connected").labels(site="orchard", node="orchard-1").set(connected)
        telemetry.gauge("infomae_outbox_oldest_seconds").labels(site="orchard", node="orchard-1").set(oldest_s)

    with running(said) as port:
        config = config_of(tmp_path, head=f"[metrics]\ncollect_port = {port}")
        node = running_node(config)
        assert node is not None
        assert only(check_hub(node, config, 0.01)).state == state
    assert "does not answer any more" in only(check_hub(node, config, 0.01)).what
