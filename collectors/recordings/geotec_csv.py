"""GeoTec's CSV files: x_acc ... z_gyro in m/s2 and rad/s, `timestamp` in Unix milliseconds, `label` (not read)."""

from __future__ import annotations

import csv
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from collectors.recordings import Description, Recording
from infomae_stream.errors import SourceError

COLUMNS: Final = ("x_acc", "y_acc", "z_acc", "x_gyro", "y_gyro", "z_gyro")
MAX_ROWS: Final = 5_000_000


class GeotecCsv:
    """One file is one recording, named after the file; values stay float32 in their units."""

    def __init__(self, path: Path) -> None:
        self._path = path
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
        times_ms: list[int] = []
        values: list[list[float]] = []
        try:
            with self._path.open(newline="", encoding="utf-8") as f:
                for row in islice(csv.DictReader(f), MAX_ROWS):
                    values.append([float(row[column]) for column in COLUMNS])
                    times_ms.append(int(row["timestamp"]))
        except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as e:
            raise SourceError(f"row {len(times_ms) + 1} cannot be read: {e!r}", where=str(self._path)) from e
        if not times_ms:
            raise SourceError("there are no rows", where=str(self._path))
        times_N = np.array(times_ms, dtype=np.int64) * 1_000_000
        return Recording(np.array(values, dtype=np.float32).T.copy(), times_N, int(times_N[0]))

    def close(self) -> None:
        return
