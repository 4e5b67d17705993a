"""The outbox: D1, D4, sequence numbers, full disks, kill -9."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from infomae_stream.clock import ManualClock
from infomae_stream.errors import OutboxError, OutboxFull, WireError
from infomae_stream.outbox import Outbox
from infomae_stream.types import ClockQuality, StreamId, StreamSpec
from infomae_stream.wire import Ack, content_sum, decode_chunk, decode_detection, decode_gap

SPEC = StreamSpec(StreamId("s01", "s01-phone", "imu"), "imu", 100.0, ("x", "y"), ("m/s2", "m/s2"), (400.0, 400.0))
QUALITY = ClockQuality("test", 0, 1000, True)
SECOND = 1_000_000_000


def open_outbox(path: Path, clock: ManualClock, max_bytes: int = 10_000_000, reserve_bytes: int = 0) -> Outbox:
    return Outbox.open(path, clock, max_bytes=max_bytes, reserve_bytes=reserve_bytes)


def put(outbox: Outbox, second: int, n: int = 100) -> None:
    samples_CN = np.full((2, n), second % 1000, dtype=np.int16)
    outbox.put_chunk(SPEC, second * SECOND, samples_CN, QUALITY)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def outbox(tmp_path: Path, clock: ManualClock) -> Iterator[Outbox]:
    made = open_outbox(tmp_path / "state" / "outbox.sqlite", clock)
    yield made
    made.close()


def test_nothing_is_accepted_before_the_commit(outbox: Outbox) -> None:
    put(outbox, 1)
    assert outbox.pending(10_000) == []
    (accepted,) = outbox.commit()
    (record,) = outbox.pending(10_000)
    assert (accepted.seq, accepted.kind, accepted.n_samples) == (record.seq, "chunk", 100) == (1, "chunk", 100)
    chunk = decode_chunk(record.payload)
    assert (chunk.seq, chunk.epoch, chunk.start_ns) == (1, outbox.epoch, SECOND)
    assert record.topic == "infomae/v1/s01/s01-phone/imu/chunk"


def test_the_truth_carries_the_checksum_that_travels(outbox: Outbox) -> None:
    import cbor2

    put(outbox, 7)
    (accepted,) = outbox.commit()
    assert cbor2.loads(outbox.pending(1)[0].payload)["crc32"] == accepted.crc32


def test_all_kinds_share_one_sequence_across_two_openers(outbox: Outbox, tmp_path: Path, clock: ManualClock) -> None:
    detector = open_outbox(outbox.path, clock)
    put(outbox, 1)
    outbox.put_gap(SPEC.id, 0, SECOND, "outbox_full", 100)
    detector.put_detection(
        site="s01",
        node="s01-phone",
        start_ns=0,
        end_ns=SECOND,
        label="WALKING",
        scores={"WALKING": 1.0},
        modalities=("imu",),
        bundle_version=1,
        bundle_sha256="ab",
    )
    assert [a.seq for a in outbox.commit()] == [1, 2]
    assert [a.seq for a in detector.commit()] == [3]
    records = outbox.pending(1_000_000)
    assert decode_gap(records[1].payload).reason == "outbox_full"
    assert decode_detection(records[2].payload).seq == 3
    assert detector.epoch == outbox.epoch
    detector.close()


def test_only_an_ack_of_this_epoch_takes_records_off(outbox: Outbox) -> None:
    for second in range(5):
        put(outbox, second)
    outbox.commit()
    assert outbox.acknowledge(Ack("another", ((1, 5),))) == 0
    assert outbox.acknowledge(Ack(outbox.epoch, ((1, 2), (4, 4)))) == 3
    assert [r.seq for r in outbox.pending(1_000_000)] == [3, 5]
    assert outbox.acknowledge(Ack(outbox.epoch, ((1, 2),))) == 0  # a repeated ack changes nothing


def test_an_ack_of_other_content_takes_nothing_off(outbox: Outbox) -> None:
    for second in range(4):
        put(outbox, second)
    accepted = outbox.commit()
    sums = [content_sum(a.start_ns, a.crc32) for a in accepted]
    right = Ack(outbox.epoch, ((1, 2), (4, 4)), (), ((sums[0] + sums[1]) % 2**32, (sums[3] + 1) % 2**32))
    assert outbox.put_ack(right) == [(1, 2)]
    assert outbox.write_acks() == 2
    assert [r.seq for r in outbox.pending(1_000_000)] == [3, 4]


def test_an_ack_over_records_that_are_gone_waits_for_one_that_can_be_checked(
    outbox: Outbox, clock: ManualClock
) -> None:
    for second in range(2):
        put(outbox, second)
    sums = [content_sum(a.start_ns, a.crc32) for a in outbox.commit()]
    outbox.acknowledge(Ack(outbox.epoch, ((1, 1),), (), (sums[0],)))
    clock.advance(61)
    outbox.purge(keep_s=60)
    assert outbox.acknowledge(Ack(outbox.epoch, ((1, 2),), (), (sum(sums) % 2**32,))) == 0
    assert outbox.acknowledge(Ack(outbox.epoch, ((2, 2),), (), (sums[1],))) == 1


def test_an_ack_for_what_was_never_sent_is_refused(outbox: Outbox) -> None:
    put(outbox, 1)
    outbox.commit()
    with pytest.raises(WireError, match="do not exist"):
        outbox.acknowledge(Ack(outbox.epoch, ((0, 2**61),)))
    assert len(outbox.pending(1_000_000)) == 1


def test_acknowledged_records_stay_for_the_detector_and_then_go(outbox: Outbox, clock: ManualClock) -> None:
    put(outbox, 1)
    put(outbox, 2)
    outbox.commit()
    outbox.acknowledge(Ack(outbox.epoch, ((1, 1),), ((2, 2, "crc"),)))
    assert outbox.purge(keep_s=60) == 0
    assert [c.seq for c in outbox.tail_chunks(0, 10)] == [1, 2]
    clock.advance(61)
    assert outbox.purge(keep_s=60) == 2
    assert outbox.tail_chunks(0, 10) == []


def test_purge_never_takes_what_waits(outbox: Outbox, clock: ManualClock) -> None:
    put(outbox, 1)
    outbox.commit()
    clock.advance(1e6)
    assert outbox.purge(keep_s=0) == 0
    assert len(outbox.pending(1)) == 1


def test_sequence_numbers_are_never_used_again(outbox: Outbox, clock: ManualClock) -> None:
    put(outbox, 1)
    outbox.commit()
    outbox.acknowledge(Ack(outbox.epoch, ((1, 1),)))
    clock.advance(1)
    outbox.purge(keep_s=0)
    again = open_outbox(outbox.path, clock)
    put(again, 2)
    assert again.commit()[0].seq == 2
    again.close()


def test_pending_is_bounded_in_bytes_but_gives_at_least_one(outbox: Outbox) -> None:
    for second in range(10):
        put(outbox, second)
    outbox.commit()
    one = len(outbox.pending(1)[0].payload)
    assert len(outbox.pending(1)) == 1
    assert len(outbox.pending(3 * one + 10)) == 3
    assert [r.seq for r in outbox.pending(10**9, after_seq=8)] == [9, 10]


def test_totals_follow_the_records(outbox: Outbox, clock: ManualClock) -> None:
    assert outbox.unacked_bytes() == 0 and outbox.oldest_unacked_ns() is None
    put(outbox, 1)
    began_ns = clock.now_ns()
    outbox.commit()
    clock.advance(5)
    put(outbox, 2)
    outbox.commit()
    assert outbox.unacked_bytes() == sum(len(r.payload) for r in outbox.pending(10**9))
    assert outbox.oldest_unacked_ns() == began_ns
    outbox.acknowledge(Ack(outbox.epoch, ((1, 2),)))
    assert outbox.unacked_bytes() == 0


def test_state_is_written_with_the_records_or_not_at_all(tmp_path: Path, clock: ManualClock) -> None:
    outbox = open_outbox(tmp_path / "outbox.sqlite", clock, max_bytes=2000)
    outbox.put_state("position/imu", b"1")
    put(outbox, 1)
    outbox.commit()
    outbox.put_state("position/imu", b"2")
    put(outbox, 2, n=2000)
    with pytest.raises(OutboxFull):
        outbox.commit()
    assert outbox.get_state("position/imu") == b"1"
    assert outbox.streams() == [SPEC]
    outbox.close()


def test_the_byte_limit_refuses_chunks_whole_and_lets_gaps_in(tmp_path: Path, clock: ManualClock) -> None:
    outbox = open_outbox(tmp_path / "outbox.sqlite", clock, max_bytes=5000)
    for second in range(4):
        put(outbox, second, n=200)
    outbox.commit()
    put(outbox, 10, n=200)
    put(outbox, 11, n=200)
    with pytest.raises(OutboxFull, match="max_bytes"):
        outbox.commit()
    assert len(outbox.pending(10**9)) == 4
    assert outbox.commit() == []  # the refused ones are not tried again behind the caller's back
    outbox.put_gap(SPEC.id, 10 * SECOND, 12 * SECOND, "outbox_full", 400)
    assert outbox.commit()[0].seq == 5
    outbox.acknowledge(Ack(outbox.epoch, ((1, 5),)))
    clock.advance(1)
    outbox.purge(0)
    put(outbox, 12)
    assert outbox.commit()[0].seq == 6
    outbox.close()


def test_the_reserve_of_the_disk_is_left_alone(tmp_path: Path, clock: ManualClock) -> None:
    free = os.statvfs(tmp_path)
    outbox = open_outbox(tmp_path / "outbox.sqlite", clock, reserve_bytes=free.f_blocks * free.f_frsize * 2)
    put(outbox, 1)
    with pytest.raises(OutboxFull, match="free"):
        outbox.commit()
    outbox.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("a tmpfs of 1 MB needs root to mount; test_the_byte_limit... covers the policy without it")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_refuses_whole_commits_and_recovers_without_a_restart(small_disk: Path, clock: ManualClock) -> None:
    outbox = open_outbox(small_disk / "outbox.sqlite", clock)
    accepted: list[int] = []

    def fill() -> None:
        for second in range(10_000):
            put(outbox, second, n=2000)
            put(outbox, second, n=2000)
            accepted.extend(a.seq for a in outbox.commit())

    with pytest.raises(OutboxFull):
        fill()
    assert accepted and len(accepted) % 2 == 0
    assert [r.seq for r in outbox.pending(10**9)] == accepted
    for _ in range(3):  # it stays full, and stays whole
        put(outbox, 1, n=200_000)
        with pytest.raises(OutboxFull):
            outbox.commit()
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    outbox.acknowledge(Ack(outbox.epoch, ((1, accepted[-1]),)))
    put(outbox, 2)
    assert outbox.commit()[0].seq == accepted[-1] + 1
    outbox.close()
    with sqlite3.connect(small_disk / "outbox.sqlite") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


def test_a_foreign_file_is_refused_with_its_name(tmp_path: Path, clock: ManualClock) -> None:
    path = tmp_path / "outbox.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(OutboxError, match=r"outbox\.sqlite"):
        open_outbox(path, clock)


WRITER = """
    import sys
    from pathlib import Path
    import numpy as np
    from infomae_stream.clock import SystemClock
    from infomae_stream.outbox import Outbox
    from infomae_stream.types import ClockQuality, StreamId, StreamSpec
    spec = StreamSpec(StreamId("s01", "n", "imu"), "imu", 100.0, ("x",), ("m/s2",), (1.0,))
    outbox = Outbox.open(Path(sys.argv[1]), SystemClock(), max_bytes=10**9, reserve_bytes=0)
    n = outbox.last_seq()
    while True:
        for _ in range(5):
            n += 1
            outbox.put_chunk(spec, n, np.full((1, 50), n % 30000, dtype=np.int16), ClockQuality("t"))
        outbox.put_state("position/imu", str(n).encode())
        print(outbox.commit()[-1].seq, flush=True)
"""


def test_kill_9_loses_nothing_that_was_accepted_and_doubles_nothing(tmp_path: Path, clock: ManualClock) -> None:
    path = tmp_path / "outbox.sqlite"
    for round_ in range(4):
        command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            said = 0
            for line in writer.stdout:
                said = int(line)
                if said >= (round_ + 1) * 40:
                    break
            writer.send_signal(signal.SIGKILL)
            rest = [int(line) for line in writer.stdout.read().split("\n") if line.strip()]
            said = max([said, *rest])
        outbox = open_outbox(path, clock)
        chunks = outbox.tail_chunks(0, 10**6)
        assert [c.seq for c in chunks] == list(range(1, len(chunks) + 1))
        assert all(int(c.samples_CN[0, 0]) == c.start_ns % 30000 == c.seq % 30000 for c in chunks)
        assert len(chunks) >= said
        assert outbox.get_state("position/imu") == str(len(chunks)).encode()
        outbox.close()
