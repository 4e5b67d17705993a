"""miniSEED 2 by obspy (extra `seismo`): STEIM2 for int32, plain int16, float32 and float64; records of 512 bytes.

A record says its own start to the microsecond; where a chunk begins more than half a microsecond off the grid of
those before it, a new record begins, so that no time in the file is further off than that.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from infomae_stream.clock import NS_PER_S
from infomae_stream.errors import DataError
from infomae_stream.types import StreamSpec
from storage.exports import ExportOptions, Piece, Stretch

RECORD_BYTES: Final = 512
_PART_SAMPLES: Final = 500_000
_STEIM_LIMIT: Final = 2**29  # a difference of neighbours has 30 bits
_ENCODINGS: Final = {"int16": "INT16", "int32": "STEIM2", "float32": "FLOAT32", "float64": "FLOAT64"}
_SEED_ID: Final = re.compile(r"[A-Z0-9]{1,2}\.[A-Z0-9]{1,5}\.[A-Z0-9]{0,2}\.[A-Z0-9]{3}")
# SEED manual, appendix A: instrument codes.
_INSTRUMENT: Final = {"seismic": "H", "accelerometer": "N", "imu": "N", "gyroscope": "J", "magnetometer": "F"}


def load_obspy() -> Any:
    """obspy, imported at need. Raises ModuleNotFoundError, of which the command line makes the extra's name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it asks importlib.metadata in an old way
        import obspy
        import obspy.io.mseed
    return obspy


def seed_ids(spec: StreamSpec, given: Sequence[str] = ()) -> list[str]:
    """One "NET.STA.LOC.CHA" a channel: those given, the stream's own, or made from kind, rate and names.

    Raises DataError when an id is not one, when two channels share one, or when their number is wrong.
    """
    ids = list(given)
    if not ids and spec.seed_id:
        own = spec.seed_id.upper()
        ids = [own] if len(spec.channels) == 1 else [own[:-1] + letter for letter in _orientations(spec)]
    if not ids:
        station = re.sub(r"[^A-Z0-9]", "", spec.id.node.upper())[-5:] or "NODE"
        band = next(
            b
            for b, least in (("F", 1000), ("C", 250), ("H", 80), ("B", 10), ("M", 1), ("L", 0))
            if spec.rate_hz >= least
        )
        ids = [f"XX.{station}..{band}{_INSTRUMENT.get(spec.kind, 'D')}{letter}" for letter in _orientations(spec)]
    fix = "give --seed-id NET.STA.LOC.CHA once a channel"
    if len(ids) != len(spec.channels) or len(set(ids)) != len(ids):
        raise DataError(f"SEED ids {ids} for {len(spec.channels)} channels", where=str(spec.id), fix=fix)
    for one in ids:
        if not _SEED_ID.fullmatch(one):
            raise DataError(f"{one!r} is not a SEED id", where=str(spec.id), fix=fix)
    return ids


class MseedFormat:
    suffix = ".mseed"
    irregular = False
    one_stretch = False

    def __init__(self, path: Path, spec: StreamSpec, dtype: np.dtype[Any], options: ExportOptions) -> None:
        self._obspy = load_obspy()
        self._file: BinaryIO = path.open("wb")
        self._spec, self._dtype = spec, dtype
        self._ids = seed_ids(spec, options.seed_ids)
        self._waiting: list[Piece] = []
        self._samples = 0
        self._stretch: Stretch | None = None

    def add(self, piece: Piece, stretch: Stretch) -> None:
        if self._waiting:
            step_ns = NS_PER_S / self._spec.rate_hz
            due_ns = self._waiting[0].start_ns + self._samples * step_ns
            off_grid = abs(piece.start_ns - due_ns) > 500
            if off_grid or stretch is not self._stretch or self._samples >= _PART_SAMPLES:
                self._flush()
        self._stretch = stretch
        stretch.extra.setdefault("seed_ids", self._ids)
        self._waiting.append(piece)
        self._samples += piece.n_samples

    def close(self) -> None:
        with self._file:
            if self._waiting:
                self._flush()

    def _flush(self) -> None:
        """One part: all channels of what waits. Its place goes into the description."""
        assert self._stretch is not None
        samples_CN = np.concatenate([piece.samples_CN for piece in self._waiting], axis=1)
        first = self._file.tell()
        for name, samples_N in zip(self._ids, samples_CN, strict=True):
            self._file.write(self._records(name, np.ascontiguousarray(samples_N), self._waiting[0].start_ns))
        part = [first, self._file.tell() - first, samples_CN.shape[1]]
        self._stretch.extra.setdefault("parts", []).append(part)
        self._waiting, self._samples = [], 0

    def _records(self, name: str, samples_N: NDArray[Any], start_ns: int) -> bytes:
        network, station, location, channel = name.split(".")
        # obspy swaps the bytes of an array whose type says its byte order, also when that is the machine's own.
        given_N, samples_N = samples_N, np.empty(len(samples_N), dtype=self._dtype.name)
        samples_N[:] = given_N
        trace = self._obspy.Trace(
            samples_N,
            {
                "network": network,
                "station": station,
                "location": location,
                "channel": channel,
                "sampling_rate": self._spec.rate_hz,
                "starttime": self._obspy.UTCDateTime(ns=start_ns),
            },
        )
        encoding = _ENCODINGS[self._dtype.name]
        if encoding == "STEIM2" and (np.abs(np.diff(samples_N.astype(np.int64))) >= _STEIM_LIMIT).any():
            encoding = "INT32"
        out = io.BytesIO()
        trace.write(out, format="MSEED", encoding=encoding, reclen=RECORD_BYTES, byteorder=">")
        back = np.concatenate([t.data for t in self._obspy.read(io.BytesIO(out.getvalue()), format="MSEED")])
        if back.astype(self._dtype).tobytes() != samples_N.tobytes():
            raise DataError("miniSEED gave other samples back", where=str(self._spec.id), fix="export csv or parquet")
        return out.getvalue()

    @staticmethod
    def check(specs: Sequence[StreamSpec], options: ExportOptions) -> None:
        load_obspy()
        for spec in specs:
            seed_ids(spec, options.seed_ids)

    @staticmethod
    def read(path: Path, description: dict[str, Any]) -> Iterator[tuple[int, NDArray[Any], NDArray[np.int64] | None]]:
        obspy, dtype = load_obspy(), np.dtype(description["dtype"])
        with path.open("rb") as file:
            for stretch in description["stretches"]:
                index = stretch["index"]
                for first, size, n in stretch["parts"]:
                    file.seek(first)
                    traces = obspy.read(io.BytesIO(file.read(size)), format="MSEED")
                    rows = [np.concatenate([t.data for t in traces.select(id=name)]) for name in stretch["seed_ids"]]
                    yield index, np.stack(rows).astype(dtype), None
                    index += n


def _orientations(spec: StreamSpec) -> list[str]:
    """Z, N, E or X, Y, Z where the channels' names end so, else 1, 2, 3 ... A, B; different for each channel."""
    last = [name[-1:].upper() for name in spec.channels]
    if len(set(last)) == len(last) and set(last) <= set("ZNEXY"):
        return last
    return list("123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ0"[: len(last)])
