"""CSV files of anyone, by a declared map of columns: what a data logger or a spreadsheet leaves behind."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from collectors.recordings import Description, Recording
from collectors.sensing.archive import Archive
from collectors.sensing.playback import Playback, PlaybackOptions
from collectors.sensing.text_rows import read_rows
from collectors.sensing.time_text import TimeUnit, ZoneName, time_reader
from collectors.sources import SourceContext
from infomae_stream.config import Settings
from infomae_stream.errors import SourceError


class TimeColumn(Settings):
    """unit: s, ms, us or ns since 1970 (or, when relative, since anywhere), iso, or a strptime pattern.

    time_zone: of times that name none themselves.
    """

    column: str | int
    unit: TimeUnit = "s"
    time_zone: ZoneName = "UTC"
    relative: bool = False


class ValueColumn(Settings):
    """sensitivity: what the column shows of one unit (1000 for a column in mV of a stream in V)."""

    column: str | int
    channel: str
    unit: str
    sensitivity: float = 1.0


class CsvOptions(PlaybackOptions):
    """A column is a name in the header, or its number from 0."""

    stream: str = "csv"
    kind: str
    rate_hz: float = Field(gt=0)
    time: TimeColumn | None = None  # none: the rows follow each other at rate_hz from `start` on
    columns: Annotated[list[ValueColumn], Field(min_length=1)]
    delimiter: str = Field(",", min_length=1, max_length=1)
    decimal: str = Field(".", pattern="^[.,]$")
    skip_lines: int = Field(0, ge=0)  # before the header, or before the rows where there is none
    header: bool = True

    @model_validator(mode="after")
    def _numbers_without_header(self) -> Self:
        columns = [c.column for c in self.columns] + ([self.time.column] if self.time else [])
        if not self.header and any(isinstance(c, str) for c in columns):
            raise ValueError("without a header a column is a number, the first is 0")
        return self


class CsvSource(Playback):
    """The file is one recording, named after it. Rows that cannot be read are refused with their line's number."""

    Options: ClassVar[type[Settings]] = CsvOptions

    def __init__(self, options: CsvOptions, context: SourceContext) -> None:
        path = context.base_dir / options.path
        super().__init__(MappedCsv(path, options), options, context, str(path))


class MappedCsv:
    """The file as recordings, read by the map in `options`. Raises SourceError when a column is not there."""

    def __init__(self, path: Path, options: CsvOptions) -> None:
        if not path.is_file():
            raise SourceError("there is no such file", where=str(path))
        self._archive, self._options = Archive(path), options
        o = options
        self._columns = self._find([c.column for c in o.columns])
        (self._time_column,) = self._find([o.time.column]) if o.time else (-1,)
        self._read_time = time_reader(o.time.unit, o.time.time_zone) if o.time else None
        self._rows = 0
        self.names: tuple[str, ...] = (path.stem,)
        self.description = Description(
            channels=tuple(c.channel for c in o.columns),
            units=tuple(c.unit for c in o.columns),
            sensitivity=tuple(c.sensitivity for c in o.columns),
            rate_hz=o.rate_hz,
            kind=o.kind,
            has_time=o.time is not None and not o.time.relative,
        )

    def load(self, name: str) -> Recording:
        if name not in self.names:
            raise KeyError(name)
        o = self._options
        skipped = o.skip_lines + o.header
        with self._archive.lines(self._archive.path.name) as lines:
            rows = read_rows(
                islice(lines, skipped, None),
                self._parse,
                where=str(self._archive.path),
                delimiter=o.delimiter,
                first_line=skipped + 1,
                channels=len(o.columns),
            )
        if o.time is None:
            return Recording(rows.samples_CN, None, None, rows.refused)
        start_ns = int(rows.times_ns[0]) if self.description.has_time else None
        return Recording(rows.samples_CN, rows.times_ns, start_ns, rows.refused)

    def close(self) -> None:
        self._archive.close()

    def _find(self, columns: Sequence[str | int]) -> list[int]:
        o = self._options
        header: list[str] = []
        if o.header:
            with self._archive.lines(self._archive.path.name) as lines:
                header = next(csv.reader(islice(lines, o.skip_lines, None), delimiter=o.delimiter), [])
            header = [name.strip() for name in header]
        missing = [c for c in columns if isinstance(c, str) and c not in header]
        if missing:
            fix = f"there are: {', '.join(header)[:300]}"
            raise SourceError(f"there is no column {missing[0]!r}", where=str(self._archive.path), fix=fix)
        return [header.index(c) if isinstance(c, str) else c for c in columns]

    def _parse(self, row: Sequence[str]) -> tuple[int, list[float]]:
        texts = [row[i] for i in self._columns]
        if self._options.decimal == ",":
            texts = [text.replace(",", ".") for text in texts]
        values = [float(text) for text in texts]
        return self._read_time(row[self._time_column].strip()) if self._read_time else 0, values
