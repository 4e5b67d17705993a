"""Sources into the outbox: backward recordings, clocks that are wrong, a full outbox and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from collectors.intake import Intake, read_position
from collectors.sources import Source, SourceContext, make_source
from collectors.truth_log import TruthLog
from infomae_stream.clock import ManualClock
from infomae_stream.errors import WireError
from infomae_stream.outbox import Outbox
from infomae_stream.shedding import SheddingPolicy, ShedRecord
from infomae_stream.telemetry import EventLog, Telemetry
from infomae_stream.types import Chunk, ClockQuality, Gap
from infomae_stream.wire import Ack, decode_chunk, decode_gap
from tests.recording_files import T0_MS, write_csv

LABELS = {"site": "s01", "node": "s01-phone"}


def source(folder: Path, clock: ManualClock, outbox: Outbox, **options: Any) -> Source:
    context = SourceContext("s01", "s01-phone", folder, clock, lambda stream: read_position(outbox, stream))
    raw = {"type": "replay", "speed": 0, **options}
    return make_source(raw, context, where="t", prefix=())


def intake(sources: list[Source], outbox: Outbox, telemetry: Telemetry, offset_ns: int = 0) -> Intake:
    return Intake(
        sources,
        outbox,
        clock_quality=lambda: ClockQuality("chrony", 0, 500_000_000, False),
        offset_ns=offset_ns,
        telemetry=telemetry,
        log=EventLog("test"),
        **LABELS,
    )


def value(telemetry: Telemetry, name: str, **labels: str) -> float:
    return telemetry.registry.get_sample_value(name, {**LABELS, **labels}) or 0.0


def run(node: Intake, clock: ManualClock) -> int:
    accepted = 0
    for _ in range(1000):
        node.poll()
        accepted += len(node.commit())
        clock.advance(1)
        if node.finished:
            return accepted
    raise AssertionError("the intake does not finish")


def records(outbox: Outbox) -> list[Chunk | Gap]:
    found: list[Chunk | Gap] = []
    for record in outbox.pending(10**9):
        try:
            found.append(decode_chunk(record.payload))
        except WireError:
            found.append(decode_gap(record.payload))
    return found


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def test_a_recording_with_backward_times_is_taken_but_for_those_samples(tmp_path: Path, clock: ManualClock) -> None:
    times = list(range(0, 3000, 10))
    times[50], times[120] = times[50] - 200, times[120] - 15
    write_csv(tmp_path / "a.csv", times)
    outbox = Outbox.open(tmp_path / "o.sqlite", clock, max_bytes=10**8, reserve_bytes=0)
    telemetry = Telemetry()
    run(intake([source(tmp_path, clock, outbox, path="a.csv")], outbox, telemetry), clock)
    chunks = outbox.tail_chunks(0, 100)
    assert sum(c.n_samples for c in chunks) == 298
    refused = value(telemetry, "infomae_samples_refused_total", stream="imu", reason="backward_time")
    assert refused == 2
    assert value(telemetry, "infomae_stream_samples_total", stream="imu") == 298
    outbox.close()


def test_a_wrong_clock_shifts_the_times_and_does_not_know_it(tmp_path: Path, clock: ManualClock) -> None:
    write_csv(tmp_path / "a.csv", [0, 10, 20])
    outbox = Outbox.open(tmp_path / "o.sqlite", clock, max_bytes=10**8, reserve_bytes=0)
    run(intake([source(tmp_path, clock, outbox, path="a.csv")], outbox, Telemetry(), 180_000_000), clock)
    (chunk,) = outbox.tail_chunks(0, 10)
    assert chunk.start_ns == (T0_MS + 180) * 1_000_000
    assert chunk.clock == ClockQuality("chrony", 0, 500_000_000, False, "", T0_MS * 1_000_000)
    outbox.close()


def test_holes_are_counted_in_seconds(tmp_path: Path, clock: ManualClock) -> None:
    write_csv(tmp_path / "a.csv", [0, 10, 20, 1020, 1030])
    outbox = Outbox.open(tmp_path / "o.sqlite", clock, max_bytes=10**8, reserve_bytes=0)
    telemetry = Telemetry()
    run(intake([source(tmp_path, clock, outbox, path="a.csv")], outbox, telemetry), clock)
    assert value(telemetry, "infomae_stream_gap_seconds_total", stream="imu") == pytest.approx(1.0)
    assert [c.n_samples for c in outbox.tail_chunks(0, 10)] == [3, 2]
    outbox.close()


def test_a_full_outbox_costs_one_gap_record_and_the_source_goes_on(tmp_path: Path, clock: ManualClock) -> None:
    write_csv(tmp_path / "a.csv", list(range(0, 60_000, 10)))
    outbox = Outbox.open(tmp_path / "o.sqlite", clock, max_bytes=60_000, reserve_bytes=0)
    telemetry = Telemetry()
    node = intake([source(tmp_path, clock, outbox, path="a.csv", speed=1)], outbox, telemetry)
    for _ in range(40):
        clock.advance(1)
        node.poll()
        node.commit()
    taken = outbox.tail_chunks(0, 100)
    assert 5 < len(taken) < 30
    dropped = value(telemetry, "infomae_chunks_dropped_total", reason="outbox_full")
    assert dropped >= 39 - len(taken)
    # The hub catches up, and there is room again.
    outbox.acknowledge(Ack(outbox.epoch, ((1, taken[-1].seq),)))
    outbox.purge(keep_s=-1)
    for _ in range(12):
        clock.advance(1)
        node.poll()
        node.commit()
    rest = records(outbox)
    gaps = [r for r in rest if isinstance(r, Gap)]
    chunks = [r for r in rest if isinstance(r, Chunk)]
    assert len(gaps) == 1 and gaps[0].reason == "outbox_full"
    assert sum(c.n_samples for c in [*taken, *chunks]) + gaps[0].n_samples == 100 * (40 + 12)
    assert gaps[0].start_ns == taken[-1].start_ns + 10**9
    assert abs(gaps[0].end_ns - chunks[0].start_ns) <= 10**7
    outbox.close()


def test_a_full_outbox_that_stays_full_writes_no_gap_records(tmp_path: Path, clock: ManualClock) -> None:
    write_csv(tmp_path / "a.csv", list(range(0, 60_000, 10)))
    outbox = Outbox.open(tmp_path / "o.sqlite", clock, max_bytes=30_000, reserve_bytes=0)
    node = intake([source(tmp_path, clock, outbox, path="a.csv", speed=1)], outbox, Telemetry())
    for _ in range(100):
        clock.advance(1)
        node.poll()
        node.commit()
    assert not [r for r in records(outbox) if isinstance(r, Gap)]
    assert not node.finished
    # Also when the recording is over: the gap is told as soon as there is room.
    outbox.acknowledge(Ack(outbox.epoch, ((1, outbox.last_seq()),)))
    outbox.purge(keep_s=-1)
    node.commit()
    (gap,) = records(outbox)
    assert isinstance(gap, Gap) and node.finished
    outbox.close()


def test_a_restart_takes_every_sample_once(tmp_path: Path, clock: ManualClock) -> None:
    write_csv(tmp_path / "a.csv", list(range(0, 20_000, 10)))
    path = tmp_path / "o.sqlite"
    for seconds in (3, 7, 0, 30):
        outbox = Outbox.open(path, clock, max_bytes=10**8, reserve_bytes=0)
        node = intake([source(tmp_path, clock, outbox, path="a.csv", speed=1)], outbox, Telemetry())
        for _ in range(seconds):
            clock.advance(0.9)
            node.poll()
            node.commit()
        node.poll()
        outbox.close()  # as kill -9 would: what was not committed is gone
    outbox = Outbox.open(path, clock, max_bytes=10**8, reserve_bytes=0)
    times = [int(t) for c in outbox.tail_chunks(0, 1000) for t in c.sample_times_ns()]
    assert times == [(T0_MS + t) * 1_000_000 for t in range(0, 20_000, 10)]
    outbox.close()


def test_the_truth_log_gets_what_a_kill_kept_from_it_once(tmp_path: Path, clock: ManualClock) -> None:
    write_csv(tmp_path / "a.csv", list(range(0, 20_000, 10)))
    outbox = Outbox.open(tmp_path / "o.sqlite", clock, max_bytes=10**8, reserve_bytes=0)
    log_path = tmp_path / "truth" / "s01-phone.jsonl"
    truth = TruthLog(log_path, outbox, **LABELS)
    node = intake([source(tmp_path, clock, outbox, path="a.csv", speed=1)], outbox, Telemetry())
    for k in range(10):
        clock.advance(1)
        node.poll()
        accepted = node.commit()
        if k < 7:
            truth.add(accepted)  # killed between commit and log after the seventh
    truth.close()
    with log_path.open("ab") as f:
        f.write(b'{"kind": "chunk", "si')  # torn
    TruthLog(log_path, outbox, **LABELS).close()
    lines = [json.loads(line) for line in log_path.read_text(encoding="utf-8").splitlines()]
    assert [(r["seq"], r["n_samples"]) for r in lines] == [(c.seq, c.n_samples) for c in outbox.tail_chunks(0, 100)]
    assert all(r["epoch"] == outbox.epoch and r["crc32"] for r in lines)
    outbox.close()


def shedding_outbox(path: Path, clock: ManualClock, max_bytes: int = 60_000) -> Outbox:
    return Outbox.open(path, clock, max_bytes=max_bytes, reserve_bytes=0, shedding=SheddingPolicy())


def test_with_a_policy_new_samples_are_taken_and_the_truth_log_tells_what_went(
    tmp_path: Path, clock: ManualClock
) -> None:
    write_csv(tmp_path / "a.csv", list(range(0, 120_000, 10)))
    outbox = shedding_outbox(tmp_path / "o.sqlite", clock)
    log_path = tmp_path / "truth" / "s01-phone.jsonl"
    truth = TruthLog(log_path, outbox, **LABELS)
    outbox.on_shed = truth.shed
    node = intake([source(tmp_path, clock, outbox, path="a.csv", speed=1)], outbox, Telemetry())
    for _ in range(100):
        clock.advance(1)
        node.poll()
        truth.add(node.commit())
    truth.close()
    chunks = outbox.tail_chunks(0, 1000)
    (gap,) = [r for r in records(outbox) if isinstance(r, Gap)]
    assert gap.reason == "shed" and gap.end_ns == chunks[0].start_ns
    assert gap.n_samples + sum(c.n_samples for c in chunks) >= 100 * 98
    lines = [json.loads(line) for line in log_path.read_text(encoding="utf-8").splitlines()]
    shed = {r["seq"] for r in lines if r["kind"] == "shed"}
    accepted = {r["seq"] for r in lines if r["kind"] != "shed"}
    assert shed <= accepted and accepted - shed == {r.seq for r in records(outbox)}
    assert all(gap.start_ns <= r["start_ns"] < r["end_ns"] <= gap.end_ns for r in lines if r["kind"] == "shed")
    outbox.close()


def test_a_truth_log_that_ends_with_shed_lines_goes_on_where_it_was(tmp_path: Path, clock: ManualClock) -> None:
    write_csv(tmp_path / "a.csv", list(range(0, 20_000, 10)))
    outbox = shedding_outbox(tmp_path / "o.sqlite", clock, max_bytes=10**7)
    log_path = tmp_path / "truth" / "s01-phone.jsonl"
    truth = TruthLog(log_path, outbox, **LABELS)
    node = intake([source(tmp_path, clock, outbox, path="a.csv", speed=1)], outbox, Telemetry())
    for _ in range(5):
        clock.advance(1)
        node.poll()
        truth.add(node.commit())
    first = outbox.tail_chunks(0, 1)[0]
    stream_id = first.spec.id
    truth.shed([ShedRecord(first.seq, "chunk", stream_id, first.start_ns, first.end_ns, first.n_samples)])
    truth.close()  # killed before the shedding was committed
    TruthLog(log_path, outbox, **LABELS).close()
    lines = [json.loads(line) for line in log_path.read_text(encoding="utf-8").splitlines()]
    seqs = [r["seq"] for r in lines if r["kind"] != "shed"]
    assert seqs == [c.seq for c in outbox.tail_chunks(0, 100)]
    outbox.close()


def test_what_found_no_room_is_told_when_the_node_ends(tmp_path: Path, clock: ManualClock) -> None:
    write_csv(tmp_path / "a.csv", list(range(0, 60_000, 10)))
    outbox = Outbox.open(tmp_path / "o.sqlite", clock, max_bytes=30_000, reserve_bytes=0)
    node = intake([source(tmp_path, clock, outbox, path="a.csv", speed=1)], outbox, Telemetry())
    for _ in range(40):
        clock.advance(1)
        node.poll()
        node.commit()
    clock.advance(0.95)
    node.poll()
    (gap,) = node.close()
    assert gap.kind == "gap"
    (told,) = [r for r in records(outbox) if isinstance(r, Gap)]
    assert told.reason == "outbox_full" and told.start_ns == outbox.tail_chunks(0, 100)[-1].end_ns
    outbox.close()
