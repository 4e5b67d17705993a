"""`lake import`: exported files back into a lake, and recordings of others.

A file with its description beside it gives the same samples, times and chunks as were exported. The outbox that the
chunks say they come from (their epoch) is a name made of their content, so that importing twice changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import NDArray

from collectors.chunker import Chunker
from collectors.recordings import Recording, Recordings, open_recordings
from collectors.sources import Reading
from infomae_stream.clock import NS_PER_S, SystemClock
from infomae_stream.errors import DataError, LakeError
from infomae_stream.types import Chunk, ClockQuality, StreamId, StreamSpec
from storage.export_commands import Format, time_option
from storage.exports import FORMATS, format_class
from storage.exports.job import described_pieces, description_path, file_sha256
from storage.exports.reading import chunks_of_others
from storage.lake import Lake
from storage.lake_place import ConfigOption, JsonOption, LakeOption, existing_lake
from storage.plain_text import json_line, progress_bar

COMMIT_BYTES: Final = 32_000_000
_SUFFIX_OF: Final = {"parquet": ".parquet", "csv": ".csv", "wav": ".wav", "mseed": ".mseed"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the samples shall belong, and what a foreign file does not say; "" where the file is to be believed."""

    site: str = ""
    node: str = ""
    stream: str = ""
    kind: str = ""
    start_ns: int | None = None
    part: str = ""

    def of(self, spec: StreamSpec) -> StreamSpec:
        own = spec.id
        return replace(spec, id=StreamId(self.site or own.site, self.node or own.node, self.stream or own.stream))


@dataclass(frozen=True, slots=True)
class Imported:
    """`new`: chunks that the lake did not have. `refused`: samples whose time ran backward, or that could
    not be read."""

    file: str
    stream: str
    epoch: str
    samples: int
    chunks: int
    new: int
    refused: int


def import_files(
    paths: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Files as lake export writes them, or others.")
    ],
    lake: LakeOption = None,
    config: ConfigOption = None,
    format: Annotated[Format | None, typer.Option("--format", help="By default told from the name.")] = None,
    site: Annotated[str, typer.Option(help="Instead of the file's own; needed for files of others.")] = "",
    node: Annotated[str, typer.Option(help="Instead of the file's own; needed for files of others.")] = "",
    stream: Annotated[str, typer.Option(help="Instead of the file's own; needed for files of others.")] = "",
    kind: Annotated[str, typer.Option(help="seismic, acoustic, imu, ...; where the file does not say it.")] = "",
    start: Annotated[
        str | None, typer.Option("--start", metavar="TIME", help="First sample, where it is not told.")
    ] = None,
    part: Annotated[str, typer.Option(help="Which stream of a file of others, where it has several.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Take recordings into a lake that is there already; the same file again changes nothing."""
    place = Place(site, node, stream, kind, time_option(start, "--start"), part)
    target = existing_lake(lake, config)
    files = [_open(path, place, format) for path in paths]
    _refuse_overlap(target, files)
    done = []
    for file in files:
        with progress_bar(f"import {file.path.name}", quiet=as_json) as advance:
            new = 0
            for batch, share in _batches(file):
                new += target.commit_batch(batch, (), (), SystemClock().now_ns()).written
                advance(share, 1.0)
        done.append(
            Imported(str(file.path), str(file.spec.id), file.epoch, file.samples, file.chunks, new, file.refused)
        )
    if as_json:
        typer.echo(json_line({"files": [asdict(one) for one in done]}))
        return
    for one in done:
        lost = f", {one.refused} samples refused: not readable, or their time runs backward" if one.refused else ""
        typer.echo(f"{one.file}: {one.stream}, {one.samples} samples in {one.chunks} chunks, {one.new} new{lost}")


class _File(ABC):
    """What is common: `chunks` and `samples` count while `read` goes on."""

    def __init__(self, path: Path, spec: StreamSpec, content: str, n_samples: int, dtype: np.dtype[Any]) -> None:
        self.path, self.spec, self.n_samples = path, spec, n_samples
        identity = json.dumps([spec.to_dict(), dtype.name, content], sort_keys=True)
        self.epoch = f"import-{hashlib.sha256(identity.encode()).hexdigest()[:24]}"
        self.samples = self.chunks = self.refused = 0

    @abstractmethod
    def span(self) -> tuple[int, int]:
        """[first, last) time of the samples."""

    @abstractmethod
    def read(self) -> Iterator[Chunk]:
        """All chunks, in order."""

    def chunk(
        self, start_ns: int, samples_CN: NDArray[Any], times_ns: NDArray[np.int64] | None, clock: ClockQuality
    ) -> Chunk:
        self.chunks += 1
        self.samples += samples_CN.shape[1]
        whole_CN = np.ascontiguousarray(samples_CN)
        return Chunk(self.spec, self.epoch, self.chunks, start_ns, whole_CN, clock, times_ns)


class _Described(_File):
    """A file of our own, with its description."""

    def __init__(self, path: Path, description: dict[str, Any], place: Place) -> None:
        try:
            spec = place.of(StreamSpec.from_dict(description["spec"]))
            self._stretches = description["stretches"]
            self._format = format_class(description["format"])
            dtype = np.dtype(description["dtype"])
            super().__init__(path, spec, description["content_sha256"], int(description["n_samples"]), dtype)
            clock = description["clock"]
            self._clock = ClockQuality(
                "+".join(clock["sources"])[:80], clock["offset_ns"], clock["uncertainty_ns"], clock["synchronised"] == 1
            )
            self._description = description
            first = min(s["start_ns"] for s in self._stretches)
            self._span = first, max(s["last_ns"] for s in self._stretches) + 1
            sha256 = description["sha256"]
        except (KeyError, TypeError, ValueError) as e:
            raise DataError(f"the description is incomplete: {e!r}", where=str(description_path(path))) from e
        if file_sha256(path)[0] != sha256:
            raise DataError(
                "the file is not the one that its description tells of (SHA-256)",
                where=str(path),
                fix="take both from the same export, or delete the .json to import it as a foreign file",
            )

    def span(self) -> tuple[int, int]:
        return self._span

    def read(self) -> Iterator[Chunk]:
        source = _Samples(self._format.read(self.path, self._description))
        for stretch in self._stretches:
            index = stretch["index"]
            for start_ns, n in described_pieces(stretch):
                samples_CN, times_N = source.take(index, n)
                index += n
                yield self.chunk(start_ns, samples_CN, times_N if stretch["irregular"] else None, self._clock)


class _Foreign(_File):
    """A recording of others, cut into chunks as a node cuts them."""

    def __init__(self, path: Path, place: Place) -> None:
        self._recordings: Recordings = open_recordings(path, part=place.part)
        d = self._recordings.description
        missing = [name for name in ("site", "node", "stream") if not getattr(place, name)]
        if missing:
            raise DataError(
                f"no description {description_path(path).name} beside it",
                where=str(path),
                fix=f"say whose it is: --{' --'.join(missing)}",
            )
        if not d.has_time and place.start_ns is None:
            raise DataError("the file holds no time", where=str(path), fix="give --start")
        self._start_ns = place.start_ns
        where = StreamId(place.site, place.node, place.stream)
        spec = StreamSpec(
            id=where,
            kind=place.kind or d.kind,
            rate_hz=d.rate_hz,
            channels=d.channels,
            units=d.units,
            sensitivity=d.sensitivity,
            modality="" if place.kind else d.modality,
            seed_id=d.seed_id if len(d.channels) == 1 else "",
        )
        loaded = [self._load(name) for name in self._recordings.names]
        n_samples = sum(r.samples_CN.shape[1] for r in loaded)
        dtype = loaded[0].samples_CN.dtype
        super().__init__(path, spec, f"{file_sha256(path)[0]} {place.start_ns}", n_samples, dtype)
        self._bounds = [(self._first(r), self._last(r)) for r in loaded]

    def span(self) -> tuple[int, int]:
        return min(a for a, _ in self._bounds), max(b for _, b in self._bounds) + 1

    def read(self) -> Iterator[Chunk]:
        clock = ClockQuality("import")
        for name in self._recordings.names:
            recording, chunker = self._load(name), Chunker(self.spec)
            times_ns, first_ns = recording.times_ns, self._first(recording)
            reading = Reading(self.spec.id.stream, first_ns, recording.samples_CN, times_ns, name, 0, ends=True)
            for piece in chunker.push(reading):
                yield self.chunk(piece.start_ns, piece.samples_CN, piece.times_ns, clock)
            self.refused += chunker.refused_backward + recording.refused.count
        self._recordings.close()

    def _load(self, name: str) -> Recording:
        return self._recordings.load(name)

    def _first(self, r: Recording) -> int:
        first = self._start_ns if r.start_ns is None else r.start_ns
        assert first is not None  # see __init__
        return first

    def _last(self, r: Recording) -> int:
        if r.times_ns is not None:
            return int(r.times_ns.max())
        return self._first(r) + int((r.samples_CN.shape[1] - 1) * NS_PER_S / self.spec.rate_hz)


class _Samples:
    """Samples by index out of parts that come in order."""

    def __init__(self, parts: Iterator[tuple[int, NDArray[Any], NDArray[np.int64] | None]]) -> None:
        self._parts = parts
        self._kept: list[tuple[int, NDArray[Any], NDArray[np.int64] | None]] = []

    def take(self, index: int, n: int) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Samples index .. index + n. Raises DataError when the file ends before. `index` never steps back."""
        self._kept = [part for part in self._kept if part[0] + part[1].shape[1] > index]
        while not self._kept or self._kept[-1][0] + self._kept[-1][1].shape[1] < index + n:
            part = next(self._parts, None)
            if part is None:
                raise DataError(f"the file ends before sample {index + n}", fix="export it again")
            if part[0] + part[1].shape[1] > index:
                self._kept.append(part)
        cuts = [slice(max(index - first, 0), index + n - first) for first, _, _ in self._kept]
        samples_CN = np.concatenate([s[:, cut] for (_, s, _), cut in zip(self._kept, cuts, strict=True)], axis=1)
        times = [t[cut] for (_, _, t), cut in zip(self._kept, cuts, strict=True) if t is not None]
        return samples_CN, np.concatenate(times) if times else None


def _open(path: Path, place: Place, wanted: Format | None) -> _File:
    if not path.is_file():
        raise DataError("there is no such file", where=str(path))
    beside = description_path(path)
    if not beside.exists():
        if wanted is not None and path.suffix.lower() != _SUFFIX_OF[wanted.value]:
            raise DataError(f"the name does not end in {_SUFFIX_OF[wanted.value]}", where=str(path), fix="rename it")
        return _Foreign(path, place)
    try:
        description = json.loads(beside.read_bytes())
    except (OSError, ValueError) as e:
        raise DataError(f"the description cannot be read: {e}", where=str(beside)) from e
    found = description.get("format") if isinstance(description, dict) else None
    if found not in FORMATS or (wanted is not None and found != wanted.value):
        raise DataError(f"the description says format {found!r}", where=str(beside), fix="leave --format out")
    return _Described(path, description, place)


def _refuse_overlap(lake: Lake, files: list[_File]) -> None:
    """The same samples under a second identity would be learned from twice."""
    epochs = {file.epoch for file in files}
    for file in files:
        first, last = file.span()
        count = chunks_of_others(lake, file.spec.id, first, last, epochs)
        if count:
            raise LakeError(
                f"the lake already holds {count} chunks of {file.spec.id} in this time, from elsewhere",
                where=str(file.path),
                fix="import it under another name: --site, --node or --stream",
            )


def _batches(file: _File) -> Iterator[tuple[list[Chunk], float]]:
    """Chunks of about COMMIT_BYTES, and the share of the file that has been read with them."""
    batch: list[Chunk] = []
    size = 0
    for chunk in file.read():
        batch.append(chunk)
        size += chunk.samples_CN.nbytes
        if size >= COMMIT_BYTES:
            yield batch, file.samples / file.n_samples
            batch, size = [], 0
    if batch:
        yield batch, 1.0
