"""MetaMotion's (MetaWear's) CSV files, alone or in a zip: one file a sensor, epoch milliseconds and three axes.

`<what>_MetaWear_<time>_<device>_<Sensor>_<rate>Hz_<version>.csv`; units stand in the header.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from collectors.recordings import Description, OtherMake, Recording, part_of
from collectors.sensing.archive import Archive
from collectors.sensing.text_rows import read_rows
from infomae_stream.errors import SourceError

SENSORS: Final = {
    "accelerometer": ("acc_x", "acc_y", "acc_z"),
    "gyroscope": ("gyro_x", "gyro_y", "gyro_z"),
    "magnetometer": ("mag_x", "mag_y", "mag_z"),
}
UNITS: Final = {"g": "[g]", "deg/s": "deg/s", "T": "T"}
_NAME = re.compile(r"(?:.*/)?([^/]+)_MetaWear_([^_]+)_([0-9A-F]+)_([A-Za-z]+)_([\d.]+)Hz_[\d.]+\.csv")
_AXIS = re.compile(r"[xyz]-axis \((.+)\)")


class MetaMotionRecordings:
    """part: accelerometer, gyroscope or magnetometer. A recording is a file, named `<what>_<time>`."""

    def __init__(self, path: Path, part: str = "") -> None:
        self._archive = Archive(path)
        found = [(name, match) for name in self._archive.names if (match := _NAME.fullmatch(name))]
        if not found:
            raise OtherMake("no file is named like squat_MetaWear_..._Gyroscope_25.000Hz_1.4.4.csv", where=str(path))
        sensors = {match[4].lower() for _, match in found}
        if not part and len(sensors) == 1:
            (part,) = sensors
        part_of(part, tuple(s for s in SENSORS if s in sensors), path)
        mine = [(name, match) for name, match in found if match[4].lower() == part]
        rates = {float(match[5]) for _, match in mine}
        if len(rates) != 1:
            raise SourceError(f"the files have {len(rates)} rates", where=str(path), fix="one zip for each rate")
        self._members: dict[str, str] = {}
        for name, match in mine:
            called = f"{match[1]}_{match[2]}"
            while called in self._members:  # the same set, saved twice
                called += "_again"
            self._members[called] = name
        self.names: tuple[str, ...] = tuple(self._members)
        channels = SENSORS[part]
        self.description = Description(channels, self._units(), (1.0,) * 3, rates.pop(), part)

    def load(self, name: str) -> Recording:
        member = self._members[name]
        where = self._archive.where(member)
        with self._archive.lines(member) as lines:
            header = next(lines, "").split(",")
            if header[:1] != ["epoch (ms)"] or self._units_of(header) != self.description.units:
                raise SourceError("its header or its units are not those of the first file", where=where)
            rows = read_rows(lines, _parse, where=where, first_line=2, channels=3)
        return Recording(rows.samples_CN, rows.times_ns, int(rows.times_ns[0]), rows.refused)

    def close(self) -> None:
        self._archive.close()

    def _units(self) -> tuple[str, ...]:
        member = self._members[self.names[0]]
        with self._archive.lines(member) as lines:
            units = self._units_of(next(lines, "").split(","))
        if len(units) != 3:
            raise SourceError("the header does not name three axes and their units", where=self._archive.where(member))
        return units

    @staticmethod
    def _units_of(header: Sequence[str]) -> tuple[str, ...]:
        found = [_AXIS.fullmatch(column) for column in header]
        return tuple(UNITS.get(match[1], match[1]) for match in found if match)


def _parse(row: Sequence[str]) -> tuple[int, list[float]]:
    if len(row) != 6:
        raise ValueError(f"{len(row)} columns, want 6")
    return int(row[0]) * 1_000_000, [float(value) for value in row[3:6]]
