"""Accelerometers, gyroscopes and magnetometers with a Linux kernel driver, through industrial I/O buffers.

The driver's files in sysfs say what a record holds; records come from the character device. C channels, N samples.
"""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from collectors.sensing.iio_layout import TIMESTAMP, RecordLayout, ScanElement
from collectors.sensing.sample_clock import SampleClock
from collectors.sources import Reading, SourceContext
from infomae_stream.clock import NS_PER_S
from infomae_stream.config import Settings
from infomae_stream.errors import SourceError
from infomae_stream.node_config import Id
from infomae_stream.telemetry import EventLog
from infomae_stream.types import StreamId, StreamSpec

# What the kernel calls a quantity -> its kind, our name for its channels, and the unit that raw * scale is in.
QUANTITIES: Final = {
    "accel": ("accelerometer", "acc", "m/s2"),
    "anglvel": ("gyroscope", "gyro", "rad/s"),
    "magn": ("magnetometer", "mag", "G"),
}
AXES: Final = ("x", "y", "z")
PERMISSION_FIX: Final = "let the service's user write there (docs/sensors.md has the udev rule)"


class IioOptions(Settings):
    device: str  # the driver's name, as in /sys/bus/iio/devices/*/name, or iio:device0
    stream: Id = "imu"
    modality: str = ""
    rate_hz: float = Field(gt=0)
    quantities: list[str] = []  # of accel, anglvel, magn; empty: all that the device has
    watermark: int = Field(16, ge=1)  # samples that the kernel gathers before it wakes us
    buffer_samples: int = Field(512, ge=2)
    sysfs_dir: str = "/sys/bus/iio/devices"
    dev_dir: str = "/dev"


class IioSource:
    """Live. Times are the driver's, one a sample; without a time stamp element they are taken on arrival."""

    Options: ClassVar[type[Settings]] = IioOptions
    live: ClassVar[bool] = True

    def __init__(self, options: IioOptions, context: SourceContext) -> None:
        self._options, self._clock = options, context.clock
        self._dir = _find_device(Path(options.sysfs_dir), options.device)
        self._where = f"iio {options.device} ({self._dir.name})"
        self._elements = self._choose()
        self._layout = RecordLayout(self._elements)
        self._channels = [e for e in self._layout.elements if e.name != TIMESTAMP]
        self._stamped = len(self._channels) < len(self._layout.elements)
        self._offsets = np.array([self._number(e.name, "offset", 0.0) for e in self._channels])
        self._spec = self._describe(context)
        jitter_s = options.watermark / options.rate_hz + 0.1
        self._arrival_ns = 0 if self._stamped else round(jitter_s * NS_PER_S)
        self._times = SampleClock(options.rate_hz, tolerance_ns=2 * self._arrival_ns, gain=0.02)
        self._start()
        self._file = self._open(Path(options.dev_dir) / self._dir.name)
        self._rest = b""
        matrix = self._text("in_mount_matrix") or self._text("in_accel_mount_matrix")
        fields = {"channels": list(self._spec.channels), "time_stamps": self._stamped, "mount_matrix": matrix}
        EventLog("infomae.sources").info("iio_opened", device=options.device, **fields)

    def specs(self) -> Sequence[StreamSpec]:
        return (self._spec,)

    def poll(self, timeout_s: float) -> Sequence[Reading]:
        """All whole records that the kernel has."""
        if timeout_s > 0:
            select.select([self._file], [], [], timeout_s)
        data = self._rest + self._read()
        whole = len(data) - len(data) % self._layout.record_bytes
        self._rest = data[whole:]
        return [self._reading(self._layout.decode(data[:whole]))] if whole else []

    def close(self) -> None:
        os.close(self._file)
        try:
            self._write("buffer/enable", "0")
        except SourceError:
            return  # unplugged: nobody is left to be told

    def _read(self) -> bytes:
        try:
            return os.read(self._file, self._options.buffer_samples * self._layout.record_bytes)
        except BlockingIOError:
            return b""
        except OSError as e:
            raise SourceError(f"the device failed: {e.strerror}", where=self._where, fix="is it plugged in?") from e

    def _reading(self, values: dict[str, NDArray[np.int64]]) -> Reading:
        counts_CN = np.stack([values[e.name] for e in self._channels])
        samples_CN = counts_CN.astype(self._dtype)
        if self._offsets.any():
            samples_CN = (counts_CN + self._offsets[:, None]).astype(np.float64)
        scales = {e.full_scale for e in self._channels if e.signed}
        full_scale = scales.pop() if len(scales) == 1 and not self._offsets.any() else 0.0
        now_ns, monotonic_ns = self._clock.now_ns(), self._clock.monotonic_ns()
        n = counts_CN.shape[1]
        if self._stamped:
            times_N = values[TIMESTAMP]
            start_ns = int(times_N[0])
        else:
            times_N = None
            start_ns = self._times.place(now_ns - round(n * NS_PER_S / self._options.rate_hz), n).start_ns
        return Reading(
            self._spec.id.stream,
            start_ns,
            samples_CN,
            times_N,
            monotonic_ns=max(monotonic_ns - (now_ns - start_ns), 1),
            uncertainty_ns=self._arrival_ns,
            full_scale=full_scale,
        )

    @property
    def _dtype(self) -> type[np.int16] | type[np.int32] | type[np.float64]:
        bits = max(e.bits + (not e.signed) for e in self._channels)
        return np.int16 if bits <= 16 else np.int32 if bits <= 32 else np.float64

    # -- sysfs ---------------------------------------------------------------------------------------------------------

    def _choose(self) -> list[ScanElement]:
        wanted = self._options.quantities or list(QUANTITIES)
        unknown = [q for q in wanted if q not in QUANTITIES]
        if unknown:
            raise SourceError(f"no quantity {unknown[0]!r}", where=self._where, fix=f"known: {', '.join(QUANTITIES)}")
        names = [f"in_{quantity}_{axis}" for quantity in wanted for axis in AXES]
        there = [name for name in names if (self._dir / "scan_elements" / f"{name}_en").exists()]
        missing = [q for q in self._options.quantities if not any(f"in_{q}_" in name for name in there)]
        if not there or missing:
            said = f"it has no buffered {' or '.join(missing or wanted)}"
            fix = "needs a driver with a buffer and a trigger (docs/sensors.md)"
            raise SourceError(said, where=self._where, fix=fix)
        if (self._dir / "scan_elements" / "in_timestamp_en").exists():
            there.append("in_timestamp")
        return [
            ScanElement.parse(
                TIMESTAMP if name == "in_timestamp" else name,
                self._text(f"scan_elements/{name}_index"),
                self._text(f"scan_elements/{name}_type"),
            )
            for name in there
        ]

    def _describe(self, context: SourceContext) -> StreamSpec:
        o = self._options
        parts = [e.name.removeprefix("in_").split("_") for e in self._channels]
        kinds = {QUANTITIES[quantity][0] for quantity, _ in parts}
        return StreamSpec(
            id=StreamId(context.site, context.node, o.stream),
            kind=kinds.pop() if len(kinds) == 1 else "imu",
            rate_hz=o.rate_hz,
            channels=tuple(f"{QUANTITIES[quantity][1]}_{axis}" for quantity, axis in parts),
            units=tuple(QUANTITIES[quantity][2] for quantity, _ in parts),
            sensitivity=tuple(1 / self._scale(e.name) for e in self._channels),
            modality=o.modality,
        )

    def _scale(self, name: str) -> float:
        scale = self._number(name, "scale", 0.0)
        if not scale or not np.isfinite(scale):
            raise SourceError(f"{name} has no scale", where=self._where)
        return scale

    def _start(self) -> None:
        o = self._options
        self._write("buffer/enable", "0")  # what a killed process left on
        wanted = {"in_timestamp" if e.name == TIMESTAMP else e.name for e in self._elements}
        for enable in sorted((self._dir / "scan_elements").glob("*_en")):
            self._write(f"scan_elements/{enable.name}", "1" if enable.name.removesuffix("_en") in wanted else "0")
        rates = [f for f in ("sampling_frequency", "in_accel_sampling_frequency") if (self._dir / f).exists()]
        if rates:
            self._write(rates[0], f"{o.rate_hz:g}")
            kept = float(self._text(rates[0]) or 0)
            if abs(kept - o.rate_hz) > 0.01 * o.rate_hz:
                fix = f"it can: {self._text(f'{rates[0]}_available') or 'see its manual'}"
                raise SourceError(f"it runs at {kept:g} Hz, not at rate_hz {o.rate_hz:g}", where=self._where, fix=fix)
        self._write("buffer/length", str(o.buffer_samples))
        if (self._dir / "buffer" / "watermark").exists():
            self._write("buffer/watermark", str(min(o.watermark, o.buffer_samples)))
        if (self._dir / "current_timestamp_clock").exists():
            self._write("current_timestamp_clock", "realtime")
        self._write("buffer/enable", "1")

    def _number(self, name: str, attribute: str, default: float) -> float:
        """`in_accel_x_scale`, or `in_accel_scale` for all axes."""
        for base in (name, name.rpartition("_")[0]):
            text = self._text(f"{base}_{attribute}")
            if text:
                try:
                    return float(text)
                except ValueError as e:
                    raise SourceError(f"{base}_{attribute} is {text!r}", where=self._where) from e
        return default

    def _text(self, attribute: str) -> str:
        """A file's text; "" where there is none."""
        try:
            return (self._dir / attribute).read_text(encoding="ascii", errors="replace").strip()
        except FileNotFoundError:
            return ""
        except OSError as e:
            raise SourceError(f"cannot read {attribute}: {e.strerror}", where=self._where) from e

    def _write(self, attribute: str, value: str) -> None:
        try:
            (self._dir / attribute).write_text(value, encoding="ascii")
        except OSError as e:
            fix = PERMISSION_FIX if isinstance(e, PermissionError) else "another program may hold the device"
            raise SourceError(f"cannot set {attribute} to {value}: {e.strerror}", where=self._where, fix=fix) from e

    def _open(self, path: Path) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as e:
            fix = PERMISSION_FIX if isinstance(e, PermissionError) else "another program may hold the device"
            raise SourceError(f"cannot open {path}: {e.strerror}", where=self._where, fix=fix) from e


def _find_device(root: Path, wanted: str) -> Path:
    """The device's folder in sysfs: numbers change from boot to boot, names do not. Raises SourceError."""
    folders = sorted(root.glob("iio:device*"))
    names = {folder.name: _name_of(folder) for folder in folders}
    found = [folder for folder in folders if wanted in (folder.name, names[folder.name])]
    if len(found) == 1:
        return found[0]
    there = ", ".join(f"{name} ({number})" for number, name in names.items()) or "none: is the driver loaded?"
    said = f"there are {len(found)} devices {wanted!r}" if found else f"there is no device {wanted!r}"
    raise SourceError(said, where=str(root), fix=f"devices: {there}")


def _name_of(folder: Path) -> str:
    try:
        return (folder / "name").read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
