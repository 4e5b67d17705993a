"""The samples of one stream in order, a few megabytes at a time: a light look at what there is, then slab by slab."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infomae_stream.errors import DataError, LakeError
from infomae_stream.types import Chunk, StreamId, StreamSpec
from storage.duck import fetch, open_tables
from storage.exports import Piece
from storage.lake import Lake
from storage.plain_text import exact_time_text
from storage.query import read_chunks, read_gaps, stream_specs
from storage.segments import live_files
from storage.selection import Selection
from storage.torn_files import whole_files

SLAB_BYTES: Final = 32_000_000
_ALL_TIME: Final = (0, 2**62)

# One row a logical chunk; no samples are read.
_CHUNKS: Final = """
    SELECT min(start_ns) AS start_ns, max(end_ns) AS end_ns, max(n_samples) AS n_samples,
        any_value(len(channels) * (CASE dtype WHEN 'int16' THEN 2 WHEN 'float64' THEN 8 ELSE 4 END)) AS row_bytes,
        bool_or(times IS NOT NULL) AS irregular, count(*) AS copies, epoch,
        EXISTS (SELECT 1 FROM quarantine q WHERE q.site = any_value(r.site) AND q.node = any_value(r.node)
            AND q.epoch = r.epoch AND q.seq = r.seq) AS quarantined
    FROM chunks r WHERE {where} GROUP BY epoch, seq ORDER BY start_ns
"""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the lake holds of a stream in a range; `chunks` has the columns of _HOLDINGS."""

    stream: StreamId
    asked: tuple[int | None, int | None]
    from_ns: int
    to_ns: int
    chunks: pa.Table
    quarantined: int
    copies: int
    versions: dict[str, int]

    @property
    def bytes(self) -> int:
        return int(pc.sum(pc.multiply(self.chunks["n_samples"], self.chunks["row_bytes"])).as_py() or 0)

    @property
    def irregular(self) -> int:
        """Chunks with a time for each sample."""
        return int(pc.sum(self.chunks["irregular"]).as_py() or 0)


def find_holdings(lake: Lake, stream: StreamId, from_ns: int | None, to_ns: int | None) -> Holdings:
    """Look at the newest version. Raises DataError for a stream or range that holds nothing, LakeError."""
    versions = {name: lake.version(name) for name in ("chunks", "gaps", "quarantine")}
    low, high = _ALL_TIME[0] if from_ns is None else from_ns, _ALL_TIME[1] if to_ns is None else to_ns
    selection = Selection(streams=[stream], from_ns=low, to_ns=high)
    where, values = selection.conditions()
    _refuse_torn(lake, versions["chunks"], selection, stream)
    tables: dict[str, int | None] = {name: versions[name] for name in ("chunks", "quarantine")}
    with open_tables(lake, tables, {"chunks": selection.files()}) as db:
        found = pa.Table.from_pylist(
            list(fetch(db, _CHUNKS.format(where=" AND ".join(where)), values)), schema=_HOLDINGS
        )
    kept = found.filter(pc.invert(found["quarantined"]))
    if not kept.num_rows:
        raise _nothing(lake, stream, found.num_rows)
    copies = int(pc.sum(kept["copies"]).as_py()) - kept.num_rows
    return Holdings(stream, (from_ns, to_ns), low, high, kept, found.num_rows - kept.num_rows, copies, versions)


def pieces(lake: Lake, holdings: Holdings) -> Iterator[Piece]:
    """The logical chunks in order of start and seq, cut to the range. Raises LakeError."""
    for first_ns, next_ns in _slabs(holdings):
        chunks = read_chunks(
            lake,
            streams=[holdings.stream],
            from_ns=first_ns,
            to_ns=next_ns,
            version=holdings.versions["chunks"],
        )
        for chunk in chunks:
            if first_ns <= chunk.start_ns < next_ns and (piece := _cut(chunk, holdings.from_ns, holdings.to_ns)):
                yield piece


def holdings_specs(lake: Lake, holdings: Holdings) -> list[StreamSpec]:
    """Every description that these chunks carry. Raises LakeError."""
    return [s for s in stream_specs(lake, version=holdings.versions["chunks"]) if s.id == holdings.stream]


def told_gaps(lake: Lake, holdings: Holdings) -> list[dict[str, Any]]:
    """Gap records of the range: what is known of why samples are missing."""
    gaps = read_gaps(
        lake,
        streams=[holdings.stream],
        from_ns=holdings.from_ns,
        to_ns=holdings.to_ns,
        version=holdings.versions["gaps"],
    )
    names = ("start_ns", "end_ns", "reason", "n_samples")
    return [{name: getattr(gap, name) for name in names} for gap in gaps]


def chunks_of_others(lake: Lake, stream: StreamId, from_ns: int, to_ns: int, epochs: Iterable[str]) -> int:
    """How many chunks of the stream overlap the range and come from none of these epochs. Raises LakeError."""
    selection = Selection(streams=[stream], from_ns=from_ns, to_ns=to_ns)
    where, values = selection.conditions()
    sql = f"SELECT count(*) AS n FROM chunks WHERE {' AND '.join(where)} AND NOT list_contains(?, epoch)"
    with open_tables(lake, {"chunks": None}, {"chunks": selection.files()}) as db:
        (row,) = fetch(db, sql, [*values, sorted(epochs)])
    return int(row["n"])


def _slabs(holdings: Holdings) -> Iterator[tuple[int, int]]:
    """Ranges [first, next) of starts, each with about SLAB_BYTES of samples; chunks of one start stay together."""
    starts = holdings.chunks["start_ns"].to_numpy()
    sizes = (holdings.chunks["n_samples"].to_numpy() * holdings.chunks["row_bytes"].to_numpy()).cumsum()
    first, base = 0, 0
    for i in range(1, len(starts) + 1):
        full = i == len(starts) or (sizes[i - 1] - base >= SLAB_BYTES and starts[i] != starts[i - 1])
        if full:
            yield int(starts[first]), int(starts[i - 1]) + 1
            first, base = i, int(sizes[i - 1])


def _cut(chunk: Chunk, from_ns: int, to_ns: int) -> Piece | None:
    if chunk.start_ns >= from_ns and chunk.end_ns <= to_ns:
        return Piece(chunk.spec, chunk.start_ns, chunk.samples_CN, chunk.times_ns)
    times_N = chunk.sample_times_ns()
    a, b = (int(i) for i in np.searchsorted(times_N, (from_ns, to_ns)))
    if a >= b:
        return None
    times = None if chunk.times_ns is None else chunk.times_ns[a:b]
    return Piece(chunk.spec, int(times_N[a]), chunk.samples_CN[:, a:b], times)


def _refuse_torn(lake: Lake, version: int, selection: Selection, stream: StreamId) -> None:
    """Readers leave torn files out; an export that did so would pass for whole."""
    files = live_files(lake.table_path("chunks"), version, selection.files())
    torn = len(files) - len(whole_files("chunks", files))
    if torn:
        raise LakeError(
            f"{torn} of the files that may hold this range are torn",
            where=str(stream),
            fix="lake verify lists them: restore them, or export a range that does not touch them",
        )


def _nothing(lake: Lake, stream: StreamId, quarantined: int) -> DataError:
    """Why there is nothing, and what there is."""
    if quarantined:
        return DataError("all chunks of this range are quarantined", where=str(stream), fix="see lake dead-letters")
    sql = (
        "SELECT site || '/' || node || '/' || stream AS name, min(start_ns) AS a, max(end_ns) AS b"
        " FROM chunks GROUP BY ALL"
    )
    with open_tables(lake, {"chunks": None}) as db:
        known = {row["name"]: (row["a"], row["b"]) for row in fetch(db, sql, [])}
    if str(stream) not in known:
        near = difflib.get_close_matches(str(stream), known, n=3, cutoff=0.3) or sorted(known)[:3]
        return DataError(f"no stream {stream}", fix=f"nearest: {', '.join(near) or 'the lake has no stream'}")
    a, b = known[str(stream)]
    return DataError(
        "no samples in this range", where=str(stream), fix=f"it has {exact_time_text(a)} to {exact_time_text(b)}"
    )


_HOLDINGS: Final = pa.schema(
    [
        *((name, pa.int64()) for name in ("start_ns", "end_ns", "n_samples", "row_bytes")),
        ("irregular", pa.bool_()),
        ("copies", pa.int64()),
        ("epoch", pa.string()),
        ("quarantined", pa.bool_()),
    ]
)
