"""Recordings played back: the times stay those of the recording, only the waiting between them is scaled.

N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, Field

from collectors.recordings import Recording, open_recordings
from collectors.sources import Reading, SourceContext
from infomae_stream.clock import NS_PER_S
from infomae_stream.config import Settings
from infomae_stream.errors import SourceClosed, SourceError
from infomae_stream.node_config import Id
from infomae_stream.types import StreamId, StreamSpec

BLOCK_S: Final = 10.0  # at most this much of a recording in one reading


class ReplayOptions(Settings):
    path: str
    stream: Id = "imu"
    recordings: list[str] = []  # names inside the file; empty: all of them
    speed: float = Field(1.0, ge=0)  # times real time; 0: as fast as the outbox takes it
    pause_s: float = Field(0.0, ge=0)  # between recordings, on the wall clock
    prompt_recordings: int = Field(0, ge=0)  # the first ones follow each other without the pause
    start_after_s: float = Field(0.0, ge=0)
    start: AwareDatetime | None = None  # time of the first sample, for files that do not hold it (WAV)
    kind: str = ""  # instead of the file's own
    modality: str = ""
    channels: list[str] = []
    units: list[str] = []
    sensitivity: list[float] = []


class ReplaySource:
    Options: ClassVar[type[Settings]] = ReplayOptions

    def __init__(self, options: ReplayOptions, context: SourceContext) -> None:
        self._options = options
        self._clock = context.clock
        self._file = open_recordings(context.base_dir / options.path)
        self._where = str(context.base_dir / options.path)
        unknown = [name for name in options.recordings if name not in self._file.names]
        if unknown:
            raise SourceError(
                f"no recording {unknown[0]!r}", where=self._where, fix=f"there are: {', '.join(self._file.names)}"
            )
        self._names = tuple(options.recordings) or self._file.names
        self._spec = self._describe(context)
        self._due_ns = self._clock.monotonic_ns() + round(options.start_after_s * NS_PER_S)
        self._index = 0
        self._offset = 0
        self._recording: Recording | None = None
        self._resume(context)

    def specs(self) -> Sequence[StreamSpec]:
        return (self._spec,)

    def poll(self, timeout_s: float) -> Sequence[Reading]:
        """The samples that are due by now. Waits on the clock only when nothing is due yet."""
        if self._index >= len(self._names):
            raise SourceClosed("every recording has been played", where=self._where)
        end = self._due_offset()
        if end <= self._offset and timeout_s > 0:
            self._clock.sleep(timeout_s)
            end = self._due_offset()
        if end <= self._offset:
            return ()
        assert self._recording is not None
        reading = self._reading(self._recording, end)
        self._offset = end
        if reading.ends:
            self._next_recording()
        return (reading,)

    def close(self) -> None:
        self._file.close()

    def _describe(self, context: SourceContext) -> StreamSpec:
        o, d = self._options, self._file.description
        if not (o.kind or d.kind) or not d.rate_hz:
            raise SourceError("the file does not say what it holds", where=self._where, fix="set the option kind")
        if not d.has_time and o.start is None:
            raise SourceError("the file holds no time", where=self._where, fix="set the option start")
        return StreamSpec(
            id=StreamId(context.site, context.node, o.stream),
            kind=o.kind or d.kind,
            rate_hz=d.rate_hz,
            channels=tuple(o.channels) or d.channels,
            units=tuple(o.units) or d.units,
            sensitivity=tuple(o.sensitivity) or d.sensitivity,
            modality=o.modality or d.modality,
        )

    def _resume(self, context: SourceContext) -> None:
        position = context.position(self._options.stream)
        if position is None or position.cursor not in self._names:
            return
        self._index, self._offset = self._names.index(position.cursor), position.offset
        self._due_ns = self._clock.monotonic_ns()
        if self._offset >= self._load().samples_CN.shape[1]:
            self._next_recording()

    def _load(self) -> Recording:
        if self._recording is None:
            self._recording = self._file.load(self._names[self._index])
            times_N = self._recording.times_ns
            if times_N is None:
                n = self._recording.samples_CN.shape[1]
                times_N = np.round(np.arange(n) * (NS_PER_S / self._spec.rate_hz)).astype(np.int64)
            # A time that runs backward is due with the sample before it.
            self._elapsed_N: NDArray[np.int64] = np.maximum.accumulate(times_N - times_N[0])
            first = min(self._offset, len(times_N) - 1)
            self._from_ns = int(self._elapsed_N[first])  # after a restart the rest of a recording begins at once
        return self._recording

    def _due_offset(self) -> int:
        now_ns = self._clock.monotonic_ns()
        if now_ns < self._due_ns:
            return self._offset
        self._load()
        most = self._offset + max(1, round(BLOCK_S * self._spec.rate_hz))
        if self._options.speed:
            played_ns = self._from_ns + (now_ns - self._due_ns) * self._options.speed
            due = int(np.searchsorted(self._elapsed_N, played_ns, side="right"))
        else:
            due = len(self._elapsed_N)
        return min(due, most, len(self._elapsed_N))

    def _reading(self, recording: Recording, end: int) -> Reading:
        first = self._offset
        samples_CN = recording.samples_CN[:, first:end]
        cursor, ends = self._names[self._index], end == len(self._elapsed_N)
        if recording.times_ns is not None:
            times_ns = recording.times_ns[first:end]
            return Reading(self._spec.id.stream, int(times_ns[0]), samples_CN, times_ns, cursor, first, ends=ends)
        start_ns = self._start_ns(recording) + int(self._elapsed_N[first])
        return Reading(self._spec.id.stream, start_ns, samples_CN, None, cursor, first, ends=ends)

    def _start_ns(self, recording: Recording) -> int:
        if recording.start_ns is not None:
            return recording.start_ns
        assert self._options.start is not None  # see _describe
        return _unix_ns(self._options.start)

    def _next_recording(self) -> None:
        if self._options.speed:
            played_ns = int(self._elapsed_N[-1]) - self._from_ns
            self._due_ns += round(played_ns / self._options.speed)
        self._recording = None
        self._index += 1
        self._offset = 0
        if self._index >= self._options.prompt_recordings:
            self._due_ns = max(self._due_ns, self._clock.monotonic_ns()) + round(self._options.pause_s * NS_PER_S)


def _unix_ns(when: datetime) -> int:
    return round(when.timestamp() * 1_000_000) * 1_000
