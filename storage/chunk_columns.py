"""Chunks as columns of the lake's table, built without a Python object for each value.

Descriptions repeat, so they are made once a stream and spread over the rows by Arrow; samples are joined in one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

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
    chunks = sorted(chunks, key=_place)
    columns: dict[str, pa.Array] = _spec_columns(chunks, schema)
    for name in _PLAIN_FIELDS:
        columns[name] = pa.array([getattr(chunk, name) for chunk in chunks], schema.field(name).type)
    clocks = zip(*[chunk.clock for chunk in chunks], strict=True)
    for name, values in zip(ClockQuality.__dataclass_fields__, clocks, strict=False):
        columns[f"clock_{name}"] = pa.array(values, schema.field(f"clock_{name}").type)
    days = np.array([chunk.start_ns // _DAY_NS for chunk in chunks], np.int32)
    columns["day"] = pa.array(days, pa.int32()).cast(pa.date32())
    columns["received_ns"] = pa.array(np.full(len(chunks), received_ns, np.int64))
    columns["samples"] = _binary([chunk.samples for chunk in chunks])
    columns["times"] = _binary([chunk.times for chunk in chunks])
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _place(chunk: StoredChunk) -> tuple[int, str, str, str, str, int, int]:
    spec = chunk.spec
    stream = spec.id
    return (
        chunk.start_ns // _DAY_NS, spec.kind, stream.site, stream.node, stream.stream, chunk.start_ns, chunk.seq,
    )  # fmt: skip


def _spec_columns(chunks: Sequence[StoredChunk], schema: pa.Schema) -> dict[str, pa.Array]:
    # By object: the decoder gives one for all chunks of a stream, and hashing descriptions is slow.
    distinct: dict[int, int] = {}
    specs: list[StreamSpec] = []
    rows = np.empty(len(chunks), np.int32)
    for i, chunk in enumerate(chunks):
        place = distinct.setdefault(id(chunk.spec), len(specs))
        if place == len(specs):
            specs.append(chunk.spec)
        rows[i] = place
    where = pa.array(rows)
    return {
        name: pa.array([_spec_value(spec, name) for spec in specs], schema.field(name).type).take(where)
        for name in _SPEC_FIELDS
    }


def _spec_value(spec: StreamSpec, name: str) -> Any:
    return getattr(spec.id if name in ("site", "node", "stream") else spec, name)


def _binary(values: Sequence[bytes | memoryview | None]) -> pa.Array:
    """A binary column; pa.array would make an object of each value and copy it byte by byte."""
    lengths = np.fromiter((0 if value is None else len(value) for value in values), np.int64, len(values))
    if lengths.sum() >= _OFFSETS_TO:
        half = len(values) // 2
        return pa.chunked_array([*_chunks_of(_binary(values[:half])), *_chunks_of(_binary(values[half:]))])
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    missing = np.fromiter((value is None for value in values), np.bool_, len(values))
    valid = None
    if missing.any():
        valid = pa.py_buffer(np.packbits(~missing, bitorder="little").tobytes())
    data = pa.py_buffer(b"".join([value for value in values if value is not None]))
    return pa.Array.from_buffers(pa.binary(), len(values), [valid, pa.py_buffer(offsets.tobytes()), data])


def _chunks_of(array: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return array.chunks if isinstance(array, pa.ChunkedArray) else [array]
