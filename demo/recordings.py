"""The shipped recordings and the labels that came with them: one label a sample, made into intervals."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

FOLDER: Final = Path(__file__).parent / "recordings" / "geotec_phone_watch"
DEVICES: Final = ("phone", "watch")
CLASSES: Final = ("seated", "sitting_down", "standing_up", "turning", "walking")
SAMPLE_STEP_NS: Final = 10_000_000
NS_PER_MS: Final = 1_000_000


@dataclass(frozen=True)
class Interval:
    """[start_ns, end_ns) of one label, in the time of the device that recorded it."""

    start_ns: int
    end_ns: int
    label: str


@dataclass(frozen=True)
class Recording:
    """One execution by one person on one device."""

    name: str
    start_ns: int
    end_ns: int
    samples: int
    intervals: tuple[Interval, ...]

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9


def file_of(person: str, device: str) -> Path:
    return FOLDER / f"{person}_{device}.parquet"


def read_recordings(path: Path) -> list[Recording]:
    """The recordings of one person's device, in the order of the file."""
    table = pq.read_table(path, columns=["recording", "time_ms", "label"])
    times_ns = table["time_ms"].to_numpy() * NS_PER_MS
    names, labels = (
        np.asarray(table[column].cast(pa.string()).to_numpy(), dtype=str) for column in ("recording", "label")
    )
    labels = np.char.lower(labels)
    found = []
    for name in dict.fromkeys(names.tolist()):
        mine = names == name
        intervals = label_intervals(times_ns[mine], labels[mine])
        found.append(Recording(name, intervals[0].start_ns, intervals[-1].end_ns, int(mine.sum()), intervals))
    return found


def label_intervals(times_ns: NDArray[np.int64], labels: NDArray[np.str_]) -> tuple[Interval, ...]:
    """One label a sample as intervals without overlap; a time that runs backward counts as the latest one before it."""
    times_ns = np.maximum.accumulate(times_ns)
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
    ends_ns = np.r_[times_ns[starts[1:]], times_ns[-1] + SAMPLE_STEP_NS]
    return tuple(
        Interval(int(times_ns[start]), int(end_ns), str(labels[start]))
        for start, end_ns in zip(starts, ends_ns, strict=True)
        if end_ns > times_ns[start]
    )


class TrueLabels:
    """What a device's wearer really did at a time, as the recordings say."""

    def __init__(self, intervals: Sequence[Interval]) -> None:
        self._intervals = sorted(intervals, key=lambda i: i.start_ns)
        self._starts = [i.start_ns for i in self._intervals]

    def of(self, start_ns: int, end_ns: int) -> str:
        """The label that most of [start_ns, end_ns) has; "" when less than half of it has that one."""
        held: dict[str, int] = {}
        first = max(bisect.bisect_right(self._starts, start_ns) - 1, 0)
        for interval in self._intervals[first:]:
            if interval.start_ns >= end_ns:
                break
            overlap_ns = min(end_ns, interval.end_ns) - max(start_ns, interval.start_ns)
            if overlap_ns > 0:
                held[interval.label] = held.get(interval.label, 0) + overlap_ns
        label = max(held, key=lambda name: held[name], default="")
        return label if label and 2 * held[label] >= end_ns - start_ns else ""
