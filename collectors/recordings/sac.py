"""SAC files (version 6, evenly spaced, either byte order), alone or in a zip of one station's or of several.

The header is 70 floats, 40 integers and 192 characters; float32 samples follow.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np

from collectors.recordings import Description, OtherMake, Recording, only_part
from collectors.sensing.archive import Archive, stem
from infomae_stream.clock import NS_PER_S
from infomae_stream.errors import SourceError

HEADER_BYTES: Final = 632
_DELTA, _B = 0, 5  # among the floats: seconds a sample; begin, seconds after the reference time
_YEAR, _NVHDR, _NPTS, _IFTYPE, _LEVEN = 0, 6, 9, 15, 35  # among the integers
_ITIME: Final = 1
UNDEFINED: Final = "-12345"


class SacRecordings:
    """A recording is a file, named as it. All files must be of one channel and rate; values stay float32 counts."""

    def __init__(self, path: Path, part: str = "") -> None:
        self._archive = Archive(path)
        self._members = {stem(name): name for name in self._archive.names if name.lower().endswith(".sac")}
        if not self._members:
            raise OtherMake("no file ends in .sac", where=str(path))
        only_part(part, path)
        self.names: tuple[str, ...] = tuple(self._members)
        first = _Header(self._archive, self._members[self.names[0]])
        self.description = Description(
            channels=(first.channel,),
            units=("{count}",),
            sensitivity=(1.0,),
            rate_hz=first.rate_hz,
            kind="seismic",
            seed_id=first.seed_id if len(self.names) == 1 else "",
        )

    def load(self, name: str) -> Recording:
        member = self._members[name]
        where = self._archive.where(member)
        header = _Header(self._archive, member)
        if header.rate_hz != self.description.rate_hz or (header.channel,) != self.description.channels:
            said = f"{header.channel} at {header.rate_hz:g} Hz is not what the first file holds"
            raise SourceError(said, where=where, fix="choose recordings of one kind (option recordings)")
        n = header.n_samples
        data = header.data[HEADER_BYTES : HEADER_BYTES + 4 * n]
        if n <= 0 or len(data) < 4 * n:
            raise SourceError(f"{len(data)} bytes of samples, the header says {n} samples", where=where)
        samples_N = np.frombuffer(data, dtype=f"{header.order}f4").astype(np.float32)
        if not np.isfinite(samples_N).all():
            raise SourceError("a sample is not finite", where=where)
        return Recording(samples_N[None, :], None, header.start_ns)

    def close(self) -> None:
        self._archive.close()


class _Header:
    def __init__(self, archive: Archive, member: str) -> None:
        self.data = archive.read(member)
        where = archive.where(member)
        if len(self.data) < HEADER_BYTES:
            raise SourceError(f"{len(self.data)} bytes are too few for SAC", where=where)
        for self.order in "<>":
            floats = struct.unpack_from(f"{self.order}70f", self.data)
            integers = struct.unpack_from(f"{self.order}40i", self.data, 280)
            if integers[_NVHDR] == 6:
                break
        else:
            raise SourceError("it is not SAC of version 6", where=where)
        if integers[_IFTYPE] != _ITIME or not integers[_LEVEN] or not floats[_DELTA] > 0:
            raise SourceError("it is no evenly spaced time series", where=where)
        self.n_samples = int(integers[_NPTS])
        # float32 says 0.004 only nearly; nobody declares a rate that is finer than this.
        self.rate_hz = float(f"{1 / floats[_DELTA]:.5g}")
        self.start_ns = self._start_ns(integers[_YEAR : _YEAR + 6], floats[_B], where)
        words = [self.data[440 + 8 * i : 448 + 8 * i].decode("ascii", "replace").strip("\0 ") for i in range(24)]
        station, location, channel, network = ("" if words[i] == UNDEFINED else words[i] for i in (0, 3, 20, 21))
        self.channel = channel or "ch0"
        self.seed_id = f"{network}.{station}.{location}.{channel}" if station and channel else ""

    @staticmethod
    def _start_ns(reference: tuple[int, ...], begin_s: float, where: str) -> int:
        year, day, hour, minute, second, ms = reference
        try:
            when = datetime(year, 1, 1, hour, minute, second, ms * 1000, UTC) + timedelta(days=day - 1)
            return int(when.timestamp()) * NS_PER_S + ms * 1_000_000 + round(begin_s * NS_PER_S)
        except (ValueError, OverflowError) as e:
            raise SourceError(f"its reference time cannot be read: {e}", where=where) from e
