from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.hub import mqtt_packets as packets
from collectors.hub.mqtt_packets import Connack, Login, PacketReader, ProtocolError

Delivered = list[tuple[bytes, bytes, bool]]


def reader(level: int, limit: int = 4096) -> tuple[PacketReader, Delivered]:
    delivered: Delivered = []
    return PacketReader(level, limit, lambda *message: delivered.append(message)), delivered


def feed(r: PacketReader, data: bytes, pieces: list[int]) -> list[tuple[int, bytes]]:
    """Give `data` in pieces of these sizes, as a socket would."""
    others, at, i = [], 0, 0
    while at < len(data):
        room = r.space(pieces[i % len(pieces)] if pieces else len(data))
        n = min(len(room), len(data) - at)
        room[:n] = data[at : at + n]
        others += r.feed(n)
        at, i = at + n, i + 1
    return others


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([4, 5]),
    st.lists(st.tuples(st.text(min_size=1, max_size=20), st.binary(max_size=700), st.booleans()), max_size=12),
    st.lists(st.integers(1, 900), min_size=1, max_size=5),
)
def test_messages_come_whole_and_in_order_however_the_bytes_are_cut(
    level: int, messages: list[tuple[str, bytes, bool]], pieces: list[int]
) -> None:
    r, delivered = reader(level)
    data = b"".join(
        packets.publish(i + 1, topic, payload, retain, level) + b"\xd0\x00"
        for i, (topic, payload, retain) in enumerate(messages)
    )
    others = feed(r, data, pieces)
    assert delivered == [(topic.encode(), payload, retain) for topic, payload, retain in messages]
    assert others == [(0xD0, b"")] * len(messages)
    assert bytes(r.acknowledge) == b"".join(b"\x40\x02" + (i + 1).to_bytes(2, "big") for i in range(len(messages)))


def test_a_message_of_qos_0_wants_no_puback() -> None:
    r, delivered = reader(4)
    feed(r, b"\x30\x04\x00\x01xy", [])
    assert delivered == [(b"x", b"y", False)] and not r.acknowledge


def test_properties_of_a_message_are_stepped_over() -> None:
    r, delivered = reader(5)
    properties = b"\x26" + b"\x00\x01k" + b"\x00\xc8" + b"v" * 200  # a user property, longer than 127 bytes
    body = b"\x00\x01x" + b"\x00\x07" + bytes([0x80 | len(properties) & 0x7F, len(properties) >> 7]) + properties + b"y"
    feed(r, b"\x32" + bytes([0x80 | len(body) & 0x7F, len(body) >> 7]) + body, [3])
    assert delivered == [(b"x", b"y", False)] and bytes(r.acknowledge) == b"\x40\x02\x00\x07"


@pytest.mark.parametrize("pieces", [[1 << 20], [100], [1, 4095]])
def test_of_a_message_above_the_limit_the_beginning_comes_and_memory_stays(pieces: list[int]) -> None:
    r, delivered = reader(5, limit=4096)
    data = packets.publish(1, "t", b"h" * 300_000, False, 5) + packets.publish(2, "t", b"next", False, 5)
    feed(r, data, pieces)
    (topic, payload, _), last = delivered
    assert topic == b"t" and 4000 < len(payload) <= 4096 and set(payload) == {ord("h")}
    assert last == (b"t", b"next", False)
    assert len(r._buffer) == 4096


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([4, 5]), st.binary(max_size=300), st.lists(st.integers(1, 50), min_size=1, max_size=3))
def test_garbage_ends_the_connection_and_nothing_else(level: int, data: bytes, pieces: list[int]) -> None:
    r, _ = reader(level, limit=256)
    try:
        for _, body in feed(r, data, pieces):
            for read in (packets.read_puback, lambda b: packets.read_connack(b, level)):
                read(body)
            packets.read_suback(body, level)
    except ProtocolError:
        pass


def test_a_connack_tells_what_the_broker_allows() -> None:
    properties = b"\x21\x00\x14" + b"\x13\x00\x0a" + b"\x12\x00\x02id" + b"\x26\x00\x01a\x00\x01b" + b"\x25\x00"
    body = b"\x00\x00" + bytes([len(properties)]) + properties
    assert packets.read_connack(body, 5) == Connack(0, 20, 10)
    assert packets.read_connack(b"\x00\x05", 4) == Connack(5)
    with pytest.raises(ProtocolError):
        packets.read_connack(b"\x00\x00\x05\x21", 5)


def test_a_connect_carries_the_will_and_the_password() -> None:
    login = Login("id", 30, False, 60, 1000, "user", "secret", ("w", b"gone", True))
    packet = packets.connect(login, 4)
    assert packet[:2] == bytes([0x10, len(packet) - 2])
    assert packet[2:] == b"\x00\x04MQTT\x04\xec\x00\x1e\x00\x02id\x00\x01w\x00\x04gone\x00\x04user\x00\x06secret"
    with_properties = packets.connect(login, 5)
    assert b"\x11\x00\x00\x00\x3c\x21\x03\xe8" in with_properties


def test_lengths_are_read_as_the_standard_writes_them() -> None:
    # MQTT 3.1.1, table 2.4: the least and the greatest value of each number of bytes.
    table = {0: "00", 127: "7f", 128: "8001", 16_383: "ff7f", 16_384: "808001", 2_097_151: "ffff7f",
             2_097_152: "80808001", 268_435_455: "ffffff7f"}  # fmt: skip
    for value, written in table.items():
        data = b"\x30" + bytes.fromhex(written)
        assert packets.read_varint(data, 1) == (value, len(data))
        with pytest.raises(IndexError):
            packets.read_varint(data[:-1], 1)
    with pytest.raises(ProtocolError, match="four bytes"):
        packets.read_varint(b"\x80\x80\x80\x80\x01", 0)
