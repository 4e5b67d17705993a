"""What is plugged into this machine: sound devices, IIO devices, chips on I2C, GPS receivers, Shakes that send here."""

from __future__ import annotations

import ipaddress
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from collectors.deploying.source_lines import Value
from collectors.gpsd import Gpsd
from collectors.sensing.extras import extra
from collectors.sensing.imu_chips import CHIPS
from collectors.sources.alsa import load_sounddevice
from collectors.sources.iio import PERMISSION_FIX, QUANTITIES
from collectors.sources.raspberry_shake import MOST_BYTES, Datagram, parse_datagram
from infomae_stream.clock import NS_PER_S, SystemClock
from infomae_stream.errors import SourceError

ADDRESSES: Final = (0x68, 0x69)  # of both IMU families
# Who answers at these addresses with a WHO_AM_I of its own, and is none of CHIPS.
OTHER_CHIPS: Final = {0x12: "ICM-20602", 0x19: "MPU-6886", 0x70: "MPU-6500", 0x71: "MPU-9250", 0x73: "MPU-9255"}
GPS_WORDS: Final = ("gps", "gnss", "u-blox", "ublox")
IIO_DEFAULT_HZ: Final = 100.0
GPSD_PORT: Final = 2947


@dataclass(frozen=True, slots=True)
class Device:
    """kind: of SOURCES, or "gps". what: for people. options: for source_lines. note: what to know of it."""

    kind: str
    what: str
    options: dict[str, Value] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Missing:
    """A kind that could not be looked for, or whose device cannot be used: why, and what mends it."""

    kind: str
    why: str
    fix: str


Found = Device | Missing


def plugged_in(*, listen_s: float, host: str = "0.0.0.0", port: int = 8888) -> list[Found]:
    """Look everywhere; `listen_s`: how long for Shakes, 0 leaves them out. Opens nothing for longer than a look."""
    found = [*sound_devices(), *iio_devices(), *i2c_chips(), *gps_receivers()]
    return found + (shakes(host, port, listen_s) if listen_s > 0 else [])


def sound_devices(library: Callable[[], Any] = load_sounddevice) -> list[Found]:
    """Devices that record. PortAudio's own numbers change with every boot, so the name without its card is given."""
    try:
        sounddevice = library()
        listed = [d for d in sounddevice.query_devices() if d["max_input_channels"] > 0]
    except SourceError as e:
        return [Missing("alsa", e.what, e.fix)]
    except sounddevice.PortAudioError as e:
        return [Missing("alsa", f"PortAudio cannot list the devices: {e}", "see `arecord -l`; is the user in audio?")]
    names = [str(d["name"]) for d in listed]
    found: list[Found] = []
    for device, name in zip(listed, names, strict=True):
        lasting = name.partition(" (hw:")[0].rstrip(" -:")
        alone = sum(lasting.lower() in other.lower() for other in names) == 1
        options: dict[str, Value] = {"device": lasting if alone else name}
        if device.get("default_samplerate"):
            options["rate_hz"] = float(device["default_samplerate"])
        channels = int(device["max_input_channels"])
        note = "" if alone else "another device has the same name: this one's number changes with its plug"
        found.append(Device("alsa", f"sound device {name!r}, {channels} channel(s)", options, note))
    return found


def iio_devices(sysfs_dir: Path = Path("/sys/bus/iio/devices")) -> list[Found]:
    """Devices with a kernel driver that measure what the source `iio` reads."""
    found: list[Found] = []
    folders = sorted(sysfs_dir.glob("iio:device*"))
    names = [_text(folder / "name") for folder in folders]
    for folder, name in zip(folders, names, strict=True):
        quantities = [q for q in QUANTITIES if list(folder.glob(f"scan_elements/in_{q}_*_en"))]
        wanted = name if name and names.count(name) == 1 else folder.name
        if not quantities:
            if any(list(folder.glob(f"in_{q}_*raw")) for q in QUANTITIES):
                fix = "use the source i2c, without the kernel's driver"
                found.append(Missing("iio", f"{name} ({folder.name}) has no buffered channels", fix))
            continue
        rate = _text(folder / "sampling_frequency")
        options: dict[str, Value] = {"device": wanted, "rate_hz": float(rate) if rate else IIO_DEFAULT_HZ}
        what = f"IIO device {name} ({folder.name}): {', '.join(quantities)}"
        note = "" if os.access(folder / "buffer" / "enable", os.W_OK) else f"not ours to switch on: {PERMISSION_FIX}"
        found.append(Device("iio", what, options, note))
    return found


def i2c_chips(library: Callable[[], Any] | None = None, dev_dir: Path = Path("/dev")) -> list[Found]:
    """IMUs that answer on any bus, by their WHO_AM_I register; nothing is written to them."""
    buses = sorted(int(p.name[4:]) for p in dev_dir.glob("i2c-*") if p.name[4:].isdigit())
    if not buses:
        return []
    try:
        smbus2 = (library or (lambda: extra("smbus2", "imu", "IMUs on I2C")))()
    except SourceError as e:
        return [Missing("i2c", e.what, e.fix)]
    found: list[Found] = []
    for number in buses:
        try:
            bus = smbus2.SMBus(number)
        except OSError as e:
            fix = f"let the user into the group i2c: sudo usermod -aG i2c {os.environ.get('USER', '$USER')}"
            found.append(Missing("i2c", f"bus {number} cannot be opened: {e.strerror}", fix))
            continue
        try:
            found += [chip for address in ADDRESSES for chip in _who_is_at(bus, number, address)]
        finally:
            bus.close()
    return found


def _who_is_at(bus: Any, number: int, address: int) -> list[Found]:
    where = f"bus {number}, address {address:#04x}"
    for key, chip in CHIPS.items():
        register, identity = chip.who_am_i
        try:
            told = int(bus.read_byte_data(address, register))
        except OSError:
            return []  # nobody is there
        if told == identity:
            options: dict[str, Value] = {"chip": key, "bus": number, "address": address}
            return [Device("i2c", f"{chip.name} on {where}", options)]
        if told in OTHER_CHIPS:
            fix = "its registers are close to those of collectors/sensing/imu_chips.py: add it there"
            return [Missing("i2c", f"{OTHER_CHIPS[told]} on {where}: not known to the source i2c", fix)]
    return [Missing("i2c", f"something else answers on {where}", "the source i2c reads MPU-6050 and ICM-20948")]


def gps_receivers(dev_dir: Path = Path("/dev"), ask_gpsd: Callable[[], bool] | None = None) -> list[Found]:
    """Receivers by their names in /dev, pulses, and whether gpsd has a fix: they make a clock, not a stream."""
    serial = [p.name for p in sorted(dev_dir.glob("serial/by-id/*"))]
    receivers = [name for name in serial if any(word in name.lower() for word in GPS_WORDS)]
    pulses = sorted(p.name for p in dev_dir.glob("pps*"))
    found: list[Found] = [Device("gps", f"GPS receiver {name}") for name in receivers]
    found += [
        Device("gps", f"pulse a second at /dev/{name}", note="give it to chrony: refclock PPS") for name in pulses
    ]
    if (ask_gpsd or _gpsd_has_a_fix)():
        found.append(Device("gps", "gpsd with a fix"))
    elif receivers:
        found.append(Missing("gps", "gpsd gives no fix", "apt install gpsd, and look at it with `cgps`"))
    return found


def _gpsd_has_a_fix(port: int = GPSD_PORT, wait_s: float = 2.0) -> bool:
    """gpsd tells every second; where nobody listens, no is the answer at once."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
    except OSError:
        return False
    gpsd = Gpsd(SystemClock(), port=port)
    deadline = time.monotonic() + wait_s
    try:
        while gpsd.ask() is None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True
    finally:
        gpsd.close()


@dataclass(slots=True)
class _Heard:
    last: Datagram
    datagrams: int = 1
    rate_hz: float = 0.0


def shakes(host: str, port: int, listen_s: float) -> list[Found]:
    """Who sends a Shake's datacast to `host`:`port`, which channels, and how fast."""
    heard: dict[str, dict[str, _Heard]] = {}
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as listening:
        try:
            listening.bind((host, port))
        except OSError as e:
            fix = "stop the node for the look (systemctl stop infomae-node), or name another --port"
            return [Missing("raspberry_shake", f"cannot listen on UDP {host}:{port}: {e.strerror}", fix)]
        deadline = time.monotonic() + listen_s
        while (left_s := deadline - time.monotonic()) > 0:
            if not select.select([listening], [], [], left_s)[0]:
                break
            data, sender = listening.recvfrom(MOST_BYTES)
            try:
                _hear(heard.setdefault(sender[0], {}), parse_datagram(data))
            except SourceError:
                heard.setdefault(sender[0], {})
    if not heard:
        fix = f"on the Shake's page, Settings, UDP data: add this machine's address, port {port}"
        return [Missing("raspberry_shake", f"nothing came in {listen_s:g} s on UDP {host}:{port}", fix)]
    return [_shake(sender, channels, port) for sender, channels in sorted(heard.items())]


def _hear(channels: dict[str, _Heard], datagram: Datagram) -> None:
    before = channels.get(datagram.channel)
    if before is None:
        channels[datagram.channel] = _Heard(datagram)
        return
    step_ns = datagram.start_ns - before.last.start_ns
    if step_ns > 0:
        before.rate_hz = float(round(len(before.last.samples_N) * NS_PER_S / step_ns))
    before.last, before.datagrams = datagram, before.datagrams + 1


def _shake(sender: str, channels: dict[str, _Heard], port: int) -> Found:
    if not channels:
        return Missing(
            "raspberry_shake", f"{sender} sends something else to UDP {port}", "stop it, or use another port"
        )
    rates = {heard.rate_hz for heard in channels.values() if heard.rate_hz > 0}
    options: dict[str, Value] = {
        "senders": "" if ipaddress.ip_address(sender).is_loopback else sender,
        "port": port,
        "channels": ",".join(sorted(channels)),
    }
    if len(rates) == 1:
        options["rate_hz"] = rates.pop()
    count = sum(heard.datagrams for heard in channels.values())
    what = f"Shake at {sender}: {', '.join(sorted(channels))} ({count} datagrams)"
    return Device("raspberry_shake", what, options, "a datagram does not tell the station: see the Shake's page")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def described(found: Sequence[Found]) -> list[dict[str, Any]]:
    """For --json."""
    return [
        {"kind": f.kind, "what": f.what, "options": f.options, "note": f.note}
        if isinstance(f, Device)
        else {"kind": f.kind, "missing": f.why, "fix": f.fix}
        for f in found
    ]
