"""FORTH-TRACE's CSV files of a Shimmer node: device, three accelerations, rates and fields, milliseconds, label.

There is no header and no date: times count from the device's start. They come in batches, many equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from collectors.recordings import Description, OtherMake, Recording, only_part
from collectors.sensing.archive import Archive
from collectors.sensing.text_rows import read_rows

N_COLUMNS: Final = 12
AXES: Final = ("x", "y", "z")


class ForthCsv:
    """One file is one recording, named after the file; the label is not read."""

    def __init__(self, path: Path, part: str = "") -> None:
        self._archive = Archive(path)
        with self._archive.lines(path.name) as lines:
            try:
                _parse(next(lines, "").split(","))
            except (ValueError, IndexError) as e:
                raise OtherMake(f"the first line is not {N_COLUMNS} numbers", where=str(path)) from e
        only_part(part, path)
        self.names: tuple[str, ...] = (path.stem,)
        self.description = Description(
            channels=tuple(f"{what}_{axis}" for what in ("acc", "gyro", "mag") for axis in AXES),
            units=("m/s2",) * 3 + ("deg/s",) * 3 + ("1",) * 3,
            sensitivity=(1.0,) * 9,
            rate_hz=51.2,
            kind="imu",
            has_time=False,
        )

    def load(self, name: str) -> Recording:
        if name not in self.names:
            raise KeyError(name)
        with self._archive.lines(name) as lines:
            rows = read_rows(lines, _parse, where=str(self._archive.path), channels=9)
        return Recording(rows.samples_CN, rows.times_ns, None, rows.refused)

    def close(self) -> None:
        self._archive.close()


def _parse(row: Sequence[str]) -> tuple[int, list[float]]:
    if len(row) != N_COLUMNS:
        raise ValueError(f"{len(row)} columns, want {N_COLUMNS}")
    # Some exports write the milliseconds with a fraction.
    return round(float(row[10]) * 1_000_000), [float(value) for value in row[1:10]]
