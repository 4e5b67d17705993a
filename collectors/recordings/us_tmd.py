"""US-TransportationMode's event logs, alone or in a zip: `<user>_<mode>_<epoch ms>.csv`, all sensors interleaved.

A row is `ms since the trip's start, sensor, values...`; the sound level's milliseconds are written negative. Sensors
share a budget of about 20 events a second, so that rates wander: the declared ones are nominal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from collectors.recordings import Description, OtherMake, Recording, part_of
from collectors.sensing.archive import Archive, stem
from collectors.sensing.text_rows import read_rows

AXES: Final = ("x", "y", "z")
ANDROID: Final = "android.sensor."
# part -> name in the log, kind, modality, channels, unit, nominal rate
SENSORS: Final = {
    "accelerometer": (f"{ANDROID}accelerometer", "accelerometer", "", AXES, "m/s2", 5.0),
    "gyroscope": (f"{ANDROID}gyroscope", "gyroscope", "", AXES, "rad/s", 5.0),
    "magnetic_field": (f"{ANDROID}magnetic_field", "magnetometer", "", AXES, "uT", 5.0),
    "light": (f"{ANDROID}light", "light", "", ("level",), "lx", 1.0),
    "sound": ("sound", "acoustic", "sound_level", ("level",), "dB", 0.1),  # a level, no waveform
}
_NAME = re.compile(r"(\w+)_([A-Za-z]+)_(\d{13})")


class UsTmdRecordings:
    """part: one of SENSORS. A recording is a trip, named as its file; one without the sensor does not load."""

    def __init__(self, path: Path, part: str = "") -> None:
        self._archive = Archive(path)
        self._members = {stem(name): name for name in self._archive.names if _NAME.fullmatch(stem(name))}
        if not self._members:
            raise OtherMake("no file is named like U01_Bus_1480485018989.csv", where=str(path))
        self._sensor, kind, modality, channels, unit, rate_hz = SENSORS[part_of(part, tuple(SENSORS), path)]
        self.names: tuple[str, ...] = tuple(self._members)
        n = len(channels)
        self.description = Description(channels, (unit,) * n, (1.0,) * n, rate_hz, kind, modality)

    def load(self, name: str) -> Recording:
        member = self._members[name]
        found = _NAME.fullmatch(name)
        assert found is not None
        n = len(self.description.channels)
        with self._archive.lines(member) as lines:
            rows = read_rows(lines, self._parse, where=self._archive.where(member), channels=n)
        times_N = rows.times_ns + int(found[3]) * 1_000_000
        return Recording(rows.samples_CN, times_N, int(times_N[0]), rows.refused)

    def close(self) -> None:
        self._archive.close()

    def _parse(self, row: Sequence[str]) -> tuple[int, list[float]] | None:
        if row[1] != self._sensor:
            if not row[1]:
                raise ValueError("no sensor is named")
            return None
        values = row[2 : 2 + len(self.description.channels)]
        return abs(int(row[0])) * 1_000_000, [float(value) for value in values]
