from __future__ import annotations

import json
from pathlib import Path

import cbor2
import pytest

from collectors.dead_letters import DeadLetters
from collectors.ingest import Ingest, claimed_identity
from infomae_stream.clock import ManualClock
from infomae_stream.errors import LakeError
from infomae_stream.topics import node_topic, stream_topic
from infomae_stream.types import Chunk, Detection
from infomae_stream.wire import MAX_MESSAGE_BYTES, Ack, decode_ack, encode_chunk, encode_detection, encode_gap
from storage import query
from storage.lake import Lake
from tests.hub_records import START_NS, make_chunk, make_detection, make_gap

TOPIC = stream_topic("s01", "s01-phone", "imu", "chunk")
ACK = node_topic("s01", "s01-phone", "ack")


def open_ingest(tmp_path: Path, clock: ManualClock | None = None, max_inflight_bytes: int = 10_000_000) -> Ingest:
    return Ingest(
        Lake(tmp_path / "lake"),
        DeadLetters(tmp_path / "letters", 1_000_000),
        clock or ManualClock(START_NS),
        commit_interval_s=1.0,
        commit_bytes=100_000,
        max_inflight_bytes=max_inflight_bytes,
    )


def acks_of(ingest: Ingest) -> dict[str, Ack]:
    return {topic: decode_ack(payload) for topic, payload in ingest.commit().acks}


def letters(tmp_path: Path) -> list[str]:
    return sorted(json.loads(path.read_text())["reason"] for path in (tmp_path / "letters").glob("*.json"))


def seqs(tmp_path: Path) -> list[int]:
    return [c.seq for c in query.read_chunks(Lake(tmp_path / "lake"))]


def test_every_kind_of_record_is_stored_and_acknowledged(tmp_path: Path) -> None:
    ingest = open_ingest(tmp_path)
    ingest.take(TOPIC, encode_chunk(make_chunk(1)))
    ingest.take(stream_topic("s01", "s01-phone", "imu", "gap"), encode_gap(make_gap(2)))
    ingest.take(node_topic("s01", "s01-phone", "detections"), encode_detection(make_detection(3)))
    ingest.take(
        stream_topic("s02", "s02-phone", "imu", "chunk"), encode_chunk(make_chunk(9, site="s02", node="s02-phone"))
    )
    outcome = ingest.commit()
    assert {t: decode_ack(p) for t, p in outcome.acks} == {
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
    ack = decode_ack(dict(outcome.acks)[ACK])
    assert ack.refused == ((2, 2, "conflict"),)
    assert outcome.refused["conflict"] == (2 if where == "one batch" else 1)
    assert seqs(tmp_path) == [1]
    assert set(letters(tmp_path)) == {"conflict"}
    # The first one, sent again, does not come back in.
    again = open_ingest(tmp_path)
    again.take(TOPIC, encode_chunk(make_chunk(2)))
    assert acks_of(again)[ACK].refused == ((2, 2, "conflict"),)
    assert seqs(tmp_path) == [1]


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
    assert decode_ack(dict(outcome.acks)[ACK]) == Ack("e1", ((6, 6), (8, 8)), ((7, 7, reason),))
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
    assert dict(outcome.acks) == {ACK: dict(outcome.acks)[ACK]} and decode_ack(outcome.acks[0][1]) == Ack(
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


def test_the_identity_a_message_claims_is_found_in_a_part_of_it() -> None:
    whole = encode_chunk(make_chunk(300, epoch="beef"))
    found = {claimed_identity(whole[:n]) for n in range(len(whole))}
    assert found == {None, ("beef", 300)}
    assert claimed_identity(encode_detection(make_detection(3))) == ("e1", 3)
    assert claimed_identity(cbor2.dumps({"epoch": "e1", "seq": -1})) is None
    assert claimed_identity(cbor2.dumps({"epoch": 5, "seq": 1})) is None
    assert claimed_identity(cbor2.dumps({"epoch": "e1", "seq": True})) is None
