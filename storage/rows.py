"""Core types into rows of the lake's tables, and back."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from infomae_stream.errors import DataError, LakeError
from infomae_stream.stored_chunk import StoredChunk, stored_chunk
from infomae_stream.types import Chunk, ClockQuality, Detection, Event, Gap, Pair, StreamId, StreamSpec, check_id
from infomae_stream.wire import chunk_crc32, encode_detection, encode_gap
from storage.chunk_columns import chunk_table
from storage.schemas import TABLES

PURPOSES = ("train", "evaluate")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class LabelInterval:
    """Somebody says: this node saw `label` in [start_ns, end_ns). `purpose`: what the label may be used for."""

    site: str
    node: str
    start_ns: int
    end_ns: int
    label: str
    purpose: str = "train"

    def __post_init__(self) -> None:
        for value, what in ((self.site, "site"), (self.node, "node"), (self.label, "label")):
            check_id(value, what)
        if self.purpose not in PURPOSES:
            raise DataError(f"purpose {self.purpose!r} is unknown", fix=f"known: {', '.join(PURPOSES)}")
        if not 0 <= self.start_ns < self.end_ns < 2**62:
            raise DataError(f"[{self.start_ns}, {self.end_ns}) is not an interval", where=f"{self.site}/{self.node}")


def chunk_rows(chunks: Sequence[Chunk | StoredChunk], received_ns: int) -> pa.Table:
    """Column by column, in the order of a segment's rows, so that writing them copies no samples once more."""
    stored = [stored_chunk(chunk) if isinstance(chunk, Chunk) else chunk for chunk in chunks]
    return chunk_table(stored, received_ns)


def gap_rows(gaps: Sequence[Gap], received_ns: int) -> pa.Table:
    return _table("gaps", gaps, lambda gap: _gap_row(gap, received_ns))


def detection_rows(detections: Sequence[Detection], received_ns: int) -> pa.Table:
    return _table("detections", detections, lambda detection: _detection_row(detection, received_ns))


def record_rows(record: Chunk | StoredChunk | Gap | Detection, received_ns: int) -> pa.Table:
    """One row. Raises ValueError, TypeError or OverflowError for a value that the table's types cannot hold."""
    if isinstance(record, Chunk | StoredChunk):
        return chunk_rows([record], received_ns)
    return gap_rows([record], received_ns) if isinstance(record, Gap) else detection_rows([record], received_ns)


def pair_rows(pairs: Sequence[Pair], revision: int) -> pa.Table:
    return _table("pairs", pairs, lambda pair: {**pair_content(pair), "revision": revision})


def label_rows(labels: Sequence[LabelInterval]) -> pa.Table:
    return _table("labels", labels, lambda label: {n: getattr(label, n) for n in TABLES["labels"].schema.names})


def record_crc32(record: Chunk | StoredChunk | Gap | Detection) -> int:
    """What tells two records of one identity apart: the samples' checksum, or that of the encoded record."""
    if isinstance(record, StoredChunk):
        return record.crc32
    if isinstance(record, Chunk):
        return chunk_crc32(record)
    if isinstance(record, Gap):
        return zlib.crc32(encode_gap(record))
    # Without its event: a hub of the version before stored it without, and may be sent it again after its update.
    return zlib.crc32(encode_detection(replace(record, event=None)))


def pair_content(pair: Pair) -> dict[str, Any]:
    return {
        "site": pair.site,
        "start_ns": pair.start_ns,
        "streams": [str(stream) for stream in pair.streams],
        "modalities": list(pair.modalities),
        "coverage": float(pair.coverage),
        "lag_ns": pair.lag_ns,
        "uncertainty_ns": pair.uncertainty_ns,
        "reason": pair.reason,
    }


def chunk_from(row: Mapping[str, Any]) -> Chunk:
    """Raises LakeError when a row does not hold a valid chunk."""
    try:
        dtype = np.dtype(row["dtype"]).newbyteorder("<")
        times = row["times"]
        return Chunk(
            spec=spec_from(row),
            epoch=row["epoch"],
            seq=row["seq"],
            start_ns=row["start_ns"],
            samples_CN=_native(row["samples"], dtype).reshape(len(row["channels"]), row["n_samples"]),
            clock=ClockQuality(
                source=row["clock_source"],
                offset_ns=row["clock_offset_ns"],
                uncertainty_ns=row["clock_uncertainty_ns"],
                synchronised=row["clock_synchronised"],
                boot_id=row["clock_boot_id"],
                monotonic_ns=row["clock_monotonic_ns"],
            ),
            times_ns=None if times is None else _native(times, np.dtype("<i8")),
            accepted_ns=row["accepted_ns"],
        )
    except (DataError, ValueError, TypeError) as e:
        raise LakeError(
            f"a chunk's row is not valid: {e}", where=f"{row['site']}/{row['node']} seq {row['seq']}"
        ) from e


def spec_from(row: Mapping[str, Any]) -> StreamSpec:
    return StreamSpec(
        id=StreamId(row["site"], row["node"], row["stream"]),
        kind=row["kind"],
        rate_hz=row["rate_hz"],
        channels=tuple(row["channels"]),
        units=tuple(row["units"]),
        sensitivity=tuple(row["sensitivity"]),
        modality=row["modality"],
        seed_id=row["seed_id"],
    )


def gap_from(row: Mapping[str, Any]) -> Gap:
    stream = StreamId(row["site"], row["node"], row["stream"])
    return Gap(stream, row["epoch"], row["seq"], row["start_ns"], row["end_ns"], row["reason"], row["n_samples"])


def detection_from(row: Mapping[str, Any]) -> Detection:
    plain = {n: row[n] for n in Detection.__dataclass_fields__ if n not in ("scores", "modalities", "event")}
    event = None if row.get("windows") is None else _event_from(row)
    return Detection(**plain, scores=json.loads(row["scores"]), modalities=tuple(row["modalities"]), event=event)


def pair_from(row: Mapping[str, Any]) -> Pair:
    return Pair(
        site=row["site"],
        start_ns=row["start_ns"],
        streams=tuple(StreamId(*text.split("/")) for text in row["streams"]),
        modalities=tuple(row["modalities"]),
        coverage=row["coverage"],
        lag_ns=row["lag_ns"],
        uncertainty_ns=row["uncertainty_ns"],
        reason=row["reason"],
    )


def label_from(row: Mapping[str, Any]) -> LabelInterval:
    return LabelInterval(**{n: row[n] for n in LabelInterval.__dataclass_fields__})


def _gap_row(gap: Gap, received_ns: int) -> dict[str, Any]:
    plain = {n: getattr(gap, n) for n in ("epoch", "seq", "start_ns", "end_ns", "n_samples", "reason")}
    return {**_stream_columns(gap.stream), **plain, "crc32": record_crc32(gap), "received_ns": received_ns}


def _detection_row(detection: Detection, received_ns: int) -> dict[str, Any]:
    row = {n: getattr(detection, n) for n in Detection.__dataclass_fields__ if n != "event"}
    row |= {"scores": json.dumps(detection.scores), "modalities": list(detection.modalities)}
    row |= {"crc32": record_crc32(detection), "received_ns": received_ns}
    return row if detection.event is None else row | _event_columns(detection.event)


def _event_columns(event: Event) -> dict[str, Any]:
    plain = {n: getattr(event, n) for n in ("windows", "peak_score", "part", "ongoing")}
    texts = {"missing": list(event.missing), "attribution": json.dumps(event.attribution)}
    return {**plain, **texts, "threshold_on": event.on, "threshold_off": event.off}


def _event_from(row: Mapping[str, Any]) -> Event:
    plain = {n: row[n] for n in ("windows", "peak_score", "part", "ongoing")}
    texts = {"missing": tuple(row["missing"]), "attribution": json.loads(row["attribution"])}
    return Event(**plain, **texts, on=row["threshold_on"], off=row["threshold_off"])


def _stream_columns(stream: StreamId) -> dict[str, str]:
    return {"site": stream.site, "node": stream.node, "stream": stream.stream}


def _native(data: bytes, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return np.frombuffer(data, dtype=dtype).astype(dtype.newbyteorder("="), copy=False)


def _table(name: str, records: Sequence[R], row: Callable[[R], Mapping[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([row(record) for record in records], schema=TABLES[name].schema)
