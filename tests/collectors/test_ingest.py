from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cbor2
import pytest

from collectors.hub.dead_letters import DeadLetters
from collectors.hub.ingest import Ingest, claimed_identity
from collectors.hub.recent_contents import RecentContents
from infomae_stream.clock import NS_PER_S, ManualClock
from infomae_stream.errors import LakeError
from infomae_stream.topics import node_topic, stream_topic
from infomae_stream.types import Chunk, Detection
from infomae_stream.wire import (
    MAX_MESSAGE_BYTES,
    Ack,
    chunk_crc32,
    decode_ack,
    encode_chunk,
    encode_detection,
    encode_gap,
)
from storage import query
from storage.identities import IdentityIndex
from storage.lake import Lake
from storage.retention import RetentionPolicy, retire
from storage.segments import live_files
from tests.hub_records import START_NS, make_chunk, make_detection, make_gap

TOPIC = stream_topic("s01", "s01-phone", "imu", "chunk")
ACK = node_topic("s01", "s01-phone", "ack")


def open_ingest(
    tmp_path: Path,
    clock: ManualClock | None = None,
    max_inflight_bytes: int = 10_000_000,
    reserve_bytes: int = 0,
    lake: Lake | None = None,
) -> Ingest:
    return Ingest(
        lake or Lake(tmp_path / "lake"),
        DeadLetters(tmp_path / "letters", 1_000_000),
        clock or ManualClock(START_NS),
        commit_interval_s=1.0,
        commit_bytes=100_000,
        max_inflight_bytes=max_inflight_bytes,
        reserve_bytes=reserve_bytes,
    )


def acks_of(ingest: Ingest) -> dict[str, Ack]:
    return {topic: ranges_of(payload) for topic, payload in ingest.commit().acks}


def ranges_of(payload: bytes) -> Ack:
    """The ack without its sums, which have a test of their own."""
    return replace(decode_ack(payload), sums=())


def letters(tmp_path: Path) -> list[str]:
    return sorted(json.loads(path.read_text())["reason"] for path in (tmp_path / "letters").glob("*.json"))


def seqs(tmp_path: Path) -> list[int]:
    return [c.seq for c in query.read_chunks(Lake(tmp_path / "lake"))]


def test_an_ack_tells_the_content_that_it_stands_for(tmp_path: Path) -> None:
    ingest = open_ingest(tmp_path)
    for seq in (1, 2, 7):
        ingest.take(TOPIC, encode_chunk(make_chunk(seq)))
    ingest.take(stream_topic("s01", "s01-phone", "imu", "gap"), encode_gap(make_gap(3)))
    content = {seq: make_chunk(seq).start_ns + chunk_crc32(make_chunk(seq)) for seq in (1, 2, 7)}
    first = (content[1] + content[2] + make_gap(3).start_ns) % 2**32
    (_, payload) = ingest.commit().acks[0]
    assert decode_ack(payload) == Ack("e1", ((1, 3), (7, 7)), (), (first, content[7] % 2**32))
    ingest.take(TOPIC, encode_chunk(make_chunk(7)))  # sent again: the same content stands for it
    assert decode_ack(ingest.commit().acks[0][1]).sums == (content[7] % 2**32,)


def test_every_kind_of_record_is_stored_and_acknowledged(tmp_path: Path) -> None:
    ingest = open_ingest(tmp_path)
    ingest.take(TOPIC, encode_chunk(make_chunk(1)))
    ingest.take(stream_topic("s01", "s01-phone", "imu", "gap"), encode_gap(make_gap(2)))
    ingest.take(node_topic("s01", "s01-phone", "detections"), encode_detection(make_detection(3)))
    ingest.take(
        stream_topic("s02", "s02-phone", "imu", "chunk"), encode_chunk(make_chunk(9, site="s02", node="s02-phone"))
    )
    outcome = ingest.commit()
    assert {t: ranges_of(p) for t, p in outcome.acks} == {
        ACK: Ack("e1", durable=((1, 3),)),
        node_topic("s02", "s02-phone", "ack"): Ack("e1", durable=((9, 9),)),
    }
    assert outcome.counts["stored"] == 4
    assert outcome.lag_s == pytest.approx(-10.0), "the newest chunk's acceptance is ten seconds ahead of this clock"
    lake = Lake(tmp_path / "lake")
    assert (len(query.read_chunks(lake)), len(query.read_gaps(lake)), len(query.read_detections(lake))) == (2, 1, 1)
    assert ingest.commit().acks == []


def test_a_record_sent_again_is_acknowledged_again_and_not_written_again(tmp_path: Path) -> None:
    ingest = open_ingest(tmp_path)
    for _ in range(2):
        ingest.take(TOPIC, encode_chunk(make_chunk(1)))
    assert acks_of(ingest) == {ACK: Ack("e1", ((1, 1),))}
    version = Lake(tmp_path / "lake").version("chunks")
    for later in (ingest, open_ingest(tmp_path)):  # with and without memory of it
        later.take(TOPIC, encode_chunk(make_chunk(1)))
        assert acks_of(later) == {ACK: Ack("e1", ((1, 1),))}
    assert Lake(tmp_path / "lake").version("chunks") == version
    assert letters(tmp_path) == []


@pytest.mark.parametrize("where", ["one batch", "a later batch", "after a restart"])
def test_one_identity_with_two_contents_is_quarantined_on_both_sides(tmp_path: Path, where: str) -> None:
    ingest = open_ingest(tmp_path)
    ingest.take(TOPIC, encode_chunk(make_chunk(1)))
    ingest.take(TOPIC, encode_chunk(make_chunk(2)))
    if where != "one batch":
        assert acks_of(ingest) == {ACK: Ack("e1", ((1, 2),))}
    if where == "after a restart":
        ingest = open_ingest(tmp_path)
    ingest.take(TOPIC, encode_chunk(make_chunk(2, seed=99)))
    outcome = ingest.commit()
    ack = ranges_of(dict(outcome.acks)[ACK])
    assert ack.refused == ((2, 2, "conflict"),)
    assert outcome.refused["conflict"] == (2 if where == "one batch" else 1)
    assert seqs(tmp_path) == [1]
    assert set(letters(tmp_path)) == {"conflict"}
    # The first one, sent again, does not come back in.
    again = open_ingest(tmp_path)
    again.take(TOPIC, encode_chunk(make_chunk(2)))
    assert acks_of(again)[ACK].refused == ((2, 2, "conflict"),)
    assert seqs(tmp_path) == [1]


def test_a_retired_record_sent_again_is_acknowledged_and_stays_away(tmp_path: Path) -> None:
    clock = ManualClock(START_NS + 100 * NS_PER_S)
    lake = Lake(tmp_path / "lake", clock)
    ingest = open_ingest(tmp_path, clock, lake=lake)
    ingest.take(TOPIC, encode_chunk(make_chunk(1)))
    ingest.commit()
    retire(lake, RetentionPolicy(max_age_days=1 / 86_400))
    assert seqs(tmp_path) == []
    later = open_ingest(tmp_path, clock)
    later.take(TOPIC, encode_chunk(make_chunk(1)))
    assert acks_of(later)[ACK].durable == ((1, 1),)
    assert seqs(tmp_path) == [] and letters(tmp_path) == []


def test_a_known_record_that_is_not_found_is_neither_durable_nor_refused(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    lake.append_chunks([make_chunk(1)], START_NS)
    (file,) = live_files(lake.table_path("chunks"), lake.version("chunks"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])  # the disk lost its end
    ingest = open_ingest(tmp_path, lake=lake)
    for seq in (1, 2):
        ingest.take(TOPIC, encode_chunk(make_chunk(seq)))
    outcome = ingest.commit()
    ack = decode_ack(dict(outcome.acks)[ACK])
    assert (ack.durable, ack.refused, outcome.counts["missing"]) == (((2, 2),), (), 1)
    restarted = open_ingest(tmp_path)
    restarted.take(TOPIC, encode_chunk(make_chunk(1)))
    assert acks_of(restarted)[ACK].durable == ((1, 1),)
    assert seqs(tmp_path) == [1, 2]
    file.write_bytes(whole)  # and from a backup it came back
    assert seqs(tmp_path) == [1, 2]


def damaged_crc(chunk: Chunk) -> bytes:
    return cbor2.dumps(cbor2.loads(encode_chunk(chunk)) | {"crc32": 1})


@pytest.mark.parametrize(
    ("reason", "payload"),
    [
        ("crc", damaged_crc(make_chunk(7))),
        ("cbor", encode_chunk(make_chunk(7))[:-100]),
        ("schema", cbor2.dumps({"v": 1, "epoch": "e1", "seq": 7})),
        ("size", encode_chunk(make_chunk(7)) + bytes(MAX_MESSAGE_BYTES)),
        ("identity", encode_chunk(make_chunk(7, node="s01-watch"))),
        ("identity", encode_chunk(make_chunk(7, site="s02"))),
    ],
)
def test_poison_is_refused_for_good_and_kept_and_the_rest_goes_on(tmp_path: Path, reason: str, payload: bytes) -> None:
    ingest = open_ingest(tmp_path)
    ingest.take(TOPIC, encode_chunk(make_chunk(6)))
    ingest.take(TOPIC, payload)
    ingest.take(TOPIC, encode_chunk(make_chunk(8)))
    outcome = ingest.commit()
    assert ranges_of(dict(outcome.acks)[ACK]) == Ack("e1", ((6, 6), (8, 8)), ((7, 7, reason),))
    assert outcome.refused == {reason: 1}
    assert seqs(tmp_path) == [6, 8]
    assert letters(tmp_path) == ([] if reason == "size" else [reason]), "too large for the folder: only counted"


@pytest.mark.parametrize("payload", [b"", b"\x00", b"garbage", b"{", b"\xbf\xff", bytes(range(256)), b"\xff" * 5000])
def test_garbage_without_identity_is_counted_kept_once_and_stops_nothing(tmp_path: Path, payload: bytes) -> None:
    ingest = open_ingest(tmp_path)
    for _ in range(3):
        ingest.take(TOPIC, payload)
    ingest.take(TOPIC, encode_chunk(make_chunk(1)))
    outcome = ingest.commit()
    assert dict(outcome.acks) == {ACK: dict(outcome.acks)[ACK]} and ranges_of(outcome.acks[0][1]) == Ack(
        "e1", ((1, 1),)
    )
    assert outcome.refused.total() == 3
    assert len(letters(tmp_path)) == 1


def test_a_broken_copy_does_not_take_away_the_good_one(tmp_path: Path) -> None:
    ingest = open_ingest(tmp_path)
    ingest.take(TOPIC, damaged_crc(make_chunk(1)))
    ingest.take(TOPIC, encode_chunk(make_chunk(1)))
    assert acks_of(ingest) == {ACK: Ack("e1", ((1, 1),))}
    ingest.take(TOPIC, damaged_crc(make_chunk(1)))
    assert acks_of(ingest) == {}
    assert letters(tmp_path) == ["crc"]


def test_a_record_that_no_table_can_hold_is_refused_and_holds_up_nothing(tmp_path: Path) -> None:
    ingest = open_ingest(tmp_path)
    d = make_detection(2)
    half_a_pair = Detection(d.site, d.node, "e1", 2, 1, 2, "\ud800", {"\ud800": 1.0}, ("phone_imu",), 3, "ab")
    ingest.take(node_topic("s01", "s01-phone", "detections"), encode_detection(half_a_pair))
    ingest.take(TOPIC, encode_chunk(make_chunk(1)))
    assert acks_of(ingest) == {ACK: Ack("e1", ((1, 1),), ((2, 2, "schema"),))}
    assert seqs(tmp_path) == [1]


def test_the_window_is_bounded_and_a_commit_is_due_by_time_or_by_bytes(tmp_path: Path) -> None:
    clock = ManualClock(START_NS)
    ingest = open_ingest(tmp_path, clock, max_inflight_bytes=150_000)
    clock.advance(100)
    assert ingest.seconds_until_due() == 1.0
    ingest.take(TOPIC, encode_chunk(make_chunk(1)))
    clock.advance(0.75)
    assert ingest.seconds_until_due() == 0.25
    clock.advance(0.5)
    assert ingest.seconds_until_due() == 0
    ingest.commit()
    seq = 2
    while ingest.has_room:
        ingest.take(TOPIC, encode_chunk(make_chunk(seq, n=1000)))
        seq += 1
    assert ingest.seconds_until_due() == 0
    assert 150_000 <= ingest.inflight_bytes < 170_000


def test_while_the_disk_refuses_nothing_is_acknowledged_and_then_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = open_ingest(tmp_path)
    ingest.take(TOPIC, encode_chunk(make_chunk(1)))
    ingest.take(TOPIC, damaged_crc(make_chunk(2)))

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr("os.fsync", full)
        for _ in range(3):
            with pytest.raises(LakeError, match="No space left"):
                ingest.commit()
    assert acks_of(ingest) == {ACK: Ack("e1", ((1, 1),), ((2, 2, "crc"),))}
    assert seqs(tmp_path) == [1]


def test_what_comes_while_a_batch_is_stored_goes_into_the_next_one(tmp_path: Path) -> None:
    ingest = open_ingest(tmp_path, max_inflight_bytes=20_000)
    for seq in (1, 2, 3):
        ingest.take(TOPIC, encode_chunk(make_chunk(seq)))
    batch = ingest.seal(most_bytes=4_000)
    assert [taken.identity[1] for taken in batch.good] == [1, 2]
    ingest.take(TOPIC, encode_chunk(make_chunk(4)))
    assert ingest.seal() is batch, "one batch at a time, until it is stored"
    assert 4 * 1_200 < ingest.inflight_bytes < 4 * 4_000, "what is being stored still counts"
    outcome = ingest.store(batch)
    assert ranges_of(outcome.acks[0][1]) == Ack("e1", ((1, 2),))
    ingest.release()
    assert acks_of(ingest) == {ACK: Ack("e1", ((3, 4),))}
    assert ingest.inflight_bytes == 0 and seqs(tmp_path) == [1, 2, 3, 4]


def test_the_reserve_of_the_disk_is_not_touched_and_nothing_is_acknowledged(tmp_path: Path) -> None:
    ingest = open_ingest(tmp_path, reserve_bytes=2**60)
    ingest.take(TOPIC, encode_chunk(make_chunk(1)))
    for _ in range(2):
        with pytest.raises(LakeError, match="stay in reserve"):
            ingest.commit()
    assert seqs(tmp_path) == [] and ingest.inflight_bytes > 0


class OvertakenLake(Lake):
    """Another ingest commits between this one's judgement and its commit."""

    overtake: Callable[[], object] | None = None

    def known_identities(self) -> IdentityIndex:
        index = super().known_identities()
        if self.overtake is not None:
            overtake, self.overtake = self.overtake, None
            overtake()
        return index


def test_of_two_ingests_that_race_with_different_bytes_neither_is_readable(tmp_path: Path) -> None:
    lake = OvertakenLake(tmp_path / "lake")
    slow, quick = open_ingest(tmp_path, lake=lake), open_ingest(tmp_path)
    slow.take(TOPIC, encode_chunk(make_chunk(1)))
    slow.take(TOPIC, encode_chunk(make_chunk(2)))
    quick.take(TOPIC, encode_chunk(make_chunk(2, seed=99)))
    lake.overtake = quick.commit
    outcome = slow.commit()
    assert ranges_of(dict(outcome.acks)[ACK]) == Ack("e1", ((1, 1),), ((2, 2, "conflict"),))
    assert outcome.refused == {"conflict": 1} and outcome.counts["stored"] == 1
    assert outcome.counts["duplicate"] == 0
    assert seqs(tmp_path) == [1]
    assert letters(tmp_path) == ["conflict"], "the later bytes; the first ones stay in the lake, hidden, as evidence"


def test_the_identity_a_message_claims_is_found_in_a_part_of_it() -> None:
    whole = encode_chunk(make_chunk(300, epoch="beef"))
    found = {claimed_identity(whole[:n]) for n in range(len(whole))}
    assert found == {None, ("beef", 300)}
    assert claimed_identity(encode_detection(make_detection(3))) == ("e1", 3)
    assert claimed_identity(cbor2.dumps({"epoch": "e1", "seq": -1})) is None
    assert claimed_identity(cbor2.dumps({"epoch": 5, "seq": 1})) is None
    assert claimed_identity(cbor2.dumps({"epoch": "e1", "seq": True})) is None


def test_of_what_was_stored_lately_the_oldest_is_forgotten_first() -> None:
    recent, a, b = RecentContents(4), ("s", "a", "e"), ("s", "b", "e")
    for key, hashes in ((a, {1: 11}), (b, {1: 12}), (a, {2: 13, 3: 14})):
        recent.remember(key, hashes)
    recent.forget((a, 3))
    recent.remember(a, {4: 15, 5: 16})
    assert recent.get((a, 1)) == 11, "until the batch is told"
    recent.forget_oldest()
    assert [recent.get((a, seq)) for seq in (1, 2, 3, 4)] == [None, 13, None, 15]
    assert (b, 1) not in recent and b not in recent._hashes
