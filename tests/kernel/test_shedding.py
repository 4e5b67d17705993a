"""What an outbox without room gives up, in which order, and what it leaves in its place."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infomae_stream.clock import NS_PER_S, ManualClock
from infomae_stream.errors import OutboxFull
from infomae_stream.gap_spans import GapSpan, joined
from infomae_stream.outbox import Outbox, Record
from infomae_stream.shedding import MAX_GAPS, SheddingPolicy, ShedRecord, StreamRule
from infomae_stream.types import ClockQuality, Gap, StreamId, StreamSpec
from infomae_stream.wire import Ack, decode_chunk, decode_detection, decode_gap

QUALITY = ClockQuality("test", 0, 1000, True)


def spec(stream: str, kind: str, rate_hz: float = 100.0) -> StreamSpec:
    return StreamSpec(StreamId("s01", "n1", stream), kind, rate_hz, ("x",), ("m/s2",), (1.0,))


AUDIO, IMU, SEISMIC = spec("audio", "acoustic"), spec("imu", "imu"), spec("geophone", "seismic")


def open_outbox(path: Path, clock: ManualClock, max_bytes: int = 20_000, **rules: StreamRule) -> Outbox:
    policy = SheddingPolicy(rules=rules)
    return Outbox.open(path / "outbox.sqlite", clock, max_bytes=max_bytes, reserve_bytes=0, shedding=policy)


def put(outbox: Outbox, stream: StreamSpec, second: int, n: int = 100) -> None:
    outbox.put_chunk(stream, second * NS_PER_S, np.zeros((1, n), dtype=np.int32), QUALITY)


def put_detection(outbox: Outbox, second: int) -> None:
    outbox.put_detection(
        site="s01",
        node="n1",
        start_ns=second * NS_PER_S,
        end_ns=(second + 2) * NS_PER_S,
        label="WALKING",
        scores={"WALKING": 1.0},
        modalities=("imu",),
        bundle_version=1,
        bundle_sha256="ab",
    )


def waiting(outbox: Outbox) -> list[Record]:
    return outbox.pending(10**9)


def seconds(outbox: Outbox, leaf: str) -> list[int]:
    """Starts of what waits on topics that end with `leaf`."""
    decode = decode_detection if leaf == "detections" else decode_chunk
    return [decode(r.payload).start_ns // NS_PER_S for r in waiting(outbox) if r.topic.endswith(leaf)]


def gaps(outbox: Outbox) -> list[Gap]:
    return [decode_gap(r.payload) for r in waiting(outbox) if r.topic.endswith("/gap")]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def test_audio_goes_before_other_raw_data_and_the_oldest_first(tmp_path: Path, clock: ManualClock) -> None:
    outbox = open_outbox(tmp_path, clock)
    for second in range(40):
        for stream in (IMU, AUDIO, SEISMIC):
            put(outbox, stream, second)
        put_detection(outbox, second)
        outbox.commit()
        if second == 9:
            assert len(seconds(outbox, "audio/chunk")) < 10
            assert seconds(outbox, "imu/chunk") == seconds(outbox, "geophone/chunk") == list(range(10))
    assert seconds(outbox, "detections") == list(range(40))
    # Audio is all gone but for the newest second; of the others the oldest is.
    assert seconds(outbox, "audio/chunk")[-1:] in ([], [39])
    for leaf in ("imu/chunk", "geophone/chunk"):
        left = seconds(outbox, leaf)
        assert 0 < len(left) < 40 and left == list(range(left[0], 40))
    outbox.close()


def test_detections_go_last_and_leave_a_gap_record_too(tmp_path: Path, clock: ManualClock) -> None:
    outbox = open_outbox(tmp_path, clock, max_bytes=6000)
    for second in range(30):
        put_detection(outbox, second)
    outbox.commit()  # as the detector does: it may exceed the limit
    put(outbox, IMU, 30)
    outbox.commit()
    left = seconds(outbox, "detections")
    assert 0 < len(left) < 30 and left == list(range(left[0], 30))
    assert seconds(outbox, "imu/chunk") == [30]
    (gap,) = gaps(outbox)
    assert (gap.stream.stream, gap.start_ns, gap.n_samples) == ("detections", 0, 30 - len(left))
    assert outbox.take_shed() == {"detections": 30 - len(left)}
    outbox.close()


def test_a_stretch_is_one_gap_record_with_exact_bounds_over_many_transactions(
    tmp_path: Path, clock: ManualClock
) -> None:
    outbox = open_outbox(tmp_path, clock)
    hole_at = 60
    for second in [*range(hole_at), *range(hole_at + 5, 150)]:
        put(outbox, AUDIO, second, n=99)  # 10 ms less than a second: no hole
        outbox.commit()
    left = seconds(outbox, "audio/chunk")
    first, second = sorted(gaps(outbox), key=lambda g: g.start_ns)
    assert (first.start_ns, first.end_ns, first.n_samples) == (0, hole_at * NS_PER_S - 10**7, hole_at * 99)
    assert (second.start_ns, second.end_ns) == (65 * NS_PER_S, left[0] * NS_PER_S - 10**7)
    assert second.n_samples == (left[0] - 65) * 99 and second.reason == "shed"
    assert outbox.take_shed()["audio"] == hole_at + left[0] - 65
    outbox.close()


def test_irregular_times_end_where_their_last_sample_does(tmp_path: Path, clock: ManualClock) -> None:
    outbox = open_outbox(tmp_path, clock, max_bytes=3000)
    times_ns = np.array([0, 1, 500, 777], dtype=np.int64) * 1_000_000
    outbox.put_chunk(IMU, 0, np.zeros((1, 4), dtype=np.int16), QUALITY, times_ns)
    outbox.commit()
    put(outbox, IMU, 10, n=700)
    outbox.commit()
    (gap,) = gaps(outbox)
    assert (gap.start_ns, gap.end_ns, gap.n_samples) == (0, 787_000_000, 4)
    outbox.close()


def test_acknowledged_rows_go_before_any_that_waits(tmp_path: Path, clock: ManualClock) -> None:
    outbox = open_outbox(tmp_path, clock, max_bytes=12_000)
    for second in range(15):
        put(outbox, IMU, second)
    outbox.commit()
    outbox.acknowledge(Ack(outbox.epoch, ((1, 10),)))
    for second in range(15, 20):
        put(outbox, AUDIO, second)
    outbox.commit()
    assert seconds(outbox, "imu/chunk") == list(range(10, 15)) and len(seconds(outbox, "audio/chunk")) == 5
    assert gaps(outbox) == [] and outbox.take_shed() == {}
    tail = [c.seq for c in outbox.tail_chunks(0, 100)]
    assert 1 < tail[0] <= 11 and tail == list(range(tail[0], 21))  # what the detector reads has no hole
    outbox.close()


def test_what_the_hub_has_just_acknowledged_is_not_called_missing(tmp_path: Path, clock: ManualClock) -> None:
    outbox = open_outbox(tmp_path, clock)
    for second in range(27):
        put(outbox, IMU, second)
    outbox.commit()
    outbox.put_ack(Ack(outbox.epoch, ((1, 27),)))
    put(outbox, IMU, 27, n=1000)
    outbox.commit()
    assert gaps(outbox) == [] and not outbox.take_shed()
    outbox.close()


def test_nothing_is_shed_for_what_would_not_fit_even_so(tmp_path: Path, clock: ManualClock) -> None:
    outbox = open_outbox(tmp_path, clock)
    for second in range(5):
        put(outbox, IMU, second)
    outbox.commit()
    put(outbox, IMU, 5, n=10_000)
    with pytest.raises(OutboxFull):
        outbox.commit()
    assert seconds(outbox, "imu/chunk") == list(range(5))
    outbox.close()


def test_the_newest_find_room_also_when_the_limit_was_lowered_a_lot(tmp_path: Path, clock: ManualClock) -> None:
    outbox = open_outbox(tmp_path, clock, max_bytes=10**8)
    for second in range(3000):
        put(outbox, IMU, second, n=1)
    outbox.commit()
    outbox.close()
    outbox = open_outbox(tmp_path, clock, max_bytes=20_000)
    for second in range(3000, 3003):
        put(outbox, IMU, second)
        outbox.commit()
    left = seconds(outbox, "imu/chunk")
    assert left[-3:] == [3000, 3001, 3002] and sum(len(r.payload) for r in waiting(outbox)) <= 20_000
    outbox.close()


def test_priorities_can_be_turned_round_a_stream(tmp_path: Path, clock: ManualClock) -> None:
    outbox = open_outbox(tmp_path, clock, audio=StreamRule(priority=9), imu=StreamRule(priority=1))
    for second in range(20):
        put(outbox, IMU, second)
        put(outbox, AUDIO, second)
        outbox.commit()
    assert len(seconds(outbox, "audio/chunk")) > len(seconds(outbox, "imu/chunk"))
    outbox.close()


def test_what_has_waited_too_long_goes_and_gaps_and_detections_stay(tmp_path: Path, clock: ManualClock) -> None:
    policy = SheddingPolicy(max_age_s=100.0, rules={"imu": StreamRule(max_age_s=0.0)})
    outbox = Outbox.open(tmp_path / "o.sqlite", clock, max_bytes=10**8, reserve_bytes=0, shedding=policy)
    for second in range(5):
        put(outbox, AUDIO, second)
        put(outbox, IMU, second)
        put_detection(outbox, second)
        outbox.commit()
        clock.advance(1)
    assert outbox.shed_expired() == 0
    clock.advance(98)
    assert outbox.shed_expired() == 3
    assert seconds(outbox, "audio/chunk") == [3, 4]
    assert len(seconds(outbox, "imu/chunk")) == len(seconds(outbox, "detections")) == 5
    clock.advance(10**6)
    outbox.shed_expired()
    (gap,) = gaps(outbox)
    assert (gap.start_ns, gap.end_ns, gap.n_samples) == (0, 5 * NS_PER_S, 500)
    outbox.close()


def test_a_disk_at_its_reserve_takes_new_data_in_the_place_of_old(tmp_path: Path, clock: ManualClock) -> None:
    outbox = open_outbox(tmp_path, clock, max_bytes=10**8)
    for second in range(300):
        put(outbox, AUDIO, second, n=1000)
        outbox.commit()
    outbox.close()
    size = (tmp_path / "outbox.sqlite").stat().st_size
    disk = os.statvfs(tmp_path)
    full = Outbox.open(
        tmp_path / "outbox.sqlite",
        clock,
        max_bytes=10**8,
        reserve_bytes=disk.f_blocks * disk.f_frsize * 2,  # never free
        shedding=SheddingPolicy(),
    )
    for second in range(300, 500):
        put(full, AUDIO, second, n=1000)
        full.commit()
    assert seconds(full, "audio/chunk")[-1] == 499 and len(gaps(full)) == 1
    full.close()
    assert (tmp_path / "outbox.sqlite").stat().st_size <= size


def test_the_number_of_gap_records_is_bounded_and_their_sum_exact(tmp_path: Path, clock: ManualClock) -> None:
    outbox = open_outbox(tmp_path, clock, max_bytes=50_000)
    for second in range(0, 2500, 5):  # every chunk stands alone
        put(outbox, AUDIO, second)
        outbox.commit()
    found = gaps(outbox)
    left = seconds(outbox, "audio/chunk")
    assert 1 < len(found) <= MAX_GAPS
    assert sum(g.n_samples for g in found) == 100 * (500 - len(left))
    outbox.close()


def test_a_gap_record_on_its_way_is_not_changed_but_replaced(tmp_path: Path, clock: ManualClock) -> None:
    outbox = open_outbox(tmp_path, clock)
    names: dict[int, bytes] = {}
    for second in range(200):
        put(outbox, AUDIO, second)
        outbox.commit()
        for record in waiting(outbox):
            assert names.setdefault(record.seq, record.payload) == record.payload
    assert len(gaps(outbox)) == 1
    outbox.acknowledge(Ack(outbox.epoch, ((1, outbox.last_seq()),)))
    for second in range(200, 260):  # what the hub has is not told again
        put(outbox, AUDIO, second)
        outbox.commit()
    assert [g.start_ns for g in gaps(outbox)] == [200 * NS_PER_S]
    outbox.close()


def test_nothing_is_shed_when_it_cannot_be_told(tmp_path: Path, clock: ManualClock) -> None:
    outbox = open_outbox(tmp_path, clock)
    told: list[ShedRecord] = []

    def fail(records: list[ShedRecord]) -> None:
        raise OSError("the audit's disk is full")

    n = 0
    while not gaps(outbox):
        put(outbox, AUDIO, n)
        outbox.commit()
        n += 1
    before = [(r.seq, r.payload) for r in waiting(outbox)]
    outbox.on_shed = fail
    put(outbox, AUDIO, n, n=4000)
    with pytest.raises(OSError, match="audit"):
        outbox.commit()
    assert [(r.seq, r.payload) for r in waiting(outbox)] == before
    outbox.on_shed = told.extend
    outbox.commit()
    (gap,) = gaps(outbox)
    assert told and gap.end_ns == max(r.end_ns for r in told)
    outbox.close()


def test_an_outbox_without_policy_refuses(tmp_path: Path, clock: ManualClock) -> None:
    outbox = Outbox.open(tmp_path / "o.sqlite", clock, max_bytes=1000, reserve_bytes=0)
    put(outbox, AUDIO, 0)
    outbox.commit()
    put(outbox, AUDIO, 1)
    with pytest.raises(OutboxFull, match="max_bytes"):
        outbox.commit()
    outbox.close()


def test_a_file_of_the_first_format_is_taken_over(tmp_path: Path, clock: ManualClock) -> None:
    outbox = open_outbox(tmp_path, clock)
    put(outbox, AUDIO, 0)
    outbox.commit()
    outbox.close()
    db = sqlite3.connect(tmp_path / "outbox.sqlite")
    db.executescript(
        "DROP INDEX records_waiting; CREATE INDEX records_pending ON records (seq, bytes) WHERE acked = 0;"
        "PRAGMA user_version = 1;"
    )
    db.close()
    outbox = open_outbox(tmp_path, clock)
    for second in range(1, 100):
        put(outbox, AUDIO, second)
        outbox.commit()
    assert seconds(outbox, "audio/chunk")[-1] == 99 and len(gaps(outbox)) == 1
    outbox.close()


ACTIONS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from([AUDIO, IMU, SEISMIC]), st.integers(1, 400)),
    st.tuples(st.just("detect"), st.none(), st.just(0)),
    st.tuples(st.just("ack"), st.none(), st.integers(0, 60)),
    st.tuples(st.just("age"), st.none(), st.integers(1, 200)),
    st.tuples(st.just("reopen"), st.none(), st.just(0)),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(actions=st.lists(ACTIONS, min_size=20, max_size=120), max_bytes=st.integers(3_000, 12_000))
def test_accepted_is_what_waits_or_was_acknowledged_or_lies_in_a_gap_record(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, StreamSpec | None, int]], max_bytes: int
) -> None:
    path, clock = tmp_path_factory.mktemp("o") / "outbox.sqlite", ManualClock()
    policy = SheddingPolicy(max_age_s=150.0)

    def reopen() -> Outbox:
        made = Outbox.open(path, clock, max_bytes=max_bytes, reserve_bytes=0, shedding=policy)
        made.on_shed = lambda records: shed.update({r.seq: r for r in records})
        return made

    accepted: dict[int, str] = {}
    shed: dict[int, ShedRecord] = {}
    acknowledged: dict[int, Record] = {}
    outbox = reopen()
    for second, (action, stream, n) in enumerate(actions):
        if action == "put" and stream is not None:
            put(outbox, stream, second, n)
        elif action == "detect":
            put_detection(outbox, second)
        elif action == "ack":
            named = waiting(outbox)[: n // 10]
            acknowledged.update((r.seq, r) for r in named)
            for r in named:
                outbox.put_ack(Ack(outbox.epoch, ((r.seq, r.seq),)))
            outbox.write_acks()
        elif action == "age":
            clock.advance(n)
            outbox.shed_expired()
        else:
            outbox.close()
            outbox = reopen()
        before = outbox.last_seq()
        try:
            outbox.commit()
        except OutboxFull:
            assert outbox.unacked_bytes() < max_bytes  # one chunk larger than all there is
        accepted.update((a.seq, a.kind) for a in outbox.accepted_after(before))
        accepted.update((r.seq, "gap") for r in waiting(outbox) if r.topic.endswith("/gap"))
    left = {r.seq: r for r in waiting(outbox)}
    found = [decode_gap(r.payload) for r in [*left.values(), *acknowledged.values()] if r.topic.endswith("/gap")]
    for seq in accepted:
        places = (seq in left) + (seq in acknowledged) + (seq in shed)
        assert places == 1, (seq, accepted[seq])
    for r in shed.values():
        assert any(g.stream == r.stream_id and g.start_ns <= r.start_ns and g.end_ns >= r.end_ns for g in found), r
    told = sum(r.n_samples for r in shed.values() if r.kind != "gap")
    assert sum(g.n_samples for g in found if g.reason == "shed") == told
    assert outbox.unacked_bytes() == sum(len(r.payload) for r in left.values())
    outbox.close()


def test_spans_that_touch_are_one_and_beyond_the_limit_the_closest_are() -> None:
    s = NS_PER_S
    spans = [GapSpan(0, s, 1), GapSpan(s + 1, 2 * s, 2), GapSpan(10 * s, 11 * s, 4), GapSpan(13 * s, 14 * s, 8)]
    assert joined(reversed(spans), 9) == [GapSpan(0, 2 * s, 3), *spans[2:]]
    assert joined(spans, 2) == [GapSpan(0, 2 * s, 3), GapSpan(10 * s, 14 * s, 12)]
