"""The files that the demonstration writes are files that the program takes."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from aligner.labels import Purpose, read_labels_file
from aligner.training_settings import train_config
from collectors.sources import check_options
from demo.configs import Ports, clock_shift_ns, devices_of, write_all
from demo.people import FULL, LEARN, PHONE, REDUCED, Schedule
from infomae_stream.config import load_config
from infomae_stream.hub_config import HubConfig
from infomae_stream.node_config import NodeConfig


def label_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


PORTS = Ports(*range(20001, 20010))


@pytest.fixture(scope="module", params=[FULL, REDUCED], ids=["full", "reduced"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Schedule]:
    out = tmp_path_factory.mktemp("demo")
    write_all(out, PORTS, request.param, devices_of(request.param))
    return out, request.param


def test_the_program_takes_every_file(written: tuple[Path, Schedule]) -> None:
    out, schedule = written
    hub = load_config(out / "hub.toml", HubConfig, {})
    train_config(hub.align.train, hub.matcher.window_s, hub.align.seed)
    for name in ("phones.toml", "watches.toml"):
        config = load_config(out / name, NodeConfig, {})
        assert [n.site for n in config.nodes] == [p.name for p in schedule.cast]
        for node in config.nodes:
            for source in node.sources:
                check_options(source, where=name, prefix=("nodes",))


def test_no_held_out_person_is_learned_from(written: tuple[Path, Schedule]) -> None:
    out, schedule = written
    align = load_config(out / "hub.toml", HubConfig, {}).align
    learn = {p.name for p in schedule.cast if p.group == LEARN}
    assert not learn & {*align.validation_sites, *align.test_sites}
    assert learn | {*align.validation_sites, *align.test_sites} == {p.name for p in schedule.cast}


def test_labels_to_learn_from_exist_for_phones_of_learned_people_only(written: tuple[Path, Schedule]) -> None:
    out, schedule = written
    learn = {f"{p.name}-{PHONE}" for p in schedule.cast if p.group == LEARN}
    nodes = {row["node"] for row in label_rows(out / "labels" / "train.csv")}
    others = {row["node"] for row in label_rows(out / "labels" / "evaluate.csv")}
    assert nodes == learn
    assert not nodes & others and len(nodes | others) == 2 * len(schedule.cast)


def test_label_files_are_taken_whole(written: tuple[Path, Schedule]) -> None:
    out, _ = written
    classes = load_config(out / "hub.toml", HubConfig, {}).align.classes
    for name, purpose in (("train.csv", Purpose.train), ("evaluate.csv", Purpose.evaluate)):
        assert len(read_labels_file(out / "labels" / name, classes, purpose)) > 50


def test_the_wrong_clock_is_declared_and_its_labels_follow_it(written: tuple[Path, Schedule]) -> None:
    out, schedule = written
    watches = load_config(out / "watches.toml", NodeConfig, {})
    wrong = [n for n in watches.nodes if not n.clock.synchronised]
    assert [(n.node, n.clock.offset_ms) for n in wrong] == [("s08-watch", 180.0)]
    device = next(d for d in devices_of(schedule) if d.node == "s08-watch")
    assert clock_shift_ns(device) == 180_000_000
    rows = [r for r in label_rows(out / "labels" / "evaluate.csv") if r["node"] == "s08-watch"]
    assert int(rows[0]["start_ns"]) == device.recordings[0].start_ns + 180_000_000


def test_everything_listens_on_loopback_only(written: tuple[Path, Schedule]) -> None:
    out, _ = written
    hub = load_config(out / "hub.toml", HubConfig, {})
    nodes = [load_config(out / name, NodeConfig, {}) for name in ("phones.toml", "watches.toml")]
    hosts = {hub.metrics.host, hub.release.host, *(n.metrics.host for n in nodes)}
    assert hosts == {"127.0.0.1"}
    assert f"listener {PORTS.mqtt} 127.0.0.1\n" in (out / "mosquitto.conf").read_text()
