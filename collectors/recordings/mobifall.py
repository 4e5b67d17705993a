"""MobiFall's text files, alone or in the zip of a subject: `<ACT>_<sensor>_<subject>_<trial>.txt`, one trial each.

Header lines start with '#', one of them tells the wall time to the second; after '@DATA' stand nanoseconds since the
phone's start and three values. The sensors of a trial share the phone's clock, so the wall time is tied to the first
sample of the trial's earliest sensor: their offsets to each other stay as they were. Wall times are taken as UTC.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Final

from collectors.recordings import Description, OtherMake, Recording, part_of
from collectors.sensing.archive import Archive, stem
from collectors.sensing.text_rows import read_rows
from infomae_stream.clock import NS_PER_S
from infomae_stream.errors import SourceError

# sensor -> kind, channels, unit, rate. The orientation is computed from others: it has no kind of its own.
SENSORS: Final = {
    "acc": ("accelerometer", ("acc_x", "acc_y", "acc_z"), "m/s2", 90.0),
    "gyro": ("gyroscope", ("gyro_x", "gyro_y", "gyro_z"), "rad/s", 200.0),
    "ori": ("", ("azimuth", "pitch", "roll"), "deg", 200.0),
}
HEADER_LINES: Final = 60
_NAME = re.compile(r"([A-Z]+)_(acc|gyro|ori)_(\d+)_(\d+)")
_TIME = re.compile(r"#\s*Datetime:\s*(\d\d/\d\d/\d{4} \d\d:\d\d:\d\d)\s*")


class MobiFallRecordings:
    """part: acc, gyro or ori. A recording is a trial, named as its file."""

    def __init__(self, path: Path, part: str = "") -> None:
        self._archive = Archive(path)
        # Each file: its trial and sensor.
        self._members = {
            stem(name): (name, found) for name in self._archive.names if (found := _NAME.fullmatch(stem(name)))
        }
        if not self._members:
            raise OtherMake("no file is named like WAL_acc_5_1.txt", where=str(path))
        sensors = {found[2] for _, found in self._members.values()}
        if not part and len(sensors) == 1:
            (part,) = sensors
        part_of(part, tuple(s for s in SENSORS if s in sensors), path)
        self.names: tuple[str, ...] = tuple(s for s, (_, found) in self._members.items() if found[2] == part)
        kind, channels, unit, rate_hz = SENSORS[part]
        self.description = Description(channels, (unit,) * 3, (1.0,) * 3, rate_hz, kind)

    def load(self, name: str) -> Recording:
        if name not in self.names:
            raise KeyError(name)
        member, found = self._members[name]
        wall_ns, skipped, _ = self._header(member)
        trial = [n for n, other in self._members.values() if (other[1], other[4]) == (found[1], found[4])]
        zero_ns = min(self._header(n)[2] for n in trial)
        where = self._archive.where(member)
        with self._archive.lines(member) as lines:
            rest = islice(lines, skipped, None)
            rows = read_rows(rest, _parse, where=where, first_line=skipped + 1, channels=3)
        times_N = rows.times_ns - zero_ns + wall_ns
        return Recording(rows.samples_CN, times_N, int(times_N[0]), rows.refused)

    def close(self) -> None:
        self._archive.close()

    def _header(self, member: str) -> tuple[int, int, int]:
        """Wall time, number of lines before the first row, and the phone's time in that row."""
        wall_ns = None
        with self._archive.lines(member) as lines:
            for number, line in enumerate(islice(lines, HEADER_LINES), start=1):
                told = _TIME.fullmatch(line)
                if told:
                    wall = datetime.strptime(told[1], "%d/%m/%Y %H:%M:%S").replace(tzinfo=UTC)
                    wall_ns = int(wall.timestamp()) * NS_PER_S
                if line.strip() == "@DATA" and wall_ns is not None:
                    for row in lines:
                        try:
                            return wall_ns, number, _parse(row.split(","))[0]
                        except (ValueError, IndexError):
                            continue
        raise SourceError("there is no Datetime or no @DATA with rows", where=self._archive.where(member))


def _parse(row: Sequence[str]) -> tuple[int, list[float]]:
    return int(row[0]), [float(row[1]), float(row[2]), float(row[3])]
