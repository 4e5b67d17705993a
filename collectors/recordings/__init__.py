"""Files of recorded samples. One file a format, one line in FORMATS; SUFFIXES says which may stand behind a suffix.

C channels, N samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from collectors.sensing.text_rows import NONE_REFUSED, Refused
from infomae_stream.errors import SourceError

FORMATS: Final = {
    "parquet": "collectors.recordings.parquet:ParquetRecordings",
    "geotec": "collectors.recordings.geotec_csv:GeotecCsv",
    "mobifall": "collectors.recordings.mobifall:MobiFallRecordings",
    "forth": "collectors.recordings.forth_csv:ForthCsv",
    "metamotion": "collectors.recordings.metamotion:MetaMotionRecordings",
    "us_tmd": "collectors.recordings.us_tmd:UsTmdRecordings",
    "wav": "collectors.recordings.wav:WavRecording",
    "flac": "collectors.recordings.flac:FlacRecording",
    "sac": "collectors.recordings.sac:SacRecordings",
    "miniseed": "collectors.recordings.miniseed:MiniseedRecordings",
}
# Several: the first that takes the file reads it.
SUFFIXES: Final = {
    ".parquet": ("parquet",),
    ".csv": ("geotec", "metamotion", "us_tmd", "forth"),
    ".txt": ("mobifall",),
    ".zip": ("mobifall", "metamotion", "us_tmd", "sac"),
    ".wav": ("wav",),
    ".flac": ("flac",),
    ".sac": ("sac",),
    ".mseed": ("miniseed",),
    ".miniseed": ("miniseed",),
}


@dataclass(frozen=True, slots=True)
class Description:
    """What the file says of its stream; "" and 0 where it says nothing.

    has_time: False where no time of the recordings is absolute; their times, if any, then count from anywhere.
    """

    channels: tuple[str, ...]
    units: tuple[str, ...]
    sensitivity: tuple[float, ...]
    rate_hz: float = 0.0
    kind: str = ""
    modality: str = ""
    has_time: bool = True
    seed_id: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """times_ns: shape (N,), in the file's order, or None where samples follow each other at the declared rate.

    start_ns: time of the first sample; None where the file does not know it. refused: what was left out.
    """

    samples_CN: NDArray[Any]
    times_ns: NDArray[np.int64] | None
    start_ns: int | None
    refused: Refused = NONE_REFUSED


class Recordings(Protocol):
    """Made by `Class(path, part)`; raises SourceError when the file cannot be read or is of another make.

    part: which of several streams in the file is meant (a sensor's or a channel's name); "" where there is one.
    """

    description: Description
    names: tuple[str, ...]

    def load(self, name: str) -> Recording:
        """One recording of the file. Raises SourceError when it is broken, KeyError when there is none of that name."""

    def close(self) -> None:
        """Give back what is open."""


def open_recordings(path: Path, format: str = "", part: str = "") -> Recordings:
    """The recordings of one file; `format` is a name in FORMATS, "" finds it by the suffix. Raises SourceError."""
    candidates = (format,) if format else SUFFIXES.get(path.suffix.lower(), ())
    if not candidates:
        raise SourceError("unknown kind of file", where=str(path), fix=f"known: {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise SourceError("there is no such file", where=str(path))
    problems = []
    for name in candidates:
        if name not in FORMATS:
            raise SourceError(f"format {name!r} is unknown", where=str(path), fix=f"known: {', '.join(FORMATS)}")
        module, attribute = FORMATS[name].split(":")
        try:
            recordings: Recordings = getattr(import_module(module), attribute)(path, part)
        except OtherMake as e:
            problems.append(f"{name}: {e.what}")
            continue
        return recordings
    raise SourceError(f"it is of no known make ({'; '.join(problems)})", where=str(path))


class OtherMake(SourceError):
    """The file is not of this format at all; another may take it."""


def only_part(part: str, path: Path) -> None:
    """For formats with one stream a file. Raises SourceError when a part was asked for."""
    if part:
        raise SourceError(f"the file has no parts, yet {part!r} is asked for", where=str(path), fix="leave part out")


def part_of(part: str, known: tuple[str, ...], path: Path) -> str:
    """For formats with several streams a file. Raises SourceError when `part` names none of them."""
    if part not in known:
        said = f"no part {part!r}" if part else "the file has several parts"
        raise SourceError(said, where=str(path), fix=f"set part to one of: {', '.join(known)}")
    return part
