"""One stream of the lake into files of one format, each with its description beside it.

A file is put in place when it is whole; the description last, so that a file without one is known to be unfinished.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from infomae_stream import __version__
from infomae_stream.clock import NS_PER_S
from infomae_stream.errors import DataError, LakeError
from infomae_stream.folders import sync_path
from infomae_stream.types import StreamSpec
from storage.duck import fetch, open_tables
from storage.durable import temporary_beside
from storage.exports import ExportOptions, Piece, SampleFormat, Stretch, format_class
from storage.exports.reading import Holdings, holdings_specs, pieces, told_gaps
from storage.exports.wav import MAX_FILE_BYTES
from storage.lake import Lake
from storage.plain_text import Advance, no_progress
from storage.selection import Selection

IRREGULAR_HOLE_NS: Final = 100_000_000  # as the node's chunker: a longer silence of an irregular sensor is a hole
_HASH_BYTES: Final = 1_000_000


@dataclass(slots=True)
class _Open:
    """A file in the making."""

    final: Path
    temporary: Path
    spec: StreamSpec
    dtype: np.dtype[Any]
    writer: SampleFormat
    stretches: list[Stretch] = field(default_factory=list)
    n_samples: int = 0
    filled: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    closed: bool = False

    def close(self) -> None:
        """Once, whatever comes of it."""
        if not self.closed:
            self.closed = True
            self.writer.close()

    @property
    def length(self) -> int:
        return self.n_samples + self.filled


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished file."""

    file: str
    sha256: str
    bytes: int
    n_samples: int
    stretches: int


class ExportJob:
    """Raises DataError before anything is written when the stream does not fit the format."""

    def __init__(self, lake: Lake, holdings: Holdings, format_name: str, folder: Path, options: ExportOptions) -> None:
        self._lake, self._holdings, self._folder, self._options = lake, holdings, folder, options
        self._name, self._format = format_name, format_class(format_name)
        if holdings.irregular and not self._format.irregular:
            raise DataError(
                f"{holdings.irregular} chunks have a time for each sample, and {format_name} has one rate only",
                where=str(holdings.stream),
                fix="export it as csv or parquet, which keep every time",
            )
        self._format.check(holdings_specs(lake, holdings), options)
        self._open: list[_Open] = []
        self._files = 0
        self._number = 0
        self._clocks: dict[str, Any] = {}
        self._gaps: list[dict[str, Any]] = []

    def run(self, advance: Advance = no_progress) -> list[Exported]:
        """Write the files; an unfinished one never gets its name. Raises LakeError, DataError."""
        done, total = 0, self._holdings.bytes
        try:
            for piece in pieces(self._lake, self._holdings):
                self._take(piece)
                done += piece.samples_CN.nbytes
                advance(done, total)
            if not self._open:
                raise DataError("no sample lies in this range", where=str(self._holdings.stream))
            self._clocks, self._gaps = clock_summary(self._lake, self._holdings), told_gaps(self._lake, self._holdings)
            return [self._finish(file) for file in self._open]
        except OSError as e:
            raise LakeError(f"cannot write: {e.strerror or e}", where=str(self._folder)) from e
        finally:
            for file in self._open:
                with suppress(OSError):
                    file.close()
                file.temporary.unlink(missing_ok=True)

    def _take(self, piece: Piece) -> None:
        file, stretch = self._place(piece)
        file.writer.add(piece, stretch)
        _note(stretch, piece)
        file.n_samples += piece.n_samples
        file.digest.update(piece.sample_times_ns().astype("<i8").tobytes())
        little = piece.samples_CN.astype(piece.samples_CN.dtype.newbyteorder("<"), copy=False)
        file.digest.update(np.ascontiguousarray(little).tobytes())

    def _place(self, piece: Piece) -> tuple[_Open, Stretch]:
        """The file and stretch that the piece goes on in, or new ones."""
        file = next((f for f in self._open if (f.spec, f.dtype) == (piece.spec, piece.samples_CN.dtype)), None)
        if self._format.one_stretch and self._open:
            last = self._open[-1]
            file = last if file is not None and (last.spec, last.dtype) == (file.spec, file.dtype) else None
        if file is not None and file.stretches and self._number == file.stretches[-1].number:
            last_stretch = file.stretches[-1]
            if _follows(last_stretch, piece) and not self._full(file, piece, 0):
                return file, last_stretch
        filled = 0
        if file is not None and self._format.one_stretch:
            filled = self._to_fill(file, piece)
            if filled < 0:
                file = None
        file = file or self._new_file(piece)
        file.filled += max(filled, 0)
        self._number += 1
        irregular = piece.times_ns is not None
        stretch = Stretch(file.length, self._number, piece.start_ns, irregular, 0, piece.start_ns, [], {})
        file.stretches.append(stretch)
        return file, stretch

    def _to_fill(self, file: _Open, piece: Piece) -> int:
        """How many zeros lead from the file's end to the piece; -1 when a new file has to begin."""
        last = file.stretches[-1]
        hole = round((piece.start_ns - last.last_ns) * piece.spec.rate_hz / NS_PER_S) - 1
        return hole if self._options.fill and hole >= 0 and not self._full(file, piece, hole) else -1

    def _full(self, file: _Open, piece: Piece, more: int) -> bool:
        row = piece.samples_CN.dtype.itemsize * len(piece.spec.channels)
        return self._format.one_stretch and (file.length + more + piece.n_samples) * row > MAX_FILE_BYTES

    def _new_file(self, piece: Piece) -> _Open:
        self._files += 1
        stem = str(piece.spec.id).replace("/", ".")
        number = f".{self._files:04}" if self._format.one_stretch else f".{self._files}" if self._files > 1 else ""
        final = self._folder / f"{stem}{number}{self._format.suffix}"
        if final.exists() or description_path(final).exists():
            raise DataError("the file is there already", where=str(final), fix="give another --out, or delete it")
        temporary = temporary_beside(final)
        dtype = piece.samples_CN.dtype
        file = _Open(final, temporary, piece.spec, dtype, self._format(temporary, piece.spec, dtype, self._options))
        if self._format.one_stretch and self._open:
            self._open[-1].close()  # few descriptors, however many stretches there are
        self._open.append(file)
        return file

    def _finish(self, file: _Open) -> Exported:
        file.close()
        sha256, size = file_sha256(file.temporary)
        sync_path(file.temporary)
        file.temporary.rename(file.final)
        text = json.dumps(self._description(file, sha256, size), indent=1)
        beside = description_path(file.final)
        temporary = temporary_beside(beside)
        try:
            temporary.write_text(text + "\n", encoding="utf-8")
            sync_path(temporary)
            os.replace(temporary, beside)
        finally:
            temporary.unlink(missing_ok=True)
        sync_path(self._folder)
        return Exported(str(file.final), sha256, size, file.n_samples, len(file.stretches))

    def _description(self, file: _Open, sha256: str, size: int) -> dict[str, Any]:
        held = self._holdings
        return {
            "made_by": f"infomae-stream {__version__}",
            "format": self._name,
            "file": file.final.name,
            "sha256": sha256,
            "bytes": size,
            "content_sha256": file.digest.hexdigest(),
            "spec": file.spec.to_dict(),
            "dtype": file.dtype.name,
            "n_samples": file.n_samples,
            "filled_samples": file.filled,
            "asked": {"from_ns": held.asked[0], "to_ns": held.asked[1]},
            "tables": held.versions,
            "epochs": sorted(set(held.chunks["epoch"].to_pylist())),
            "left_out": {"quarantined_chunks": held.quarantined, "copies": held.copies},
            "clock": self._clocks,
            "gap_records": self._gaps,
            "stretches": [_stretch_json(stretch) for stretch in file.stretches],
        }


def description_path(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def file_sha256(path: Path) -> tuple[str, int]:
    """(sha256, bytes). Raises OSError."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as f:
        while part := f.read(_HASH_BYTES):
            digest.update(part)
            size += len(part)
    return digest.hexdigest(), size


def clock_summary(lake: Lake, held: Holdings) -> dict[str, Any]:
    """The clocks behind the samples: sources, the worst uncertainty and offset, the share of synchronised chunks."""
    selection = Selection(streams=[held.stream], from_ns=held.from_ns, to_ns=held.to_ns)
    where, values = selection.conditions()
    sql = f"""
        SELECT list(DISTINCT clock_source ORDER BY clock_source) AS sources,
            max(clock_uncertainty_ns) AS uncertainty_ns, avg(clock_synchronised::INT) AS synchronised,
            arg_max(clock_offset_ns, abs(clock_offset_ns)) AS offset_ns
        FROM chunks WHERE {" AND ".join(where)}
    """
    with open_tables(lake, {"chunks": held.versions["chunks"]}, {"chunks": selection.files()}) as db:
        (row,) = fetch(db, sql, values)
    return row


def _follows(stretch: Stretch, piece: Piece) -> bool:
    """Whether the piece begins where the stretch ends: half a sample of tolerance, or no silence if irregular."""
    if stretch.irregular != (piece.times_ns is not None):
        return False
    step_ns = NS_PER_S / piece.spec.rate_hz
    since_ns = piece.start_ns - stretch.last_ns
    if stretch.irregular:
        return 0 <= since_ns <= max(IRREGULAR_HOLE_NS, 1.5 * step_ns)
    return bool(abs(since_ns - step_ns) <= step_ns / 2)


def _note(stretch: Stretch, piece: Piece) -> None:
    """Add the piece to `pieces`: [start_ns, n_samples, distance_ns, count], equal neighbours in one entry."""
    stretch.n_samples += piece.n_samples
    stretch.last_ns = piece.last_ns
    if stretch.pieces:
        entry = stretch.pieces[-1]
        start_ns, n, distance_ns, count = entry
        since_ns = piece.start_ns - (start_ns + (count - 1) * distance_ns)
        if n == piece.n_samples and since_ns > 0 and (count == 1 or since_ns == distance_ns):
            entry[2:] = [since_ns, count + 1]
            return
    stretch.pieces.append([piece.start_ns, piece.n_samples, 0, 1])


def described_pieces(stretch: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """(start_ns, n_samples) of each piece of a described stretch."""
    for start_ns, n, distance_ns, count in stretch["pieces"]:
        yield from ((start_ns + i * distance_ns, n) for i in range(count))


def _stretch_json(stretch: Stretch) -> dict[str, Any]:
    return {
        "number": stretch.number,
        "index": stretch.index,
        "n_samples": stretch.n_samples,
        "start_ns": stretch.start_ns,
        "last_ns": stretch.last_ns,
        "irregular": stretch.irregular,
        "pieces": stretch.pieces,
        **stretch.extra,
    }
