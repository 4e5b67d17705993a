"""`node devices` finds what is plugged in, and the lines it shows are lines that the node takes."""

from __future__ import annotations

import socket
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collectors.deploying.devices import shown
from collectors.deploying.scan import (
    Device,
    Found,
    Missing,
    described,
    gps_receivers,
    i2c_chips,
    iio_devices,
    shakes,
    sound_devices,
)
from collectors.sensing.extras import extra
from collectors.sources import check_options
from collectors.sources.raspberry_shake import format_datagram
from infomae_stream.clock import ManualClock
from infomae_stream.errors import SourceError
from tests.brokers import free_port
from tests.commands import run_command
from tests.iio_tree import IioTree
from tests.imu_model import ImuModel
from tests.sound_double import DEVICES, SoundDouble
from tests.waiting import PATIENCE_S


def taken(found: Found) -> dict[str, Any]:
    """The shown lines, read as a node's file and checked as the node checks them."""
    assert isinstance(found, Device), found
    (raw,) = tomllib.loads("\n".join(shown(found)))["nodes"]["sources"]
    check_options(raw, where="shown", prefix=("nodes", "0", "sources", "0"))
    return dict(raw)


def test_sound_devices_that_record_are_named_without_their_number() -> None:
    found = sound_devices(lambda: SoundDouble(ManualClock()))
    assert [taken(f)["device"] for f in found] == ["USB PnP Sound Device: Audio", "UMIK-1: USB Audio"]


def test_two_sound_devices_of_one_name_are_told_apart() -> None:
    twins = [DEVICES[2], {**DEVICES[2], "index": 3, "name": "UMIK-1: USB Audio (hw:4,0)"}]
    found = sound_devices(lambda: SoundDouble(ManualClock(), twins))
    assert [taken(f)["device"] for f in found] == ["UMIK-1: USB Audio (hw:3,0)", "UMIK-1: USB Audio (hw:4,0)"]
    assert "another device has the same name" in shown(found[0])[1]


def test_without_portaudio_the_fix_is_shown() -> None:
    def library() -> Any:
        raise SourceError("PortAudio is missing: no such library", fix="apt install libportaudio2")

    assert sound_devices(library) == [
        Missing("alsa", "PortAudio is missing: no such library", "apt install libportaudio2")
    ]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[IioTree]:
    made = IioTree(tmp_path)
    yield made
    made.close()


def test_iio_devices_come_with_the_rate_that_they_run_at(tree: IioTree) -> None:
    (found,) = iio_devices(tree.sysfs)
    assert isinstance(found, Device) and "accel, anglvel" in found.what
    raw = taken(found)
    assert (raw["device"], raw["rate_hz"]) == ("lsm6dso", 12.5)


def test_two_iio_devices_of_one_driver_are_told_apart(tree: IioTree, tmp_path: Path) -> None:
    second = IioTree(tmp_path, number=1)
    second.close()
    assert [taken(f)["device"] for f in iio_devices(tree.sysfs)] == ["iio:device0", "iio:device1"]


def test_an_iio_device_without_a_buffer_is_told_and_a_thermometer_is_not(tmp_path: Path) -> None:
    IioTree(tmp_path, {}, {"name": "adxl345", "in_accel_x_raw": "12"}).close()
    (tmp_path / "sysfs" / "iio:device1").mkdir()
    (tmp_path / "sysfs" / "iio:device1" / "name").write_text("bmp280\n")
    (found,) = iio_devices(tmp_path / "sysfs")
    assert isinstance(found, Missing) and "adxl345" in found.why and "i2c" in found.fix


def bus(tmp_path: Path, number: int = 1) -> Path:
    (tmp_path / f"i2c-{number}").touch()
    return tmp_path


@pytest.mark.parametrize(("chip", "address"), [("mpu6050", 0x68), ("icm20948", 0x69)])
def test_chips_on_i2c_are_known_by_their_identity(chip: str, address: int, tmp_path: Path) -> None:
    model = ImuModel(chip, address=address)
    (found,) = i2c_chips(lambda: model, bus(tmp_path))
    raw = taken(found)
    assert (raw["chip"], raw["bus"], raw["address"]) == (chip, 1, address)
    assert model.closed and not model.registers, "looking writes nothing"


def test_another_chip_and_a_bus_that_is_shut_are_told(tmp_path: Path) -> None:
    (other,) = i2c_chips(lambda: ImuModel("mpu6050", who_am_i=0x71), bus(tmp_path))
    assert isinstance(other, Missing) and "MPU-9250" in other.why
    (strange,) = i2c_chips(lambda: ImuModel("mpu6050", who_am_i=0x42), bus(tmp_path))
    assert isinstance(strange, Missing) and "something else" in strange.why
    (shut,) = i2c_chips(lambda: ImuModel("mpu6050"), bus(_empty(tmp_path), 7))
    assert isinstance(shut, Missing) and "bus 7 cannot be opened" in shut.why and "group i2c" in shut.fix


def _empty(folder: Path) -> Path:
    made = folder / "dev"
    made.mkdir()
    return made


def test_without_smbus2_a_bus_names_the_extra(tmp_path: Path) -> None:
    (found,) = i2c_chips(lambda: extra("smbus2_of_nobody", "imu", "IMUs on I2C"), bus(tmp_path))
    assert isinstance(found, Missing) and "infomae-stream[imu]" in found.fix
    assert i2c_chips(lambda: extra("smbus2_of_nobody", "imu", ""), tmp_path / "nothing") == [], "no bus, no word"


def test_gps_receivers_make_a_clock(tmp_path: Path) -> None:
    (tmp_path / "serial" / "by-id").mkdir(parents=True)
    (tmp_path / "serial" / "by-id" / "usb-u-blox_AG_GNSS_receiver-if00").touch()
    (tmp_path / "serial" / "by-id" / "usb-Arduino-if00").touch()
    (tmp_path / "pps0").touch()
    receiver, pulse, gpsd = gps_receivers(tmp_path, lambda: True)
    assert "u-blox" in shown(receiver)[0] and "/dev/pps0" in shown(pulse)[0] and "gpsd" in shown(gpsd)[0]
    assert tomllib.loads("\n".join(shown(gpsd)))["nodes"]["clock"]["source"] == "gpsd"
    *_, missing = gps_receivers(tmp_path, lambda: False)
    assert isinstance(missing, Missing) and "cgps" in missing.fix


class SendingShake:
    """Sends two channels to a port until it is told to stop: when the other side begins to listen nobody knows."""

    def __init__(self, port: int, *, samples: int = 25, step_s: float = 0.25) -> None:
        self._port, self._samples, self._step_s = port, samples, step_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> SendingShake:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        start_ns = 1_700_000_000 * 10**9
        with socket.socket(type=socket.SOCK_DGRAM) as s:
            while not self._stop.wait(0.01):
                for channel in ("EHZ", "HDF"):
                    s.sendto(format_datagram(channel, start_ns, range(self._samples)), ("127.0.0.1", self._port))
                start_ns += round(self._step_s * 1e9)


def test_a_shake_is_known_by_what_it_sends() -> None:
    port = free_port()
    with SendingShake(port):
        (found,) = shakes("127.0.0.1", port, 2.0)
    raw = taken(found)
    assert (raw["host"], raw["senders"], raw["port"]) == ("127.0.0.1", [], port)
    assert {code: channel["kind"] for code, channel in raw["channels"].items()} == {"EHZ": "seismic", "HDF": "acoustic"}
    assert raw["channels"]["EHZ"]["rate_hz"] == 100


def test_silence_strangers_and_a_port_in_use_are_told() -> None:
    port = free_port()
    (silent,) = shakes("127.0.0.1", port, 0.05)
    assert isinstance(silent, Missing) and "UDP data" in silent.fix
    with socket.socket(type=socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", port))
        (busy,) = shakes("127.0.0.1", port, PATIENCE_S)
    assert isinstance(busy, Missing) and "Address already in use" in busy.why


def test_json_says_the_same_as_the_lines() -> None:
    device = Device("alsa", "sound device 'UMIK-1'", {"device": "UMIK-1"})
    missing = Missing("i2c", "bus 1 cannot be opened", "join the group")
    assert 'device = "UMIK-1"' in "\n".join(shown(device))
    assert shown(missing) == ["# i2c: bus 1 cannot be opened; join the group"]
    assert described([device, missing]) == [
        {"kind": "alsa", "what": "sound device 'UMIK-1'", "options": {"device": "UMIK-1"}, "note": ""},
        {"kind": "i2c", "missing": "bus 1 cannot be opened", "fix": "join the group"},
    ]


def test_the_command_looks_at_this_machine() -> None:
    """Whatever is plugged in: both forms name the same kinds."""
    told = run_command("node", "devices", "--json", "--listen-s", 0).value()["devices"]
    lines = run_command("node", "devices", "--listen-s", 0).ok().out
    assert all((entry.get("what") or entry["missing"]) in lines for entry in told)
    assert told or lines == "nothing that measures was found\n"
