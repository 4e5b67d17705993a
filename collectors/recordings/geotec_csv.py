"""GeoTec's CSV files: x_acc ... z_gyro in m/s2 and rad/s, `timestamp` in Unix milliseconds, `label` (not read)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from collectors.recordings import Description, OtherMake, Recording, only_part
from collectors.sensing.archive import Archive
from collectors.sensing.text_rows import read_rows

COLUMNS: Final = ("x_acc", "y_acc", "z_acc", "x_gyro", "y_gyro", "z_gyro")


class GeotecCsv:
    """One file is one recording, named after the file; values stay float32 in their units."""

    def __init__(self, path: Path, part: str = "") -> None:
        self._archive = Archive(path)
        with self._archive.lines(path.name) as lines:
            header = next(lines, "").split(",")
        if not {*COLUMNS, "timestamp"} <= set(header):
            raise OtherMake("the header lacks x_acc ... z_gyro, timestamp", where=str(path))
        only_part(part, path)
        self._columns = [header.index(column) for column in COLUMNS]
        self._time_column = header.index("timestamp")
        self.names: tuple[str, ...] = (path.stem,)
        self.description = Description(
            channels=("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z"),
            units=("m/s2",) * 3 + ("rad/s",) * 3,
            sensitivity=(1.0,) * 6,
            rate_hz=100.0,
            kind="imu",
        )

    def load(self, name: str) -> Recording:
        if name not in self.names:
            raise KeyError(name)
        with self._archive.lines(name) as lines:
            next(lines, "")
            where = str(self._archive.path)
            rows = read_rows(lines, self._parse, where=where, first_line=2, channels=len(COLUMNS))
        return Recording(rows.samples_CN, rows.times_ns, int(rows.times_ns[0]), rows.refused)

    def close(self) -> None:
        self._archive.close()

    def _parse(self, row: Sequence[str]) -> tuple[int, list[float]]:
        return int(row[self._time_column]) * 1_000_000, [float(row[column]) for column in self._columns]
