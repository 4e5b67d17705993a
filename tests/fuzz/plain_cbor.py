"""A slow, strict reader of CBOR (RFC 8949) that shares no code with the program's: the judge of what a message says.

Definite lengths, no duplicate keys, text keys, depth at most 8, nothing behind the item. Tags stay tags.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tag:
    number: int
    value: Any


class NotPlain(Exception):
    """The bytes are not one such item."""


def read_item(data: bytes) -> Any:
    """The one item that `data` holds. Raises NotPlain."""
    value, end = _item(data, 0, 0)
    if end != len(data):
        raise NotPlain("bytes follow")
    return value


def _item(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if depth > 8:
        raise NotPlain("too deep")
    major, info = _take(data, at, 1)[0] >> 5, data[at] & 0x1F
    if major == 7:
        return _simple(data, at, info)
    argument, at = _argument(data, at + 1, info)
    if major == 0:
        return argument, at
    if major == 1:
        return -1 - argument, at
    if major in (2, 3):
        raw = _take(data, at, argument)
        try:
            return (raw if major == 2 else raw.decode("utf-8")), at + argument
        except UnicodeDecodeError as e:
            raise NotPlain("not UTF-8") from e
    if major == 6:
        value, at = _item(data, at, depth + 1)
        return Tag(argument, value), at
    items = []
    for _ in range(argument * (2 if major == 5 else 1)):
        value, at = _item(data, at, depth + 1)
        items.append(value)
    return (items if major == 4 else _map(items)), at


def _map(items: list[Any]) -> dict[str, Any]:
    keys = items[::2]
    if not all(isinstance(key, str) for key in keys) or len(set(keys)) < len(keys):
        raise NotPlain("keys")
    return dict(zip(keys, items[1::2], strict=True))


def _argument(data: bytes, at: int, info: int) -> tuple[int, int]:
    if info < 24:
        return info, at
    if info > 27:
        raise NotPlain("indefinite or reserved length")
    size = 1 << (info - 24)
    return int.from_bytes(_take(data, at, size), "big"), at + size


def _simple(data: bytes, at: int, info: int) -> tuple[Any, int]:
    if info in (20, 21, 22):
        return {20: False, 21: True, 22: None}[info], at + 1
    if info in (25, 26, 27):
        size = 1 << (info - 24)
        return struct.unpack({2: ">e", 4: ">f", 8: ">d"}[size], _take(data, at + 1, size))[0], at + 1 + size
    raise NotPlain("a simple value that no message has")


def _take(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise NotPlain("truncated")
    return data[at : at + size]
