"""MQTT packets as bytes, both ways, for protocol levels 4 (3.1.1) and 5: as much as a subscriber with QoS 1 needs.

Numbers refer to the OASIS standards "MQTT Version 3.1.1" and "MQTT Version 5.0".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

LEVELS: Final = {"3.1.1": 4, "5": 5}
CONNACK, PUBLISH, PUBACK, SUBACK, DISCONNECT = 0x20, 0x30, 0x40, 0x90, 0xE0  # first byte, flags zero
PINGREQ: Final = b"\xc0\x00"
PUBACK_HEAD: Final = b"\x40\x02"
FAILURE: Final = 0x80  # reason codes from here on are errors
_SESSION_EXPIRY, _RECEIVE_MAXIMUM, _SERVER_KEEP_ALIVE = 17, 33, 19
# Properties by the size of their value: 0 for a variable-length integer, -1 for text or data, -2 for a pair of texts.
_PROPERTY_SIZES: Final = {
    **dict.fromkeys((1, 23, 25, 36, 37, 40, 41, 42), 1),
    **dict.fromkeys((19, 33, 34, 35), 2),
    **dict.fromkeys((2, 17, 24, 39), 4),
    **dict.fromkeys((3, 8, 9, 18, 21, 22, 26, 28, 31), -1),
    11: 0,
    38: -2,
}


class ProtocolError(OSError):
    """The other side does not speak MQTT; the connection is given up like one that broke."""


@dataclass(frozen=True, slots=True)
class Login:
    """What CONNECT says. `will`: (topic, payload, retain), QoS 1. `expiry_s`: how long the broker keeps the session."""

    client_id: str
    keepalive_s: int
    clean: bool
    expiry_s: int = 0
    receive_maximum: int = 65_535
    username: str = ""
    password: str = ""
    will: tuple[str, bytes, bool] | None = None


@dataclass(frozen=True, slots=True)
class Connack:
    """`code` 0: accepted. `receive_maximum`: how many of our messages may wait for the broker's PUBACK."""

    code: int
    receive_maximum: int = 65_535
    keepalive_s: int | None = None


def connect(login: Login, level: int) -> bytes:
    flags, payload = (0x02 if login.clean else 0), _text(login.client_id)
    if login.will is not None:
        topic, message, retain = login.will
        flags |= 0x04 | 0x08 | (0x20 if retain else 0)
        payload += (b"\x00" if level == 5 else b"") + _text(topic) + _data(message)
    if login.username:
        flags |= 0x80
        payload += _text(login.username)
        if login.password:
            flags |= 0x40
            payload += _text(login.password)
    head = _text("MQTT") + bytes([level, flags]) + struct.pack("!H", login.keepalive_s)
    if level == 5:
        properties = struct.pack("!BIBH", _SESSION_EXPIRY, login.expiry_s, _RECEIVE_MAXIMUM, login.receive_maximum)
        head += _varint(len(properties)) + properties
    return _packet(0x10, head + payload)


def subscribe(packet_id: int, subscriptions: Sequence[tuple[str, int]], level: int) -> bytes:
    filters = b"".join(_text(topic) + bytes([qos]) for topic, qos in subscriptions)
    return _packet(0x82, struct.pack("!H", packet_id) + (b"\x00" if level == 5 else b"") + filters)


def publish(packet_id: int, topic: str, payload: bytes, retain: bool, level: int) -> bytes:
    """QoS 1; QoS 0 with packet id 0."""
    head = _text(topic) + (struct.pack("!H", packet_id) if packet_id else b"") + (b"\x00" if level == 5 else b"")
    return _packet(PUBLISH | (0x02 if packet_id else 0) | int(retain), head + payload)


def disconnect(level: int) -> bytes:
    """Without publishing the will."""
    return b"\xe0\x00" if level == 4 else b"\xe0\x02\x00\x00"


def read_connack(body: bytes, level: int) -> Connack:
    """Raises ProtocolError."""
    try:
        code, found = body[1], _properties(body, 2) if level == 5 and len(body) > 2 else {}
    except (IndexError, KeyError, struct.error) as e:
        raise ProtocolError(f"CONNACK cannot be read: {e!r}") from e
    return Connack(code, found.get(_RECEIVE_MAXIMUM, 65_535), found.get(_SERVER_KEEP_ALIVE))


def read_suback(body: bytes, level: int) -> list[int]:
    """Reason codes, one a filter. Raises ProtocolError."""
    try:
        start = 2
        if level == 5:
            size, start = read_varint(body, 2)
            start += size
        return list(body[start:])
    except IndexError as e:
        raise ProtocolError("SUBACK cannot be read") from e


def read_puback(body: bytes) -> tuple[int, int]:
    """(packet id, reason code). Raises ProtocolError."""
    if len(body) < 2:
        raise ProtocolError("PUBACK is too short")
    return int.from_bytes(body[:2], "big"), body[2] if len(body) > 2 else 0


def read_varint(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """(value, where it ends). Raises IndexError when more bytes are needed, ProtocolError after four."""
    # Spelled out, because every message that comes has one; most have three bytes.
    first = data[at]
    if first < 0x80:
        return first, at + 1
    second = data[at + 1]
    if second < 0x80:
        return first & 0x7F | second << 7, at + 2
    third = data[at + 2]
    if third < 0x80:
        return first & 0x7F | (second & 0x7F) << 7 | third << 14, at + 3
    fourth = data[at + 3]
    if fourth < 0x80:
        return first & 0x7F | (second & 0x7F) << 7 | (third & 0x7F) << 14 | fourth << 21, at + 4
    raise ProtocolError("a length of more than four bytes")


Deliver = Callable[[bytes, bytes, bool], None]  # topic, payload, retain


class PacketReader:
    """Cuts a stream of bytes into packets. Memory: one buffer of `limit` bytes, however large a packet claims to be.

    `deliver` gets the PUBLISH packets; packet ids that want a PUBACK gather in `acknowledge`, as PUBACK packets ready
    to send. Of a PUBLISH above `limit` the first bytes are delivered and the rest is read and thrown away, so that its
    consumer can refuse it by name and by size.
    """

    def __init__(self, level: int, limit: int, deliver: Deliver) -> None:
        self._level = level
        self._deliver = deliver
        self._buffer = bytearray(limit)
        self._view = memoryview(self._buffer)
        self._end = 0
        self._skip = 0  # bytes of a packet that was too large, still to come
        self.acknowledge = bytearray()

    def space(self, most: int) -> memoryview:
        """Where to put the next bytes, at most `most` of them. Never empty."""
        if self._skip:
            return self._view[: min(self._skip, len(self._buffer), max(most, 1))]
        return self._view[self._end : self._end + max(most, 1)]

    def feed(self, n: int) -> list[tuple[int, bytes]]:
        """`n` bytes were put there. Returns packets other than PUBLISH as (first byte without flags, body).

        Raises ProtocolError.
        """
        if self._skip:
            self._skip -= n
            return []
        buffer, at, end = self._buffer, 0, self._end + n
        others = []
        while end - at >= 2:
            try:
                size, start = read_varint(buffer, at + 1)
            except IndexError:
                break
            stop = start + size
            if stop > end:
                if end - at < len(buffer):
                    break
                self._skip, stop = stop - end, end
            first = buffer[at]
            if first & 0xF0 == PUBLISH:
                self._publish(first, start, stop)
            elif self._skip:
                raise ProtocolError(f"a packet of type {first >> 4} with {size} bytes")
            else:
                others.append((first & 0xF0, bytes(self._view[start:stop])))
            at = stop
        self._end = end - at
        if at:
            buffer[: self._end] = buffer[at:end]
        return others

    def _publish(self, first: int, start: int, stop: int) -> None:
        if stop - start < 2:
            raise ProtocolError("PUBLISH without a topic")
        buffer, view = self._buffer, self._view
        topic_at = start + 2
        payload_at = topic_end = topic_at + (buffer[start] << 8 | buffer[start + 1])
        if first & 0x06:
            payload_at += 2
            self.acknowledge += PUBACK_HEAD + buffer[topic_end:payload_at]
        if self._level == 5:
            size = buffer[payload_at] if payload_at < stop else 0
            payload_at += 1 + size
            if size >= 0x80:
                at = payload_at - 1 - size
                size, taken = read_varint(bytes(buffer[at : min(at + 4, stop)]) + bytes(4), 0)
                payload_at = at + taken + size
        if payload_at > stop:
            raise ProtocolError("PUBLISH is shorter than its head")
        self._deliver(bytes(view[topic_at:topic_end]), bytes(view[payload_at:stop]), first & 0x01 == 1)


def _properties(body: bytes, at: int) -> dict[int, int]:
    """The numeric ones. Raises IndexError or KeyError."""
    size, at = read_varint(body, at)
    end, found = at + size, {}
    while at < end:
        name, at = body[at], at + 1
        kind = _PROPERTY_SIZES[name]
        if kind > 0:
            found[name] = int.from_bytes(body[at : at + kind], "big")
            at += kind
        elif kind == 0:
            _, at = read_varint(body, at)
        for _ in range(-kind):
            at += 2 + int.from_bytes(body[at : at + 2], "big")
    return found


def _packet(first: int, body: bytes) -> bytes:
    return bytes([first]) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def _text(text: str) -> bytes:
    return _data(text.encode())


def _data(data: bytes) -> bytes:
    return struct.pack("!H", len(data)) + data
