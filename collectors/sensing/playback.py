"""Recordings played back: the times stay those of the recording, only the waiting between them is scaled.

N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, Field

from collectors.recordings import Recording, Recordings
from collectors.sources import Reading, SourceContext
from infomae_stream.clock import NS_PER_S
from infomae_stream.config import Settings
from infomae_stream.errors import SourceClosed, SourceError
from infomae_stream.node_config import Id
from infomae_stream.types import StreamId, StreamSpec

BLOCK_S: Final = 10.0  # at most this much of a recording in one reading


class PlaybackOptions(Settings):
    path: str
    stream: Id = "imu"
    recordings: list[str] = []  # names inside the file, or patterns of them (acc_*); empty: all of them
    speed: float = Field(1.0, ge=0)  # times real time; 0: as fast as the outbox takes it
    pause_s: float = Field(0.0, ge=0)  # between recordings, on the wall clock
    prompt_recordings: int = Field(0, ge=0)  # the first ones follow each other without the pause
    start_after_s: float = Field(0.0, ge=0)
    start: AwareDatetime | None = None  # time of the first sample, for files that do not hold it (WAV)
    start_pattern: str = ""  # or how a recording's name tells it, in UTC: "%Y%m%d_%H%M%S"
    rate_hz: float = Field(0.0, ge=0)  # instead of the file's own, as are all below
    kind: str = ""
    modality: str = ""
    channels: list[str] = []
    units: list[str] = []
    sensitivity: list[float] = []
    seed_id: str = ""


class Playback:
    """Plays one stream out of `file`; `where` names the file in errors."""

    def __init__(self, file: Recordings, options: PlaybackOptions, context: SourceContext, where: str) -> None:
        self._file, self._options, self._where = file, options, where
        self._clock, self._refuse = context.clock, context.refuse
        self._names = self._choose()
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

    def _choose(self) -> tuple[str, ...]:
        """The recordings to play, in the order of the patterns and, within one, of the file."""
        chosen: dict[str, None] = {}
        for pattern in self._options.recordings:
            found = [name for name in self._file.names if name == pattern or fnmatchcase(name, pattern)]
            if not found:
                there = ", ".join(self._file.names[:50])
                raise SourceError(f"no recording {pattern!r}", where=self._where, fix=f"there are: {there}")
            chosen |= dict.fromkeys(found)
        return tuple(chosen) or self._file.names

    def _describe(self, context: SourceContext) -> StreamSpec:
        o, d = self._options, self._file.description
        if not (o.kind or d.kind):
            raise SourceError("the file does not say what it holds", where=self._where, fix="set the option kind")
        if not (o.rate_hz or d.rate_hz):
            raise SourceError("the file does not say its rate", where=self._where, fix="set the option rate_hz")
        if not d.has_time and o.start is None and not o.start_pattern:
            fix = "set the option start, or start_pattern"
            raise SourceError("the file holds no time", where=self._where, fix=fix)
        return StreamSpec(
            id=StreamId(context.site, context.node, o.stream),
            kind=o.kind or d.kind,
            rate_hz=o.rate_hz or d.rate_hz,
            channels=tuple(o.channels) or d.channels,
            units=tuple(o.units) or d.units,
            sensitivity=tuple(o.sensitivity) or d.sensitivity,
            modality=o.modality or d.modality,
            seed_id=o.seed_id or d.seed_id,
        )

    def _resume(self, context: SourceContext) -> None:
        position = context.position(self._options.stream)
        if position is None or position.cursor not in self._names:
            return
        self._index, self._offset = self._names.index(position.cursor), position.offset
        self._due_ns = self._clock.monotonic_ns()
        if self._ready() and self._offset >= len(self._elapsed_N):
            self._next_recording()

    def _ready(self) -> bool:
        """The recording at `_index` is in memory; one of several that is broken is refused and passed over."""
        while self._recording is None and self._index < len(self._names):
            name = self._names[self._index]
            try:
                self._begin(name, self._dated(name, self._file.load(name)))
            except SourceError as e:
                if len(self._names) == 1:
                    raise
                self._refuse(self._spec.id.stream, "recording", 1, str(e))
                self._index, self._offset = self._index + 1, 0
        return self._recording is not None

    def _begin(self, name: str, recording: Recording) -> None:
        self._recording = recording
        if recording.refused.count and not self._offset:
            self._refuse(self._spec.id.stream, "row", recording.refused.count, f"{name}: {recording.refused.first}")
        times_N = recording.times_ns
        if times_N is None:
            n = recording.samples_CN.shape[1]
            times_N = np.round(np.arange(n) * (NS_PER_S / self._spec.rate_hz)).astype(np.int64)
        # A time that runs backward is due with the sample before it.
        self._elapsed_N: NDArray[np.int64] = np.maximum.accumulate(times_N - times_N[0])
        first = min(self._offset, len(times_N) - 1)
        self._from_ns = int(self._elapsed_N[first])  # after a restart the rest of a recording begins at once

    def _dated(self, name: str, recording: Recording) -> Recording:
        """The recording with absolute times, from the options where the file has none."""
        if self._file.description.has_time:
            return recording
        if self._options.start_pattern:
            start_ns = self._start_in(name)
        else:
            assert self._options.start is not None  # see _describe
            start_ns = _unix_ns(self._options.start)
        times_N = recording.times_ns
        if times_N is not None:
            times_N = times_N - times_N[0] + start_ns
        return replace(recording, start_ns=start_ns, times_ns=times_N)

    def _start_in(self, name: str) -> int:
        pattern = self._options.start_pattern
        try:
            return _unix_ns(datetime.strptime(name, pattern).replace(tzinfo=UTC))
        except ValueError as e:
            said = f"the name {name!r} does not tell a time as start_pattern {pattern!r} says"
            raise SourceError(said, where=self._where) from e

    def _due_offset(self) -> int:
        now_ns = self._clock.monotonic_ns()
        if now_ns < self._due_ns or not self._ready():
            return self._offset
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
        assert recording.start_ns is not None  # see _dated
        start_ns = recording.start_ns + int(self._elapsed_N[first])
        return Reading(self._spec.id.stream, start_ns, samples_CN, None, cursor, first, ends=ends)

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
