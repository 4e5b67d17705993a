"""Samples into files that others read, and back. One file a format, one line in FORMATS.

Every file has a description beside it, `<file>.json`, with what the format cannot hold (`description.py`): with it, an
import gives the same samples at the same times. C channels, N samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from infomae_stream.clock import NS_PER_S
from infomae_stream.types import StreamSpec

FORMATS: Final = {
    "parquet": "storage.exports.parquet:ParquetFormat",
    "csv": "storage.exports.csv_text:CsvFormat",
    "wav": "storage.exports.wav:WavFormat",
    "mseed": "storage.exports.mseed:MseedFormat",
}


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """What became of one chunk: all of it, or what lies in the range that was asked for."""

    spec: StreamSpec
    start_ns: int
    samples_CN: NDArray[Any]
    times_ns: NDArray[np.int64] | None

    @property
    def n_samples(self) -> int:
        return int(self.samples_CN.shape[1])

    @property
    def last_ns(self) -> int:
        """Time of the last sample."""
        if self.times_ns is not None:
            return int(self.times_ns[-1])
        return self.start_ns + round((self.n_samples - 1) * NS_PER_S / self.spec.rate_hz)

    def sample_times_ns(self) -> NDArray[np.int64]:
        """One time a sample, shape (N,), as `Chunk.sample_times_ns`."""
        if self.times_ns is not None:
            return self.times_ns
        steps = np.arange(self.n_samples, dtype=np.float64) * (NS_PER_S / self.spec.rate_hz)
        return self.start_ns + np.round(steps).astype(np.int64)


@dataclass(slots=True)
class Stretch:
    """Pieces without a hole between them. `index`: the first sample's in the file; `extra`: the format's own."""

    index: int
    number: int
    start_ns: int
    irregular: bool
    n_samples: int
    last_ns: int
    pieces: list[list[int]]
    extra: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """fill: WAV only, zeros in holes instead of a new file. seed_ids: miniSEED only, one a channel, or none."""

    fill: bool = False
    seed_ids: tuple[str, ...] = ()


class SampleFormat(Protocol):
    """Made by `Class(path, spec, dtype, options)`, for one file of one stream."""

    suffix: str
    irregular: bool  # whether samples with a time each can be held
    one_stretch: bool  # whether every hole needs a new file

    def __init__(self, path: Path, spec: StreamSpec, dtype: np.dtype[Any], options: ExportOptions) -> None: ...

    def add(self, piece: Piece, stretch: Stretch) -> None:
        """Write the piece behind what is there; `stretch` is the one it belongs to, `n_samples` not counting it yet."""

    def close(self) -> None:
        """Finish the file. Nothing may be added any more."""

    @staticmethod
    def check(specs: Sequence[StreamSpec], options: ExportOptions) -> None:
        """Raise DataError, with the reason and what to do, when such streams cannot be written."""

    @staticmethod
    def read(path: Path, description: dict[str, Any]) -> Iterator[tuple[int, NDArray[Any], NDArray[np.int64] | None]]:
        """(first sample's index in the file, samples_CN, times_ns or None) in order, in parts that fit into memory."""


def format_class(name: str) -> type[SampleFormat]:
    """The class of a format of FORMATS."""
    module, attribute = FORMATS[name].split(":")
    found: type[SampleFormat] = getattr(import_module(module), attribute)
    return found


def column_names(spec: StreamSpec, taken: Sequence[str]) -> list[str]:
    """Names of the channels as columns of a table: their own, numbered where one stands twice or is `taken`."""
    names: list[str] = []
    for i, channel in enumerate(spec.channels):
        names.append(channel if channel not in {*taken, *names} and channel else f"{channel}_{i}")
    return names
