"""Chunks as columns of the lake's table, built without a Python object for each value.

Descriptions repeat, so they are made once a stream and spread over the rows by Arrow; samples are joined in one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infomae_stream.clock import NS_PER_S
from infomae_stream.stored_chunk import StoredChunk
from infomae_stream.types import ClockQuality, StreamSpec
from storage.schemas import TABLES

_DAY_NS: Final = 86_400 * NS_PER_S
_OFFSETS_TO: Final = 2**31  # Arrow's binary arrays count their bytes in int32
_SPEC_FIELDS: Final = (
    "site", "node", "stream", "modality", "rate_hz", "channels", "units", "sensitivity", "seed_id", "kind",
)  # fmt: skip
_PLAIN_FIELDS: Final = ("epoch", "seq", "start_ns", "end_ns", "n_samples", "crc32", "accepted_ns", "dtype")


def chunk_table(chunks: Sequence[StoredChunk], received_ns: int) -> pa.Table:
    """Rows in the order of the table's folders and segments.

    Raises ValueError, TypeError or OverflowError for a value that the table's types cannot hold.
    """
    schema = TABLES["chunks"].schema
    if not chunks:
        return schema.empty_table()
    specs, which = _distinct_specs(chunks)
    order = _order(chunks, specs, which)
    spec_rows = pa.array(which[order])
    chunks = [chunks[i] for i in order.tolist()]
    columns: dict[str, pa.Array] = {
        name: pa.array([_spec_value(spec, name) for spec in specs], schema.field(name).type).take(spec_rows)
        for name in _SPEC_FIELDS
    }
    for name in _PLAIN_FIELDS:
        columns[name] = pa.array([getattr(chunk, name) for chunk in chunks], schema.field(name).type)
    clocks = zip(*[chunk.clock for chunk in chunks], strict=True)
    for name, values in zip(ClockQuality.__dataclass_fields__, clocks, strict=False):
        columns[f"clock_{name}"] = pa.array(values, schema.field(f"clock_{name}").type)
    days = columns["start_ns"].to_numpy() // _DAY_NS
    columns["day"] = pa.array(days.astype(np.int32)).cast(pa.date32())
    columns["received_ns"] = pa.array(np.full(len(chunks), received_ns, np.int64))
    columns["samples"] = _binary([chunk.samples for chunk in chunks])
    columns["times"] = _binary([chunk.times for chunk in chunks])
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _distinct_specs(chunks: Sequence[StoredChunk]) -> tuple[list[StreamSpec], NDArray[np.int64]]:
    """The descriptions, and for each chunk the place of its own among them.

    By object: the decoder gives one for all chunks of a stream, and hashing descriptions is slow.
    """
    ids = np.array([id(chunk.spec) for chunk in chunks], np.int64)
    _, firsts, which = np.unique(ids, return_index=True, return_inverse=True)
    return [chunks[i].spec for i in firsts.tolist()], which


def _order(chunks: Sequence[StoredChunk], specs: list[StreamSpec], which: NDArray[np.int64]) -> NDArray[np.int64]:
    places = [(spec.kind, spec.id.site, spec.id.node, spec.id.stream) for spec in specs]
    rank_of = {place: rank for rank, place in enumerate(sorted(set(places)))}
    ranks = np.array([rank_of[place] for place in places])[which]
    starts = np.array([chunk.start_ns for chunk in chunks], np.int64)
    seqs = np.array([chunk.seq for chunk in chunks], np.int64)
    return np.lexsort((seqs, starts, ranks, starts // _DAY_NS))


def _spec_value(spec: StreamSpec, name: str) -> Any:
    return getattr(spec.id if name in ("site", "node", "stream") else spec, name)


def _binary(values: Sequence[bytes | memoryview | None]) -> pa.Array:
    """A binary column; pa.array would make an object of each value and copy it byte by byte."""
    if all(value is None for value in values):
        return pa.nulls(len(values), pa.binary())
    lengths = np.array([0 if value is None else len(value) for value in values], np.int64)
    if lengths.sum() >= _OFFSETS_TO:
        half = len(values) // 2
        return pa.chunked_array([*_chunks_of(_binary(values[:half])), *_chunks_of(_binary(values[half:]))])
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    missing = np.array([value is None for value in values])
    valid = None
    if missing.any():
        valid = pa.py_buffer(np.packbits(~missing, bitorder="little").tobytes())
    data = pa.py_buffer(b"".join([value for value in values if value is not None]))
    return pa.Array.from_buffers(pa.binary(), len(values), [valid, pa.py_buffer(offsets.tobytes()), data])


def _chunks_of(array: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return array.chunks if isinstance(array, pa.ChunkedArray) else [array]
