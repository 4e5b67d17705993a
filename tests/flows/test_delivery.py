"""Outbox -> uplink -> a hub, without broker and on a manual clock: whatever the network does, nothing is lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from collectors.uplink import Uplink
from infomae_stream.clock import ManualClock
from infomae_stream.errors import WireError
from infomae_stream.outbox import Outbox, Record
from infomae_stream.shedding import SheddingPolicy
from infomae_stream.types import ClockQuality, StreamId, StreamSpec
from infomae_stream.wire import Ack, decode_chunk, encode_ack, seq_ranges

SPEC = StreamSpec(StreamId("s01", "s01-phone", "imu"), "imu", 100.0, ("x",), ("m/s2",), (400.0,))


class FakeHub:
    """Keeps what arrives by identity, and acknowledges what it has, as ingest does."""

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self.have: dict[int, int] = {}
        self.received = 0

    def take(self, record: Record) -> None:
        chunk = decode_chunk(record.payload)
        value = int(chunk.samples_CN[0, 0])
        assert self.have.setdefault(chunk.seq, value) == value
        self.received += 1

    def ack(self, seqs: list[int]) -> bytes:
        return encode_ack(Ack(self.epoch, seq_ranges(seqs)))


def make(tmp_path: Path, clock: ManualClock, max_inflight_bytes: int = 20_000) -> tuple[Outbox, Uplink]:
    outbox = Outbox.open(tmp_path / "outbox.sqlite", clock, max_bytes=10**8, reserve_bytes=0)
    return outbox, Uplink(outbox, clock, max_inflight_bytes=max_inflight_bytes, resend_after_s=10)


def put(outbox: Outbox, n: int, first: int = 0) -> None:
    for i in range(first, first + n):
        outbox.put_chunk(SPEC, i * 10**9, np.full((1, 100), i % 30_000, dtype=np.int16), ClockQuality("t"))
    outbox.commit()


@pytest.mark.parametrize("seed", range(8))
def test_a_network_that_drops_doubles_and_reorders_loses_nothing(tmp_path: Path, seed: int) -> None:
    rng, clock = random.Random(seed), ManualClock()
    outbox, uplink = make(tmp_path, clock)
    hub = FakeHub(outbox.epoch)
    made = 0
    up: list[Record] = []
    down: list[bytes] = []
    for _ in range(2000):
        if made < 120:
            put(outbox, 3, made)
            made += 3
        for record in uplink.due():
            if rng.random() < 0.9:  # else the session has no room
                uplink.sent(record)
                up += [record] * rng.choice([0, 1, 1, 1, 2])
        rng.shuffle(up)
        arrived, up = up[: len(up) // 2 + 1], up[len(up) // 2 + 1 :]
        for record in arrived:
            hub.take(record)
        # One ack for all of a commit; it is dropped, doubled, late like everything else.
        down += [hub.ack([r.seq for r in arrived])] * rng.choice([0, 0, 1, 1, 2])
        rng.shuffle(down)
        while down and rng.random() < 0.6:
            uplink.handle_ack(down.pop())
        if rng.random() < 0.5:
            outbox.write_acks()  # the next commit comes when it comes
        clock.advance(rng.choice([0.1, 1.0, 5.0]))
        if made >= 120 and outbox.unacked_bytes() == 0:
            break
    assert outbox.unacked_bytes() == 0
    assert hub.have == {seq: seq - 1 for seq in range(1, 121)}
    assert hub.received > 120  # the network did double
    outbox.close()


def test_a_published_record_is_kept_until_the_hub_names_it(tmp_path: Path) -> None:
    clock = ManualClock()
    outbox, uplink = make(tmp_path, clock)
    put(outbox, 3)
    for record in uplink.due():
        uplink.sent(record)
    clock.advance(3600)
    outbox.purge(keep_s=0)
    assert len(outbox.pending(10**9)) == 3
    uplink.handle_ack(encode_ack(Ack(outbox.epoch, ((2, 2),))))
    outbox.write_acks()
    clock.advance(1)
    outbox.purge(keep_s=0)
    assert [c.seq for c in outbox.tail_chunks(0, 10)] == [1, 3]
    outbox.close()


def test_what_is_in_flight_is_bounded_and_sent_again_ever_more_rarely(tmp_path: Path) -> None:
    clock = ManualClock()
    outbox, uplink = make(tmp_path, clock, max_inflight_bytes=3000)
    put(outbox, 50)

    def publish() -> list[int]:
        records = uplink.due()
        for record in records:
            uplink.sent(record)
        return [r.seq for r in records]

    first = publish()
    assert 0 < len(first) < 10 and uplink.inflight_bytes <= 3000
    assert publish() == []
    clock.advance(9.9)
    assert publish() == []
    clock.advance(0.2)
    assert publish() == first and uplink.resent == len(first)
    clock.advance(10.1)
    assert publish() == []
    clock.advance(10)
    assert publish() == first
    outbox.close()


def test_a_record_above_the_limit_still_goes(tmp_path: Path) -> None:
    clock = ManualClock()
    outbox, uplink = make(tmp_path, clock, max_inflight_bytes=100)
    put(outbox, 2)
    (record,) = uplink.due()
    uplink.sent(record)
    assert uplink.due() == []
    uplink.handle_ack(encode_ack(Ack(outbox.epoch, ((1, 1),))))
    outbox.write_acks()
    assert [r.seq for r in uplink.due()] == [2]
    outbox.close()


def test_a_restarted_node_sends_again_what_was_in_flight(tmp_path: Path) -> None:
    clock = ManualClock()
    outbox, uplink = make(tmp_path, clock)
    put(outbox, 4)
    for record in uplink.due():
        uplink.sent(record)
    outbox.close()
    again, uplink = make(tmp_path, clock)
    assert [r.seq for r in uplink.due()] == [1, 2, 3, 4]
    again.close()


GARBAGE: list[tuple[str, Callable[[str], bytes]]] = [
    ("not json", lambda epoch: b"\xff\x00"),
    ("no object", lambda epoch: b"[1]"),
    ("range backward", lambda epoch: encode_ack(Ack(epoch, ((5, 1),)))),
    ("never sent", lambda epoch: encode_ack(Ack(epoch, ((1, 10**15),)))),
    ("huge", lambda epoch: b" " * 5_000_000),
]


@pytest.mark.parametrize(("name", "payload"), GARBAGE, ids=[name for name, _ in GARBAGE])
def test_garbage_in_place_of_an_ack_deletes_nothing(tmp_path: Path, name: str, payload: Callable[[str], bytes]) -> None:
    outbox, uplink = make(tmp_path, ManualClock())
    put(outbox, 3)
    with pytest.raises(WireError):
        uplink.handle_ack(payload(outbox.epoch))
    assert len(outbox.pending(10**9)) == 3
    outbox.close()


def test_refused_for_good_ends_the_sending_and_is_told(tmp_path: Path) -> None:
    outbox, uplink = make(tmp_path, ManualClock())
    put(outbox, 3)
    result = uplink.handle_ack(encode_ack(Ack(outbox.epoch, ((1, 1),), ((2, 3, "crc"),))))
    assert outbox.write_acks() == 3 and result.refused == {"crc": 2}
    assert uplink.due() == []
    outbox.close()


def test_an_ack_for_an_older_outbox_changes_nothing(tmp_path: Path) -> None:
    outbox, uplink = make(tmp_path, ManualClock())
    put(outbox, 2)
    uplink.handle_ack(encode_ack(Ack("older", ((1, 2),))))
    assert outbox.write_acks() == 0
    assert len(uplink.due()) == 2
    outbox.close()


def test_a_backlog_goes_at_the_cap_and_what_is_new_goes_beside_it(tmp_path: Path) -> None:
    clock = ManualClock()
    outbox = Outbox.open(tmp_path / "outbox.sqlite", clock, max_bytes=10**8, reserve_bytes=0)
    put(outbox, 200)
    size = len(outbox.pending(1)[0].payload)
    cap = 5 * size
    uplink = Uplink(outbox, clock, max_inflight_bytes=10**7, resend_after_s=1e6, max_bytes_per_s=cap)

    def publish(seconds: int) -> int:
        count = 0
        for _ in range(seconds * 20):
            clock.advance(0.05)
            for record in uplink.due():
                uplink.sent(record)
                count += 1
        return count

    assert publish(10) == pytest.approx(50, abs=7)
    before = publish(10)
    for _ in range(10):
        put(outbox, 3, outbox.last_seq())
        before += publish(1)
    assert before == pytest.approx(50 + 50 + 30, abs=5)
    outbox.close()


def test_a_node_that_makes_more_than_the_cap_is_not_held_back(tmp_path: Path) -> None:
    clock = ManualClock()
    outbox = Outbox.open(tmp_path / "outbox.sqlite", clock, max_bytes=10**8, reserve_bytes=0)
    uplink = Uplink(outbox, clock, max_inflight_bytes=10**7, resend_after_s=1e6, max_bytes_per_s=100)
    for second in range(20):
        put(outbox, 5, second * 5)
        for _ in range(20):
            clock.advance(0.05)
            for record in uplink.due():
                uplink.sent(record)
        assert outbox.last_seq() - len(uplink._inflight) <= 1
    outbox.close()


def test_after_a_reconnect_a_backlog_waits_a_random_time_and_a_short_one_does_not(tmp_path: Path) -> None:
    def first_s(seed: int, backlog: int) -> float:
        clock = ManualClock()
        outbox = Outbox.open(tmp_path / f"{seed}-{backlog}.sqlite", clock, max_bytes=10**8, reserve_bytes=0)
        put(outbox, backlog)
        uplink = Uplink(
            outbox,
            clock,
            max_inflight_bytes=10**6,
            resend_after_s=10,
            max_bytes_per_s=5_000,
            start_jitter_s=10.0,
            rng=random.Random(seed),
        )
        uplink.connected()
        waited_s = 0.0
        while not uplink.due():
            clock.advance(0.1)
            waited_s += 0.1
        outbox.close()
        return waited_s

    waits = [first_s(seed, 60) for seed in range(8)]
    assert all(w == pytest.approx(random.Random(seed).uniform(0, 10), abs=0.11) for seed, w in enumerate(waits))
    assert first_s(1, 3) == 0.0


@pytest.mark.parametrize(("ack_s", "again_from"), [(2, 0), (25, 75), (45, 135)])
def test_a_hub_that_is_slow_is_not_sent_everything_twice(tmp_path: Path, ack_s: int, again_from: int) -> None:
    clock = ManualClock()
    outbox, uplink = make(tmp_path, clock, 10**7)
    sent: list[tuple[int, int]] = []  # second, seq
    resent_late = 0
    for second in range(300):
        put(outbox, 1, second)
        before = uplink.resent
        for record in uplink.due():
            uplink.sent(record)
            sent.append((second, record.seq))
        if second > again_from:  # by then it has learned how long acks take
            resent_late += uplink.resent - before
        due = [seq for at, seq in sent if at == second - ack_s]
        if due:
            uplink.handle_ack(encode_ack(Ack(outbox.epoch, seq_ranges(sorted(due)))))
        clock.advance(1)
    assert resent_late == 0
    lost = next(seq for at, seq in reversed(sent) if at == 299)
    clock.advance(61)
    assert lost in {r.seq for r in uplink.due()}  # patience has an end
    outbox.close()


def test_what_was_shed_on_its_way_leaves_the_flight(tmp_path: Path) -> None:
    clock = ManualClock()
    outbox = Outbox.open(tmp_path / "o.sqlite", clock, max_bytes=8_000, reserve_bytes=0, shedding=SheddingPolicy())
    uplink = Uplink(outbox, clock, max_inflight_bytes=10**6, resend_after_s=10)
    put(outbox, 3)
    for record in uplink.due():
        uplink.sent(record)
    for first in range(3, 18):
        put(outbox, 1, first)
    assert outbox.record(1) is None  # shed while the broker had it
    uplink.handle_ack(encode_ack(Ack(outbox.epoch, ((1, 1),))))  # and it arrived all the same
    outbox.write_acks()
    clock.advance(11)
    again = uplink.due()
    for record in again:
        uplink.sent(record)
    uplink.handle_ack(encode_ack(Ack(outbox.epoch, seq_ranges([r.seq for r in again]))))
    outbox.write_acks()
    assert outbox.unacked_bytes() == uplink.inflight_bytes == 0
    outbox.close()
