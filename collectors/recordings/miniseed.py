"""miniSEED files, read with obspy (extra `seismo`): records in any order, overlaps and gaps.

N samples.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from collectors.recordings import Description, Recording, part_of
from collectors.sensing.archive import Archive
from collectors.sensing.miniseed_bytes import read_miniseed
from collectors.sensing.text_rows import Refused
from infomae_stream.clock import NS_PER_S
from infomae_stream.errors import SourceError

MOST_ERROR_SAMPLES: Final = 0.5  # a segment that begins this near to the last one's end continues it


class MiniseedRecordings:
    """part: the SEED id, where the file has several channels. A recording is a run without gaps, named by its start.

    Of samples that two records hold, the earlier record's stay and the others are refused.
    """

    def __init__(self, path: Path, part: str = "") -> None:
        stream = read_miniseed(Archive(path).read(path.name), str(path))
        ids = sorted({trace.id for trace in stream})
        if part or len(ids) != 1:
            part_of(part, tuple(ids), path)
        else:
            (part,) = ids
        traces = [t for t in stream if t.id == part and len(t.data)]
        rates = {float(t.stats.sampling_rate) for t in traces}
        types = {t.data.dtype.name for t in traces}
        if len(rates) != 1 or not types <= {"int16", "int32", "float32", "float64"}:
            said = f"{part} has {len(rates)} rates and samples of {', '.join(sorted(types))}"
            raise SourceError(said, where=str(path), fix="one rate, and numbers")
        (self._rate_hz,) = rates
        self._recordings = self._join(sorted(traces, key=lambda t: int(t.stats.starttime.ns)))
        self.names = tuple(self._recordings)
        self.description = Description(
            channels=(part.rsplit(".", 1)[-1],),
            units=("{count}",),
            sensitivity=(1.0,),
            rate_hz=self._rate_hz,
            kind="seismic",
            seed_id=part,
        )

    def load(self, name: str) -> Recording:
        return self._recordings[name]

    def close(self) -> None:
        self._recordings.clear()

    def _join(self, traces: list[Any]) -> dict[str, Recording]:
        """Segments in the order of time, overlaps cut off, those that touch put together."""
        step_ns = NS_PER_S / self._rate_hz
        runs: list[tuple[int, list[NDArray[Any]], int]] = []  # start, parts, samples refused
        next_ns: int | None = None
        for trace in traces:
            start_ns, data_N = int(trace.stats.starttime.ns), np.asarray(trace.data)
            doubled = 0
            if next_ns is not None:
                doubled = min(max(round((next_ns - start_ns) / step_ns), 0), len(data_N))
                start_ns, data_N = start_ns + round(doubled * step_ns), data_N[doubled:]
            if next_ns is not None and abs(start_ns - next_ns) <= MOST_ERROR_SAMPLES * step_ns:
                first_ns, parts, refused = runs[-1]
                runs[-1] = (first_ns, [*parts, data_N], refused + doubled)
            elif len(data_N):
                runs.append((start_ns, [data_N], doubled))
            else:
                first_ns, parts, refused = runs[-1]
                runs[-1] = (first_ns, parts, refused + doubled)
            next_ns = max(next_ns or 0, start_ns + round(len(data_N) * step_ns))
        return {_name(start_ns): _recording(start_ns, parts, refused) for start_ns, parts, refused in runs}


def _recording(start_ns: int, parts: list[NDArray[Any]], refused: int) -> Recording:
    samples_N = np.concatenate(parts)
    samples_N = samples_N.astype(samples_N.dtype.newbyteorder("="), copy=False)
    told = Refused(refused, f"{refused} samples overlap") if refused else Refused()
    return Recording(samples_N[None, :], None, start_ns, told)


def _name(start_ns: int) -> str:
    when = datetime.fromtimestamp(start_ns // NS_PER_S, UTC)
    return f"{when:%Y%m%dT%H%M%S}.{start_ns % NS_PER_S:09d}Z"
