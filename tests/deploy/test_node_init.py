"""`node init` writes a file that the node takes, for every kind of source there is."""

from __future__ import annotations

import io
import tomllib
from pathlib import Path

import pytest

from collectors.deploying.init import ask_sources
from collectors.deploying.node_toml import check_sources
from collectors.deploying.scan import Device, Missing
from collectors.deploying.source_lines import SOURCE_LINES, questions, source_lines
from collectors.sources import SOURCES
from infomae_stream.config import load_config
from infomae_stream.node_config import NodeConfig
from tests.commands import run_command

# What a kind cannot be written without.
REQUIRED = {
    "csv": "path=log.csv",
    "iio": "device=lsm6dso",
    "mqtt": "topic=garden/porch/acc",
    "raspberry_shake": "station=R1234 senders=192.168.1.20 channels=EHZ,HDF",
    "replay": "path=a.wav",
    "seedlink": "station=R1234",
}
WHO = ("--site", "orchard", "--node", "orchard-1")


def made(out: Path, *arguments: object) -> NodeConfig:
    """The configuration that init writes, read as the node reads it."""
    run_command("node", "init", "--yes", "--out", out, *WHO, *arguments).ok()
    config = load_config(out, NodeConfig, {})
    check_sources(config, str(out))
    return config


def test_every_kind_of_source_can_be_written() -> None:
    assert set(SOURCE_LINES) == set(SOURCES)
    assert set(REQUIRED) == {kind for kind in SOURCES if any(q.required for q in questions(kind))}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_node_takes_the_file_of_every_kind(kind: str, tmp_path: Path) -> None:
    config = made(tmp_path / "node.toml", "--broker", "hub.local:8883", "--source", f"{kind} {REQUIRED.get(kind, '')}")
    assert [raw["type"] for raw in config.nodes[0].sources] == [kind]
    assert (config.nodes[0].site, config.nodes[0].node) == ("orchard", "orchard-1")


def test_several_sources_stand_in_one_file(tmp_path: Path) -> None:
    given = [word for kind in SOURCES for word in ("--source", f"{kind} {REQUIRED.get(kind, '')}")]
    config = made(tmp_path / "node.toml", "--broker", "hub.local", *given)
    assert [raw["type"] for raw in config.nodes[0].sources] == list(SOURCES)


def test_paths_are_relative_to_the_file_and_tls_follows_the_port(tmp_path: Path) -> None:
    tls = made(tmp_path / "a.toml", "--broker", "hub.local:8883", "--source", "synthetic")
    assert (tls.mqtt.host, tls.mqtt.port, tls.mqtt.for_node("orchard-1").key_file) == (
        "hub.local",
        8883,
        "tls/orchard-1.key",
    )
    assert tls.path(tls.state_dir) == tmp_path / "state"
    other = made(tmp_path / "c.toml", "--broker", "hub.local:9883", "--tls", "--source", "synthetic")
    assert (other.mqtt.port, other.mqtt.ca_file) == (9883, "tls/ca.pem")
    plain = made(tmp_path / "b.toml", "--broker", "[::1]:1883", "--source", "synthetic")
    assert (plain.mqtt.host, plain.mqtt.port, plain.mqtt.ca_file) == ("::1", 1883, "")


def test_values_with_quotes_and_umlauts_come_back_as_they_were(tmp_path: Path) -> None:
    config = made(tmp_path / "node.toml", "--broker", "h:1883", "--source", """alsa 'device=Mikro "Süd" \\ 1'""")
    assert config.nodes[0].sources[0]["device"] == 'Mikro "Süd" \\ 1'


def test_a_file_is_not_overwritten_unless_told(tmp_path: Path) -> None:
    out = tmp_path / "node.toml"
    out.write_text("mine")
    arguments = ("node", "init", "--yes", "--out", out, *WHO, "--source", "synthetic")
    again = run_command(*arguments)
    assert again.code == 78 and "--force" in again.err and out.read_text() == "mine"
    run_command(*arguments, "--force").ok()
    assert tomllib.loads(out.read_text())["nodes"][0]["node"] == "orchard-1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--source", "alsa devise=x"), "'devise' is no option here; known: device"),
        (("--source", "repaly path=x"), "'repaly' is no source; known: alsa"),
        (("--source", "iio"), "device is missing: the driver's name"),
        (("--source", "alsa rate_hz=fast"), "rate_hz: a number is wanted, not 'fast'"),
        (("--source", "i2c chip=mpu1"), "sources.0.chip"),
        (("--source", "synthetic", "--site", "Obst Hof"), "'Obst Hof' is not an id"),
        (("--source", "synthetic", "--broker", "hub:port"), "is no broker; write host:port"),
        (("--source", "synthetic", "--clock", "sundial"), "clock.source"),
        ((), "no --source"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    out = tmp_path / "node.toml"
    ran = run_command("node", "init", "--yes", "--out", out, *WHO, *arguments)
    assert ran.code == 78 and said in ran.err, ran.err
    assert not out.exists()


def answer(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))


def test_questions_are_asked_for_what_no_option_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "node.toml"
    answer(monkeypatch, "orchard", "orchard-7", "10.0.0.2:1883")
    run_command("node", "init", "--out", out, "--source", "synthetic").ok()
    config = load_config(out, NodeConfig, {})
    assert (config.nodes[0].site, config.nodes[0].node, config.mqtt.host) == ("orchard", "orchard-7", "10.0.0.2")


def test_a_source_is_asked_for_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, "none", "i2c", "icm20948", "", "0x69", "", "200", "none")
    (lines,) = ask_sources([])  # one at least: the first "none" is not taken
    (source,) = tomllib.loads("\n".join(lines))["nodes"]["sources"]
    assert source == {"type": "i2c", "chip": "icm20948", "bus": 1, "address": 0x69, "stream": "imu", "rate_hz": 200}


def test_a_device_that_is_plugged_in_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    microphone = Device("alsa", "sound device 'UMIK-1'", {"device": "UMIK-1", "rate_hz": 44_100.0})
    other = Device("alsa", "sound device 'webcam'", {"device": "webcam"})
    found = [Missing("i2c", "bus 1 cannot be opened", ""), microphone, Device("gps", "gpsd with a fix"), other]
    answer(monkeypatch, "y", "", "", "n", "none")
    (lines,) = ask_sources(found)
    (source,) = tomllib.loads("\n".join(lines))["nodes"]["sources"]
    assert (source["device"], source["rate_hz"]) == ("UMIK-1", 44_100)


def test_lines_are_commented() -> None:
    lines = source_lines("raspberry_shake", {"station": "R1234"})
    assert any("# a datagram names no station" in line for line in lines)
