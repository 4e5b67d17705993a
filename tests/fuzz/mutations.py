"""Ways to break a message: raw bytes, structured changes of CBOR and JSON, and bombs. All random choice is `rng`'s."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from typing import Any, Final

import cbor2

BIG: Final = (2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1, -1, -(2**63), 0)


def odd_values(rng: random.Random) -> list[Any]:
    """Values of every type that a message may hold where another is wanted."""
    return [
        None, True, False, 0, -1, 1.0, 0.5, math.nan, math.inf, -math.inf, *BIG[:6], "", "1", "yes", "x" * 300, "a/b",
        "\u0000", "\ud7ff", [], [1], [[]], ["a"], {}, {"v": 1}, "NaN", 10**30, rng.randrange(2**32), rng.random(),
    ]  # fmt: skip


def odd_cbor_values(rng: random.Random) -> list[Any]:
    tags = [cbor2.CBORTag(n, v) for n in (40, 77, 78, 79, 85, 86, 70, 1040) for v in (b"", b"\x00" * 7, "x", None, [])]
    return [*odd_values(rng), b"", b"\x00" * 8, rng.randbytes(16), *tags]


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every part of a nested message stands."""
    if path:
        yield path
    if isinstance(value, cbor2.CBORTag):
        yield from paths(value.value, (*path, "tag"))
    elif isinstance(value, dict):
        for key in value:
            yield from paths(value[key], (*path, key))
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from paths(part, (*path, i))


def replaced(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """A copy with `change` applied at `path`; a change to DROP leaves the part out."""
    if not path:
        return change(value)
    head, rest = path[0], path[1:]
    if isinstance(value, cbor2.CBORTag):
        return cbor2.CBORTag(value.tag, replaced(value.value, rest, change))
    if isinstance(value, dict):
        parts = {key: (replaced(part, rest, change) if key == head else part) for key, part in value.items()}
        return {key: part for key, part in parts.items() if part is not DROP}
    parts_list = [replaced(part, rest, change) if i == head else part for i, part in enumerate(value)]
    return [part for part in parts_list if part is not DROP]


DROP: Final = object()


def break_bytes(rng: random.Random, valid: bytes) -> bytes:
    """Flips, cuts, insertions, repeats, noise."""
    data = bytearray(valid)
    kind = rng.randrange(7)
    at = rng.randrange(len(data) + 1)
    if kind == 0:
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at:at] = rng.randbytes(rng.randrange(1, 9))
    elif kind == 3:
        del data[at : at + rng.randrange(1, 9)]
    elif kind == 4:
        data[at:at] = data[at : at + rng.randrange(1, 64)]
    elif kind == 5:
        data[at : at + 1] = bytes([rng.randrange(256)])
    else:
        data = bytearray(rng.randbytes(rng.randrange(200)))
    return bytes(data)


def break_cbor(rng: random.Random, valid: bytes) -> bytes:
    """Swap, drop or nest a part; double a key; claim a huge length; wrap in a tag that means something to a reader."""
    value = cbor2.loads(valid)
    kind = rng.randrange(7)
    path = rng.choice(list(paths(value)))
    if kind <= 2:
        new = rng.choice(odd_cbor_values(rng))
        return cbor2.dumps(replaced(value, path, lambda _: new))
    if kind == 3:
        return cbor2.dumps(replaced(value, path, lambda part: DROP if path[-1] != "tag" else None))
    if kind == 4:
        return _with_double_key(valid, rng.choice(list(value)))
    if kind == 5:
        tag = rng.choice([0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 37, 100, 256, 258, 260, 261, 55799])
        return cbor2.dumps(replaced(value, path, lambda part: cbor2.CBORTag(tag, part)))
    return cbor2.dumps(value) + rng.randbytes(rng.randrange(1, 4))


def _with_double_key(valid: bytes, key: str) -> bytes:
    """One more pair in the outer map, with a key that is there."""
    size = valid[0] & 0x1F
    return bytes([0xA0 | (size + 1)]) + valid[1:] + cbor2.dumps(key) + cbor2.dumps(1)


def break_json(rng: random.Random, valid: bytes) -> bytes:
    value = json.loads(valid)
    kind = rng.randrange(5)
    path = rng.choice(list(paths(value)))
    if kind <= 2:
        new = rng.choice(odd_values(rng))
        return json.dumps(replaced(value, path, lambda _: new)).encode()
    if kind == 3:
        return json.dumps(replaced(value, path, lambda _: DROP)).encode()
    return valid.replace(b"{", b'{"%s": 1, ' % rng.choice(list(value)).encode(), 1)


def cbor_bombs(rng: random.Random) -> bytes:
    """Little on the wire, or cheap to write, and much in memory or time."""
    depth = rng.choice([6, 7, 100, 10_000, 200_000])
    head = rng.choice([b"\x9b", b"\x5b", b"\xbb", b"\x7b", b"\xdb", b"\x9a", b"\x5a"])
    size = 8 if head[0] & 0x1F == 27 else 4
    million = rng.choice([10_000, 100_000, 300_000])
    return rng.choice(
        [
            head + rng.choice([2**31, 2**32 - 1, 10**6]).to_bytes(size, "big"),
            b"\xa1\x61v" + head + (2**32 - 1).to_bytes(size, "big"),
            b"\x81" * depth + b"\x00",
            b"\xa1\x61a" * depth + b"\x00",
            b"\xc6" * depth + b"\x00",
            b"\x9a" + million.to_bytes(4, "big") + b"\x80" * million,
            b"\xa2\x61v\x01\x61x\x9a" + million.to_bytes(4, "big") + b"\xa0" * million,
            b"\x9f" * depth,
            b"\xd8\x1c\x82\xd8\x1d\x00\xd8\x1d\x00" * rng.choice([1, 100]),
            b"\xc4\x82\x1b" + (2**62).to_bytes(8, "big") + b"\x01",
            b"\xc2\x5a" + million.to_bytes(4, "big") + b"\xff" * million,
            b"\xd8\x23\x79\x27\x10" + b"(a*)*" * 2000,
        ]
    )


def json_bombs(rng: random.Random) -> bytes:
    many = rng.choice([1_000, 100_000, 1_300_000])
    return rng.choice(
        [
            b"[" * many + b"]" * many if many < 10**6 else b"[" * many,
            b'{"v":1,"x":[' + b"[]," * many + b"0]}",
            b'{"a":' * many,
            b'{"v":1,"epoch":"e","durable":[[0,' + b"9" * min(many, 100_000) + b']],"refused":[]}',
            b'{"v":' + b"1" * 5000 + b"}",
            b'{"v":1,"epoch":"' + b"x" * many + b'"}',
            b'{"v":1e999,"seq":1e400}',
        ]
    )
