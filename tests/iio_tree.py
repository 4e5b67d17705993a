"""A double of an industrial I/O device: a folder like its sysfs tree, and a FIFO in place of its character device."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

SIX_AXES = {
    **{f"in_accel_{axis}": (i, "le:s16/16>>0") for i, axis in enumerate("xyz")},
    **{f"in_anglvel_{axis}": (i + 3, "le:s16/16>>0") for i, axis in enumerate("xyz")},
    "in_timestamp": (6, "le:s64/64>>0"),
}
ATTRIBUTES = {
    "name": "lsm6dso",
    "in_accel_scale": "0.000598",
    "in_anglvel_scale": "0.000153",
    "in_mount_matrix": "0, 1, 0; -1, 0, 0; 0, 0, 1",
    "sampling_frequency": "12.5",
    "current_timestamp_clock": "monotonic",
    "buffer/enable": "0",
    "buffer/length": "2",
    "buffer/watermark": "1",
}


class IioTree:
    def __init__(
        self,
        folder: Path,
        elements: Mapping[str, tuple[int, str]] = SIX_AXES,
        attributes: Mapping[str, str] = ATTRIBUTES,
        number: int = 0,
    ) -> None:
        self.sysfs, self.dev = folder / "sysfs", folder / "dev"
        self.device = self.sysfs / f"iio:device{number}"
        for name, value in attributes.items():
            self._put(name, value)
        for name, (index, described) in elements.items():
            self._put(f"scan_elements/{name}_en", "0")
            self._put(f"scan_elements/{name}_index", str(index))
            self._put(f"scan_elements/{name}_type", described)
        self.dev.mkdir(exist_ok=True)
        self.fifo = self.dev / self.device.name
        os.mkfifo(self.fifo)
        # Both ends, so that neither side waits for the other nor sees an end.
        self._writer = os.open(self.fifo, os.O_RDWR | os.O_NONBLOCK)
        self.options = {"device": attributes["name"], "sysfs_dir": str(self.sysfs), "dev_dir": str(self.dev)}

    def text(self, name: str) -> str:
        return (self.device / name).read_text(encoding="ascii")

    def give(self, data: bytes) -> None:
        assert os.write(self._writer, data) == len(data)

    def close(self) -> None:
        os.close(self._writer)

    def _put(self, name: str, value: str) -> None:
        path = self.device / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value + "\n", encoding="ascii")
