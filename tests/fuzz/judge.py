"""What docs/wire.md asks of each message, checked slowly and plainly: the reference that decoders are held to.

Each function returns what the message says as plain values, or None when it is bad.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import zlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from infomae_stream.topics import NODE_LEAVES, STREAM_LEAVES
from infomae_stream.types import KINDS
from tests.fuzz.plain_cbor import NotPlain, Tag, read_item

ID: Final = re.compile(r"[a-z0-9_-]{1,48}")
ARRAYS: Final = {77: "<i2", 78: "<i4", 79: "<i8", 85: "<f4", 86: "<f8"}
NUMBERS: Final = ("site", "node", "stream")


class Bad(Exception):
    pass


def want(condition: object) -> None:
    if not condition:
        raise Bad


def judged(check: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def judge(payload: bytes) -> Any:
        try:
            return check(payload)
        except (Bad, NotPlain, KeyError):
            return None

    return judge


def integer(value: Any) -> int:
    want(type(value) is int and -(2**62) < value < 2**62)
    return int(value)


def count(value: Any) -> int:
    want(integer(value) >= 0)
    return int(value)


def text(value: Any) -> str:
    want(type(value) is str and 0 < len(value) <= 200)
    return str(value)


def any_text(value: Any) -> str:
    want(type(value) is str)
    return str(value)


def identifier(value: Any) -> str:
    want(type(value) is str and ID.fullmatch(value))
    return str(value)


def number(value: Any) -> float:
    want(type(value) in (int, float))
    try:
        result = float(value)
    except OverflowError:
        raise Bad from None
    want(math.isfinite(result))
    return result


def array_of(value: Any, item: Callable[[Any], Any]) -> tuple[Any, ...]:
    want(type(value) is list)
    return tuple(item(v) for v in value)


def message(payload: bytes) -> dict[str, Any]:
    want(len(payload) <= 4_194_304)
    m = read_item(payload)
    want(type(m) is dict and type(m.get("v")) is int and m["v"] == 1)
    return dict(m)


def typed(value: Any, only: str = "") -> np.ndarray[Any, Any]:
    want(isinstance(value, Tag) and value.number in ARRAYS and type(value.value) is bytes)
    dtype = np.dtype(ARRAYS[value.number])
    want((not only or ARRAYS[value.number] == only) and len(value.value) % dtype.itemsize == 0)
    return np.frombuffer(value.value, dtype)


@judged
def chunk(payload: bytes) -> dict[str, Any]:
    m = message(payload)
    spec, clock = m["spec"], m["clock"]
    want(type(spec) is dict and type(clock) is dict)
    channels = array_of(spec["channels"], any_text)
    sensitivity = array_of(spec["sensitivity"], number)
    want(0 < len(channels) <= 64 and len(sensitivity) == len(channels) and all(sensitivity))
    want(spec["kind"] in KINDS and 0 < number(spec["rate_hz"]) <= 1e6)
    units = array_of(spec["units"], any_text)
    want(len(units) == len(channels))
    samples, times_ns = samples_of(m, len(channels))
    want(count(m["start_ns"]) >= 0 and (times_ns is None or times_ns[0] == m["start_ns"]))
    crc = zlib.crc32(samples.tobytes())
    crc = crc if times_ns is None else zlib.crc32(times_ns.tobytes(), crc)
    want(type(m["crc32"]) is int and m["crc32"] == crc)
    want(type(clock["synchronised"]) is bool)
    return {
        "id": "/".join(identifier(spec[name]) for name in NUMBERS),
        "kind": spec["kind"],
        "modality": identifier(any_text(spec.get("modality", "")) or spec["kind"]),
        "rate_hz": float(spec["rate_hz"]),
        "channels": channels,
        "units": units,
        "sensitivity": sensitivity,
        "seed_id": any_text(spec.get("seed_id", "")),
        "epoch": text(m["epoch"]),
        "seq": count(m["seq"]),
        "start_ns": m["start_ns"],
        "accepted_ns": integer(m["accepted_ns"]),
        "clock": (
            any_text(clock["source"])[:80],
            *(integer(clock[name]) for name in ("offset_ns", "uncertainty_ns")),
            clock["synchronised"],
            any_text(clock["boot_id"])[:80],
            integer(clock["monotonic_ns"]),
        ),
        "dtype": samples.dtype.str,
        "samples": samples.tobytes(),
        "times_ns": None if times_ns is None else times_ns.tobytes(),
    }


def samples_of(m: dict[str, Any], channels: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    tag = m["samples"]
    want(isinstance(tag, Tag) and tag.number == 40 and type(tag.value) is list and len(tag.value) == 2)
    dimensions = array_of(tag.value[0], count)
    want(len(dimensions) == 2 and dimensions[0] == channels and 0 < dimensions[0] * dimensions[1] <= 4_000_000)
    samples = typed(tag.value[1])
    want(samples.size == dimensions[0] * dimensions[1] and samples.dtype.str != "<i8")
    if m["times_ns"] is None:
        return samples, None
    times_ns = typed(m["times_ns"], "<i8")
    want(times_ns.size == dimensions[1] and all(a <= b for a, b in itertools.pairwise(times_ns)))
    return samples, times_ns


@judged
def gap(payload: bytes) -> dict[str, Any]:
    m = message(payload)
    return {
        "id": "/".join(identifier(m[name]) for name in NUMBERS),
        "epoch": text(m["epoch"]),
        "seq": count(m["seq"]),
        "start_ns": integer(m["start_ns"]),
        "end_ns": integer(m["end_ns"]),
        "reason": text(m["reason"]),
        "n_samples": count(m["n_samples"]),
    }


def json_message(payload: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        want(len({name for name, _ in pairs}) == len(pairs))
        return dict(pairs)

    def constant(_: str) -> Any:
        raise Bad

    want(len(payload) <= 4_194_304)
    try:
        m = json.loads(payload, object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError):
        raise Bad from None
    want(type(m) is dict and type(m.get("v")) is int and m["v"] == 1)
    return dict(m)


@judged
def detection(payload: bytes) -> dict[str, Any]:
    m = json_message(payload)
    want(type(m["scores"]) is dict)
    scores = {text(name): number(score) for name, score in m["scores"].items()}
    want(text(m["label"]) in scores and all(0 <= score <= 1 for score in scores.values()))
    return {
        **{name: text(m[name]) for name in ("epoch", "label", "bundle_sha256")},
        "site": identifier(m["site"]),
        "node": identifier(m["node"]),
        "scores": scores,
        "seq": count(m["seq"]),
        "start_ns": integer(m["start_ns"]),
        "end_ns": integer(m["end_ns"]),
        "modalities": array_of(m["modalities"], text),
        "bundle_version": integer(m["bundle_version"]),
        "event": None if m.get("event") is None else event(m["event"]),
    }


def event(m: Any) -> dict[str, Any]:
    want(type(m) is dict and type(m["ongoing"]) is bool and type(m["attribution"]) is dict)
    shares = {name: number(m[name]) for name in ("peak_score", "on", "off")}
    counts = {name: count(m[name]) for name in ("windows", "part")}
    want(all(0 <= share <= 1 for share in shares.values()) and min(counts.values()) >= 1)
    return {
        **shares,
        **counts,
        "ongoing": m["ongoing"],
        "missing": array_of(m["missing"], text),
        "attribution": {text(name): number(change) for name, change in m["attribution"].items()},
    }


@judged
def ack(payload: bytes) -> dict[str, Any]:
    def span(entry: Any, size: int) -> tuple[Any, ...]:
        want(type(entry) is list and len(entry) == size and count(entry[0]) <= count(entry[1]))
        return (*entry[:2], *(text(reason) for reason in entry[2:]))

    m = json_message(payload)
    durable, sums = array_of(m["durable"], lambda entry: span(entry, 2)), array_of(m.get("sums", []), count)
    want(all(number < 2**32 for number in sums) and len(sums) in (0, len(durable)))
    return {
        "epoch": text(m["epoch"]),
        "durable": durable,
        "sums": sums,
        "refused": array_of(m["refused"], lambda entry: span(entry, 3)),
    }


@judged
def topic(payload: bytes) -> tuple[str, ...]:
    try:
        parts = payload.decode().split("/")
    except UnicodeDecodeError:
        raise Bad from None
    want(len(payload.decode()) <= 256 and parts[:2] == ["infomae", "v1"] and len(parts) >= 5)
    site, node, rest = identifier(parts[2]), identifier(parts[3]), parts[4:]
    if "/".join(rest) in NODE_LEAVES:
        return site, node, "/".join(rest), ""
    want(len(rest) == 2 and rest[1] in STREAM_LEAVES)
    return site, node, rest[1], identifier(rest[0])
