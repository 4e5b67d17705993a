"""What foreign publishers send, read by a declared layout: JSON, CBOR, or little-endian numbers.

C channels, N samples.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import cbor2
import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from collectors.sensing.time_text import TimeUnit, ZoneName, time_reader
from infomae_stream.config import Settings
from infomae_stream.errors import DataError

RAW_TIMES: Final = {"u32": "<u4", "u64": "<u8", "i64": "<i8", "f64": "<f8"}
MAX_SAMPLES: Final = 1_000_000  # values of one message
Dtype = Literal["int16", "int32", "float32", "float64"]


class Layout(Settings):
    """Where samples and time stand in a payload.

    form: json and cbor hold an object (or bare rows); raw is nothing but numbers, channels interleaved.
    samples: the key that holds rows of one value a channel, "" when the payload itself does.
    fields: instead of it one key a channel, each with a number or a list of them.
    time: the key of the first sample's time, "" when there is none; raw_time: its form before raw samples.
    """

    form: Literal["json", "cbor", "raw"] = "json"
    dtype: Dtype = "float32"
    samples: str = ""
    fields: list[str] = []
    time: str = ""
    time_unit: TimeUnit = "s"
    time_zone: ZoneName = "UTC"
    raw_time: Literal["", "u32", "u64", "i64", "f64"] = ""

    @model_validator(mode="after")
    def _fits_the_form(self) -> Self:
        if self.form == "raw" and (self.samples or self.fields or self.time):
            raise ValueError("raw payloads have no keys: use dtype and raw_time")
        if self.form != "raw" and self.raw_time:
            raise ValueError("raw_time is for form = 'raw'; name the key of the time in `time`")
        if self.samples and self.fields:
            raise ValueError("either samples or fields, not both")
        if self.form == "raw" and "%" in self.time_unit:
            raise ValueError("a raw time is a number: its unit is s, ms, us or ns")
        return self

    @property
    def has_time(self) -> bool:
        return bool(self.time or self.raw_time)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """start_ns: time of the first sample; None where the payload does not tell."""

    samples_CN: NDArray[Any]
    start_ns: int | None


def payload_reader(layout: Layout, channels: int) -> Callable[[bytes], Block]:
    """A function that reads payloads of this layout. It raises DataError for one that is not."""
    read_time = time_reader(layout.time_unit, layout.time_zone)

    def keyed(payload: bytes) -> Block:
        try:
            said = json.loads(payload) if layout.form == "json" else _one_cbor(payload)
            start_ns = read_time(str(said[layout.time])) if layout.time else None
            if layout.fields:
                rows_NC: Any = np.stack([np.atleast_1d(np.asarray(said[f])) for f in layout.fields], axis=-1)
            else:
                rows_NC = np.asarray(said[layout.samples] if layout.samples else said)
            return Block(_checked(rows_NC, channels, layout.dtype), start_ns)
        except (ValueError, TypeError, KeyError, IndexError, RecursionError, OverflowError, cbor2.CBORError) as e:
            raise DataError(f"cannot be read as {layout.form}: {type(e).__name__} {str(e)[:80]}") from e

    def raw(payload: bytes) -> Block:
        start_ns, skip = None, 0
        if layout.raw_time:
            skip = np.dtype(RAW_TIMES[layout.raw_time]).itemsize
            if len(payload) < skip:
                raise DataError(f"{len(payload)} bytes do not hold a {layout.raw_time} time")
            stamp = np.frombuffer(payload[:skip], dtype=RAW_TIMES[layout.raw_time])[0]
            try:
                start_ns = read_time(repr(stamp.item()))
            except ValueError as e:
                raise DataError(f"its time cannot be read: {e}") from e
        dtype = np.dtype(layout.dtype).newbyteorder("<")
        row_bytes = channels * dtype.itemsize
        if (len(payload) - skip) % row_bytes:
            raise DataError(f"{len(payload) - skip} bytes of samples are no whole rows of {row_bytes}")
        values = np.frombuffer(payload[skip:], dtype=dtype)
        return Block(_checked(values.reshape(-1, channels), channels, layout.dtype), start_ns)

    return raw if layout.form == "raw" else keyed


def _checked(rows: NDArray[Any], channels: int, dtype: str) -> NDArray[Any]:
    """Rows (N, C), or a list or a number of a stream with one channel -> samples (C, N). Raises DataError."""
    if rows.ndim < 2 and channels == 1:
        rows = rows.reshape(-1, 1)
    elif rows.ndim == 1 and rows.shape == (channels,):
        rows = rows[None, :]
    if rows.ndim != 2 or rows.shape[1] != channels or not 0 < rows.size <= MAX_SAMPLES:
        raise DataError(f"samples have shape {rows.shape}, want rows of {channels}")
    if rows.dtype.kind not in "iuf":
        raise DataError(f"samples are no numbers but {rows.dtype.name}")
    if not np.isfinite(rows).all():
        raise DataError("a sample is not finite")
    limits = np.iinfo(dtype) if np.dtype(dtype).kind == "i" else np.finfo(dtype)
    if rows.max() > limits.max or rows.min() < limits.min:
        raise DataError(f"a sample does not fit {dtype}")
    return np.ascontiguousarray(rows.T.astype(dtype))


def _one_cbor(payload: bytes) -> Any:
    stream = io.BytesIO(payload)
    found = cbor2.load(stream)
    if stream.read(1):
        raise ValueError("there are bytes after the CBOR item")
    return found
