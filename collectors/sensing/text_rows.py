"""Rows of text into samples: what cannot be read is refused with its line number, and counted.

C channels, N samples.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from infomae_stream.errors import SourceError

MAX_ROWS: Final = 50_000_000
# A row in and what it says: time in nanoseconds and one value a channel, or None where it is not about this stream.
RowParser = Callable[[Sequence[str]], tuple[int, Sequence[float]] | None]


@dataclass(frozen=True, slots=True)
class Refused:
    """Rows or samples that were left out. first: where the first of them stands and what is wrong there."""

    count: int = 0
    first: str = ""


NONE_REFUSED: Final = Refused()


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """samples_CN: float32 (float64 on request). times_ns: shape (N,), in the file's order."""

    samples_CN: NDArray[np.float32] | NDArray[np.float64]
    times_ns: NDArray[np.int64]
    refused: Refused


def read_rows(
    lines: Iterable[str],
    parse: RowParser,
    *,
    where: str,
    delimiter: str = ",",
    first_line: int = 1,
    channels: int,
    double: bool = False,
) -> Rows:
    """Read all rows. `parse` refuses one by raising ValueError, IndexError or OverflowError.

    Raises SourceError when there are no rows, or more bad ones than good ones: then it is another kind of file.
    """
    times, values = array("q"), array("d" if double else "f")
    refused, first = 0, ""
    number = first_line - 1
    for row in _split(lines, delimiter):
        number += 1
        if not row or (len(row) == 1 and not row[0].strip()):
            continue
        if len(times) >= MAX_ROWS:
            raise SourceError(f"more than {MAX_ROWS} rows", where=where, fix="split the file")
        try:
            found = parse(row)
            if found is None:
                continue
            time_ns, sample = found
            if len(sample) != channels or not all(map(math.isfinite, sample)):
                raise ValueError("a value is missing or not finite")
            times.append(time_ns)
        except (ValueError, IndexError, OverflowError) as e:
            refused += 1
            first = first or f"line {number}: {str(e)[:80]}"
            continue
        values.extend(sample)
    if refused > len(times):
        raise SourceError(f"{refused} of {refused + len(times)} rows cannot be read; {first}", where=where)
    if not times:
        raise SourceError("there are no rows", where=where)
    samples_NC = np.frombuffer(values, dtype=np.float64 if double else np.float32).reshape(-1, channels)
    times_N = np.frombuffer(times, dtype=np.int64)
    return Rows(np.ascontiguousarray(samples_NC.T), times_N.copy(), Refused(refused, first))


def _split(lines: Iterable[str], delimiter: str) -> Iterable[list[str]]:
    """csv's reader, but a line that it cannot take becomes an unreadable row and not the end."""
    for line in lines:
        try:
            yield next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error:
            yield [line, ""]
