"""`node doctor`: each thing that can be wrong is made wrong, and its line and its fix are looked at."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from collectors.deploying import check_machine
from collectors.deploying.check_broker import check_broker
from collectors.deploying.check_machine import check_clock
from collectors.deploying.check_sensors import check_sensors
from collectors.deploying.finding import Finding, bounded, good
from collectors.sources.raspberry_shake import format_datagram
from infomae_stream.node_config import ClockSettings
from tests.brokers import Broker, free_port
from tests.deploy.doctor_rig import DECLARED, SYNTHETIC, assert_found, config_of, doctor, only, put_bundle, toml
from tests.iio_tree import IioTree
from tests.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.usefixtures("patient")


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_node_that_has_everything_is_well(tmp_path: Path) -> None:
    broker = Broker("mosquitto", tmp_path).start()
    try:
        head = f'[outbox]\nmax_bytes = 1_000_000\n[mqtt]\nport = {broker.port}\n[detect]\ntrusted_keys = ["k.pub"]'
        head += f"\n[metrics]\ncollect_port = {free_port()}"
        config = tmp_path / "node.toml"
        config.write_text(toml(head=head))
        put_bundle(tmp_path)
        ran = doctor(config, "--json")
        told = {check["check"]: check for check in ran.value()["checks"]}
        assert {name for name, check in told.items() if check["state"] != "ok"} == {"service"}, ran.out
        assert "publishing on infomae/v1/orchard/orchard-1/birth is taken" in told["broker orchard-1"]["what"]
        assert "2 golden windows pass" in told["bundle"]["what"]
        lines = doctor(config).ok().out.splitlines()
        assert len(lines) == len(told) + 1 and lines[-1].endswith("0 failed, 1 to look at")
        assert all(line.startswith(("ok ", "warning ")) for line in lines[:-1])
    finally:
        broker.stop()


def test_with_half_of_it_broken_the_rest_is_still_looked_at(tmp_path: Path) -> None:
    head = f"[mqtt]\nport = {free_port()}\n[metrics]\ncollect_port = {free_port()}"
    (tmp_path / "node.toml").write_text(toml(f'sources = [{{ type = "replay", path = "gone.wav" }}]\n{DECLARED}', head))
    ran = doctor(tmp_path / "node.toml", "--json")
    states = {check["check"]: check["state"] for check in json.loads(ran.out)["checks"]}
    assert ran.code == 1 and states == {
        "program": "ok",
        "config": "ok",
        "service": "warning",
        "sensor orchard-1/replay": "failed",
        "clock": "ok",
        "certificate orchard-1": "ok",
        "broker orchard-1": "failed",
        "disk": "ok" if states["disk"] == "ok" else "warning",  # this machine's own
        "bundle": "failed",
    }


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "cannot read the file"),
        ("site = ", "not valid TOML"),
        (toml(SYNTHETIC.replace("kinds", "kind")), "sources.0.kind: unknown key; did you mean 'kinds'"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_line(text: str | None, what: str, tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    if text is not None:
        path.write_text(text)
    ran = doctor(path, "--json")
    (config,) = (check for check in json.loads(ran.out)["checks"] if check["check"] == "config")
    assert ran.code == 1 and config["state"] == "failed"
    assert what in config["what"] and f"infomae-stream node init --out {path}" in config["fix"]


def test_a_check_that_hangs_or_breaks_is_left_behind() -> None:
    end = threading.Event()

    def hangs() -> Iterator[Finding]:
        yield good("disk", "half of it")
        end.wait(PATIENCE_S)

    def breaks() -> Iterator[Finding]:
        raise RuntimeError("broken")

    try:
        *_, left = bounded("disk", hangs, 0.2)
    finally:
        end.set()
    assert left.state == "failed" and "no answer within 0.2 s" in left.what
    assert_found(bounded("disk", breaks), "failed", "RuntimeError('broken')", "report it")


# -- sensors -----------------------------------------------------------------------------------------------------------


def sensors(folder: Path, source: str, listen_s: float = 0.3) -> Finding:
    return only(check_sensors(config_of(folder, f"[[nodes.sources]]\n{source}"), "node.toml", listen_s))


def shake(port: int, more: str = "") -> str:
    return f'type = "raspberry_shake"\nport = {port}\nstation = "R1234"\n{more}'


def test_a_shake_that_sends_nothing_and_a_port_that_is_taken(tmp_path: Path) -> None:
    port = free_port()
    assert_found([sensors(tmp_path, shake(port))], "failed", "ehz: no sample in 0.3 s", "Settings, UDP data")
    with socket.socket(type=socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", port))
        assert_found([sensors(tmp_path, shake(port))], "failed", "Address already in use", "stop what else listens")


@contextmanager
def sending(data: Callable[[], bytes], port: int) -> Iterator[None]:
    """Datagrams without a pause: when the other side begins to listen nobody knows."""
    stop = threading.Event()

    def run() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as s:
            while not stop.wait(0.01):
                s.sendto(data(), ("127.0.0.1", port))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_shake_that_sends_is_well_and_one_that_may_not_is_named(tmp_path: Path) -> None:
    port = free_port()
    with sending(lambda: format_datagram("EHZ", time.time_ns(), range(25)), port):
        assert_found([sensors(tmp_path, shake(port), PATIENCE_S)], "ok", "ehz ")
        stranger = sensors(tmp_path, shake(port, 'senders = ["192.0.2.1"]'), PATIENCE_S)
        assert_found([stranger], "failed", "127.0.0.1 is not in senders", "add the address to `senders`")
        other = sensors(tmp_path, shake(port, "[nodes.sources.channels.HDF]"), PATIENCE_S)
        assert_found([other], "failed", "EHZ is not in channels", "add the channel")


def test_a_dead_chip_is_told_from_one_that_moves(tmp_path: Path) -> None:
    tree = IioTree(tmp_path)
    try:
        source = "\n".join(
            f'{key} = "{value}"' for key, value in {"type": "iio", "rate_hz": 100, **tree.options}.items()
        )
        source = source.replace('rate_hz = "100"', "rate_hz = 100")
        tree.give(np.zeros((50, 24), np.uint8).tobytes())
        assert_found([sensors(tmp_path, source)], "warning", "every sample is 0", "a cable that is off")
        records = np.zeros((50, 24), np.uint8)
        records[:, 0] = range(50)
        tree.give(records.tobytes())
        assert_found([sensors(tmp_path, source, PATIENCE_S)], "ok", "imu 50 samples")
    finally:
        tree.close()


@pytest.mark.parametrize(
    ("source", "what", "fix"),
    [
        ('type = "replay"\npath = "gone.wav"', "gone.wav", "docs/sensors.md"),
        (
            'type = "iio"\ndevice = "lsm6dso"\nrate_hz = 100\nsysfs_dir = "/nonexistent"',
            "no device 'lsm6dso'",
            "driver",
        ),
        ('type = "i2c"\nchip = "mpu6050"\nbus = 77', "the bus cannot be opened", "raspi-config"),
        ('type = "alsa"\ndevice = "no such microphone"', "", ""),  # what is missing depends on this machine
    ],
    ids=["replay", "iio", "i2c", "alsa"],
)
def test_a_sensor_that_is_not_there_says_what_to_do(source: str, what: str, fix: str, tmp_path: Path) -> None:
    assert_found([sensors(tmp_path, source)], "failed", what, fix)


def test_a_foreign_publisher_is_judged_by_its_broker(tmp_path: Path) -> None:
    source = (
        f'type = "mqtt"\nkind = "accelerometer"\nrate_hz = 50\nchannels = ["x"]\nunits = ["m/s2"]\n'
        f'[nodes.sources.broker]\nport = {free_port()}\n[nodes.sources.topics]\n"porch/acc" = "porch"'
    )
    assert_found([sensors(tmp_path, source)], "failed", "nobody listens at 127.0.0.1", "mosquitto")


# -- clock -------------------------------------------------------------------------------------------------------------


def chronyc(folder: Path, offset_s: float, leap: str, stratum: int) -> None:
    """A chronyc that answers as the real one does."""
    line = f"C0A80101,gps,{stratum},1700000000.0,{offset_s},0,0,0,0,0,0.001,0.002,64,{leap}"
    program = folder / "chronyc"
    program.write_text(f"#!/bin/sh\necho '{line}'\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("offset_s", "leap", "stratum", "state", "fix"),
    [
        (0.0001, "Normal", 2, "ok", ""),
        (0.2, "Normal", 2, "warning", "0.05 s"),
        (0.0, "Not synchronised", 0, "failed", "chronyc sources"),
    ],
)
def test_chrony_tells_how_well_the_clock_is_kept(
    offset_s: float, leap: str, stratum: int, state: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chronyc(tmp_path, offset_s, leap, stratum)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    told: list[Finding] = []

    def answered() -> bool:
        """The reader gives chronyc two seconds, in which a loaded machine may not start it."""
        told[:] = check_clock(ClockSettings(source="chrony"))
        return "does not answer" not in told[0].what

    wait_until(answered, what="chronyc's answer")
    assert_found(told, state, "chrony", fix)


def test_a_time_source_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_found(check_clock(ClockSettings(source="chrony")), "failed", "chrony does not answer", "apt install chrony")
    monkeypatch.setattr(check_machine, "GPSD_S", 0.1)
    nobody = ClockSettings(source="gpsd", gpsd_port=free_port())
    assert_found(check_clock(nobody), "failed", "gpsd does not answer", "cgps")


# -- broker ------------------------------------------------------------------------------------------------------------


def broker_finding(folder: Path, mqtt: str) -> Finding:
    config = config_of(folder, head=f"[mqtt]\n{mqtt}")
    return only(check_broker(config, config.nodes[0]))


def test_a_broker_that_is_not_there(tmp_path: Path) -> None:
    nobody = broker_finding(tmp_path, f"port = {free_port()}")
    assert_found([nobody], "failed", "nobody listens at 127.0.0.1", "systemctl status mosquitto")
    unknown = broker_finding(tmp_path, 'host = "no-such-host.invalid"')
    assert_found([unknown], "failed", "nobody knows the address of 'no-such-host.invalid'", "/etc/hosts")


def test_a_port_that_is_no_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collectors.deploying.check_broker.LOGIN_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = broker_finding(tmp_path, f"port = {silent.getsockname()[1]}")
    assert_found([mute], "failed", "answers no MQTT", "8883")


@pytest.mark.slow
def test_a_broker_that_wants_a_password(tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text("")
    broker = Broker("mosquitto", tmp_path, f"allow_anonymous false\npassword_file {tmp_path / 'passwords'}").start()
    try:
        refused = broker_finding(tmp_path, f"port = {broker.port}")
    finally:
        broker.stop()
    assert_found([refused], "failed", "refuses 'orchard-1-doctor'", "mqtt.username")
