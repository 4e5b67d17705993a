"""Files of recorded samples, by suffix. One file a format, one line in FORMATS.

C channels, N samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from infomae_stream.errors import SourceError

FORMATS: Final = {
    ".parquet": "collectors.recordings.parquet:ParquetRecordings",
    ".csv": "collectors.recordings.geotec_csv:GeotecCsv",
    ".wav": "collectors.recordings.wav:WavRecording",
}


@dataclass(frozen=True, slots=True)
class Description:
    """What the file says of its stream; "" and 0 where it says nothing."""

    channels: tuple[str, ...]
    units: tuple[str, ...]
    sensitivity: tuple[float, ...]
    rate_hz: float = 0.0
    kind: str = ""
    modality: str = ""
    has_time: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """times_ns: shape (N,), in the file's order, or None where samples follow each other at the declared rate.

    start_ns: time of the first sample; None where the file does not know it.
    """

    samples_CN: NDArray[Any]
    times_ns: NDArray[np.int64] | None
    start_ns: int | None


class Recordings(Protocol):
    """Made by `Class(path)`; raises SourceError when the file cannot be read or is of another make."""

    description: Description
    names: tuple[str, ...]

    def load(self, name: str) -> Recording:
        """One recording of the file. Raises SourceError when it is broken, KeyError when there is none of that name."""

    def close(self) -> None:
        """Give back what is open."""


def open_recordings(path: Path) -> Recordings:
    """The recordings of one file. Raises SourceError."""
    entry = FORMATS.get(path.suffix.lower())
    if entry is None:
        raise SourceError("unknown kind of file", where=str(path), fix=f"known: {', '.join(FORMATS)}")
    if not path.is_file():
        raise SourceError("there is no such file", where=str(path))
    module, attribute = entry.split(":")
    recordings: Recordings = getattr(import_module(module), attribute)(path)
    return recordings
