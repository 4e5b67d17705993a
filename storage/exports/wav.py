"""WAV: PCM of 16 or 32 bits, or IEEE floats of 32 or 64. It holds no time, so every stretch is a file of its own.

Why not the standard library's `wave`: it neither writes nor reads floats; scipy's writer wants all samples at once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from infomae_stream.errors import DataError
from infomae_stream.types import StreamSpec
from storage.exports import ExportOptions, Piece, Stretch

MAX_FILE_BYTES: Final = 2_000_000_000  # of samples; the format's sizes have 32 bits, and some readers take 31
_HEADER: Final = struct.Struct("<4sI4s 4sIHHIIHHH 4sII 4sI")  # RIFF; fmt with an empty extension; fact; data
_READ_BYTES: Final = 8_000_000


class WavFormat:
    suffix = ".wav"
    irregular = False
    one_stretch = True

    def __init__(self, path: Path, spec: StreamSpec, dtype: np.dtype[Any], options: ExportOptions) -> None:
        self._file: BinaryIO = path.open("wb")
        self._channels, self._rate, self._dtype = len(spec.channels), round(spec.rate_hz), dtype.newbyteorder("<")
        self._frames = 0
        self._file.write(bytes(_HEADER.size))

    def add(self, piece: Piece, stretch: Stretch) -> None:
        index = stretch.index + stretch.n_samples
        while self._frames < index:  # a hole that is to be filled
            n = min(index - self._frames, 1_000_000)
            self._file.write(bytes(n * self._channels * self._dtype.itemsize))
            self._frames += n
        self._file.write(np.ascontiguousarray(piece.samples_CN.T, dtype=self._dtype).tobytes())
        self._frames += piece.n_samples

    def close(self) -> None:
        width = self._dtype.itemsize
        size, row = self._frames * self._channels * width, self._channels * width
        tag = 3 if self._dtype.kind == "f" else 1
        pad = size % 2
        with self._file:
            self._file.write(bytes(pad))
            self._file.seek(0)
            riff = (b"RIFF", _HEADER.size - 8 + size + pad, b"WAVE")
            form = (b"fmt ", 18, tag, self._channels, self._rate, self._rate * row, row, 8 * width, 0)
            self._file.write(_HEADER.pack(*riff, *form, b"fact", 4, self._frames, b"data", size))

    @staticmethod
    def check(specs: Sequence[StreamSpec], options: ExportOptions) -> None:
        for spec in specs:
            if spec.rate_hz != round(spec.rate_hz):
                raise DataError(
                    f"a WAV file has whole rates only, not {spec.rate_hz} Hz",
                    where=str(spec.id),
                    fix="use csv or parquet",
                )

    @staticmethod
    def read(path: Path, description: dict[str, Any]) -> Iterator[tuple[int, NDArray[Any], NDArray[np.int64] | None]]:
        dtype = np.dtype(description["dtype"]).newbyteorder("<")
        row = dtype.itemsize * len(description["spec"]["channels"])
        index = 0
        with path.open("rb") as file:
            file.seek(_HEADER.size)
            while raw := file.read(max(_READ_BYTES - _READ_BYTES % row, row)):
                whole = np.frombuffer(raw[: len(raw) - len(raw) % row], dtype=dtype)
                samples_NC = whole.reshape(-1, row // dtype.itemsize)
                yield index, samples_NC.T.astype(dtype.newbyteorder("=")), None
                index += len(samples_NC)
