"""What is fuzzed: every reader of bytes that others write, with a valid input, ways to break it, and a judge.

`says(payload)`: what the program's reader makes of it, as plain values. `judge(payload)`: what it ought to make of it,
None when it is bad. A reader must say what the judge says, or refuse with an error of its own family.
"""

from __future__ import annotations

import atexit
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from collectors.hub.received import claimed_identity
from infomae_stream.config import load_config
from infomae_stream.errors import ConfigError, DataError, InfomaeError, WireError
from infomae_stream.node_config import NodeConfig
from infomae_stream.stored_chunk import StoredChunkDecoder
from infomae_stream.topics import NODE_LEAVES, parse_topic
from infomae_stream.types import Chunk, ClockQuality, Detection, Event
from infomae_stream.wire import (
    Ack,
    decode_ack,
    decode_chunk,
    decode_detection,
    decode_gap,
    encode_ack,
    encode_chunk,
    encode_detection,
    encode_gap,
)
from tests.fuzz import judge, text_files
from tests.fuzz.mutations import break_bytes, break_cbor, break_json, cbor_bombs, json_bombs
from tests.hub_records import make_chunk, make_detection, make_gap

Make = Callable[[random.Random], bytes]


@dataclass(frozen=True)
class Target:
    """`breakers`: each makes a broken input from a valid one (or from nothing but chance)."""

    name: str
    valid: Make
    breakers: tuple[Callable[[random.Random, bytes], bytes], ...]
    says: Callable[[bytes], Any]
    judge: Callable[[bytes], Any]
    refusals: tuple[type[InfomaeError], ...] = (WireError,)
    # A parser of one's own files may take its time and room: tomllib is quadratic in the length of a dotted key.
    memory_floor: int = 24_000_000


def plain_chunk(payload: bytes) -> dict[str, Any]:
    c = decode_chunk(payload)
    samples = np.ascontiguousarray(c.samples_CN, dtype=c.samples_CN.dtype.newbyteorder("<"))
    spec = {name: getattr(c.spec, name) for name in ("kind", "modality", "rate_hz", "channels", "units", "sensitivity")}
    return {
        "id": str(c.spec.id),
        **spec,
        "seed_id": c.spec.seed_id,
        **{name: getattr(c, name) for name in ("epoch", "seq", "start_ns", "accepted_ns")},
        "clock": tuple(getattr(c.clock, f.name) for f in fields(ClockQuality)),
        "dtype": samples.dtype.str,
        "samples": samples.tobytes(),
        "times_ns": None if c.times_ns is None else c.times_ns.astype("<i8").tobytes(),
    }


class WarmDecoder:
    """The hub's fast reader as it is after a while: it has seen whatever valid chunk a campaign starts from."""

    def __init__(self) -> None:
        self._decoder = StoredChunkDecoder()

    def valid(self, rng: random.Random) -> bytes:
        payload = encode_chunk(some_chunk(rng))
        self._decoder.decode(payload)
        return payload

    def says(self, payload: bytes) -> dict[str, Any]:
        c = self._decoder.decode(payload)
        spec_names = ("kind", "modality", "rate_hz", "channels", "units", "sensitivity", "seed_id")
        return {
            "id": str(c.spec.id),
            **{name: getattr(c.spec, name) for name in spec_names},
            **{name: getattr(c, name) for name in ("epoch", "seq", "start_ns", "accepted_ns")},
            "clock": tuple(c.clock) if isinstance(c.clock, tuple) else astuple(c.clock),
            "dtype": np.dtype(c.dtype).newbyteorder("<").str,
            "samples": bytes(c.samples),
            "times_ns": None if c.times is None else bytes(c.times),
        }


def plain_gap(payload: bytes) -> dict[str, Any]:
    g = decode_gap(payload)
    return {
        "id": str(g.stream),
        **{name: getattr(g, name) for name in ("epoch", "seq", "start_ns", "end_ns", "reason", "n_samples")},
    }


def plain_detection(payload: bytes) -> dict[str, Any]:
    d = decode_detection(payload)
    return {f.name: getattr(d, f.name) for f in fields(d)} | {"event": None if d.event is None else asdict(d.event)}


def some_detection(rng: random.Random) -> Detection:
    detection = make_detection(rng.randrange(100))
    if rng.random() < 0.3:
        return detection  # as nodes wrote before there were events
    event = Event(
        rng.randint(1, 9), rng.random(), 1, rng.random() < 0.5, ("watch_imu",), {"phone_imu": 0.25}, 0.5, 0.25
    )
    return replace(detection, event=event)


def plain_ack(payload: bytes) -> dict[str, Any]:
    a = decode_ack(payload)
    return {"epoch": a.epoch, "durable": a.durable, "sums": a.sums, "refused": a.refused}


def claim(payload: bytes) -> None:
    """What a refused message claims to be is no acceptance: it only has to be found in peace, and be well formed."""
    found = claimed_identity(payload)
    if found is not None:
        epoch, seq = found
        assert type(epoch) is str and 0 < len(epoch) <= 200 and type(seq) is int and 0 <= seq < 2**62, found


def plain_topic(payload: bytes) -> tuple[str, ...]:
    try:
        topic = parse_topic(payload.decode())
    except UnicodeDecodeError as e:  # the client library never hands such a topic over
        raise WireError("not UTF-8", reason="topic") from e
    return topic.site, topic.node, topic.leaf, topic.stream


def some_chunk(rng: random.Random) -> Chunk:
    chunk = make_chunk(rng.randrange(100), n=rng.choice([1, 2, 20]))
    dtype = rng.choice(["int16", "int32", "float32", "float64"])
    times = chunk.start_ns + np.cumsum(np.arange(chunk.n_samples)) if rng.random() < 0.5 else None
    samples = chunk.samples_CN.astype(dtype)
    return Chunk(chunk.spec, "e1", chunk.seq, chunk.start_ns, samples, chunk.clock, times, chunk.accepted_ns)


def some_ack(rng: random.Random) -> Ack:
    first = rng.randrange(1000)
    sums = (rng.randrange(2**32), rng.randrange(2**32)) if rng.random() < 0.5 else ()
    return Ack("e1", ((first, first + 5), (first + 7, first + 7)), ((first + 6, first + 6, "crc"),), sums)


def some_topic(rng: random.Random) -> bytes:
    leaf = rng.choice([*NODE_LEAVES, "imu/chunk", "imu/gap"])
    return f"infomae/v1/s01/s01-phone/{leaf}".encode()


def some_record(rng: random.Random) -> bytes:
    seq = rng.randrange(100)
    return rng.choice([encode_chunk(some_chunk(rng)), encode_gap(make_gap(seq)), encode_detection(make_detection(seq))])


def break_record(rng: random.Random, valid: bytes) -> bytes:
    return rng.choice(JSON if valid[:1] == b"{" else CBOR)(rng, valid)


def flip_samples(rng: random.Random, valid: bytes) -> bytes:
    """A flipped bit in the samples, the checksum as it was: only the checksum can tell."""
    chunk = decode_chunk(valid)
    raw = np.ascontiguousarray(chunk.samples_CN, dtype=chunk.samples_CN.dtype.newbyteorder("<")).tobytes()
    at = valid.index(raw) + rng.randrange(len(raw))
    return valid[:at] + bytes([valid[at] ^ 1 << rng.randrange(8)]) + valid[at + 1 :]


def _read_file(read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    def says(payload: bytes) -> Any:
        path = _scratch() / "input"
        path.write_bytes(payload)
        return read(path)

    return says


@cache
def _scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="infomae-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


WARM = WarmDecoder()
CBOR = (break_bytes, break_cbor, break_cbor)
JSON = (break_bytes, break_json, break_json)
TARGETS = (
    Target(
        "chunk",
        lambda rng: encode_chunk(some_chunk(rng)),
        (*CBOR * 12, *[flip_samples] * 4, lambda rng, _: cbor_bombs(rng)),
        plain_chunk,
        judge.chunk,
    ),
    Target(
        "stored-chunk",
        WARM.valid,
        (*CBOR * 12, *[flip_samples] * 4, lambda rng, _: cbor_bombs(rng)),
        WARM.says,
        judge.chunk,
    ),
    Target(
        "gap",
        lambda rng: encode_gap(make_gap(rng.randrange(100))),
        (*CBOR * 12, lambda rng, _: cbor_bombs(rng)),
        plain_gap,
        judge.gap,
    ),
    Target(
        "detection",
        lambda rng: encode_detection(some_detection(rng)),
        (*JSON * 12, lambda rng, _: json_bombs(rng)),
        plain_detection,
        judge.detection,
    ),
    Target(
        "ack",
        lambda rng: encode_ack(some_ack(rng)),
        (*JSON * 12, lambda rng, _: json_bombs(rng)),
        plain_ack,
        judge.ack,
    ),
    Target(
        "claim",
        some_record,
        (*[break_record] * 24, lambda rng, _: cbor_bombs(rng), lambda rng, _: json_bombs(rng)),
        claim,
        lambda _: None,
    ),
    Target("topic", some_topic, (break_bytes, text_files.break_topic), plain_topic, judge.topic),
    Target(
        "config",
        lambda _: text_files.CONFIG.encode(),
        (break_bytes, text_files.break_config, text_files.break_config),
        _read_file(lambda path: text_files.config_says(load_config(path, NodeConfig, {}))),
        text_files.judge_config,
        (ConfigError,),
        64_000_000,
    ),
    Target(
        "labels",
        lambda _: text_files.LABELS.encode(),
        (break_bytes, text_files.break_labels, text_files.break_labels),
        _read_file(text_files.labels_say),
        text_files.judge_labels,
        (DataError, ConfigError),
    ),
)
