"""An ingest that gets more than its disk takes, and a disk that runs out of room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.lake import Lake
from storage.verify import compare
from tests.brokers import HAS_MOSQUITTO, Broker, wait_until
from tests.faults.hub_process import IngestProcess, Sender
from tests.faults.small_disk import SmallDisk, missing_for_mounts
from tests.hub_records import make_chunk

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not HAS_MOSQUITTO, reason="mosquitto is not installed")]
MB = 1_000_000


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker("mosquitto", tmp_path).start()
    yield broker
    broker.stop()


@pytest.fixture
def ingest(tmp_path: Path, broker: Broker) -> Iterator[IngestProcess]:
    process = IngestProcess(tmp_path, broker.port)
    yield process
    if process.process is not None and process.process.poll() is None:
        process.kill()


def most_resident_bytes(ingest: IngestProcess) -> int:
    assert ingest.process is not None
    status = Path(f"/proc/{ingest.process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def test_memory_stays_bounded_when_more_comes_than_the_disk_takes(
    tmp_path: Path, broker: Broker, ingest: IngestProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A quarter of a second for each sync of at most 4 MB: 16 MB/s of disk, against what a broker on loopback delivers.
    monkeypatch.setenv("INFOMAE_FAILPOINTS", "segment.before_sync=sleep:0.25")
    limits = "[ingest]\nmax_inflight_bytes = 12_000_000\ncommit_bytes = 4_000_000\n"
    ingest.config.write_text(ingest.config.read_text().replace("[ingest]\n", limits))
    ingest.start()
    first = Sender(tmp_path / "truth", broker.port, "s02", "s02-phone")
    # Sent once, so that what comes is not more than it must be; a broker that stays up loses nothing.
    sender = Sender(tmp_path / "truth", broker.port, "s01", "s01-phone", resend_after_s=60.0)
    try:
        first.accept(make_chunk(1, site="s02", node="s02-phone", n=16_000))  # 192 kB
        wait_until(lambda: first.step() == 0, what="the first chunk is acknowledged")
        before = most_resident_bytes(ingest)
        for seq in range(2, 402):  # 77 MB
            sender.accept(make_chunk(seq, n=16_000))
        wait_until(lambda: sender.step() == 0, 600, "everything is acknowledged")
        grown = most_resident_bytes(ingest) - before
        assert ingest.stop() == 0
    finally:
        first.close()
        sender.close()
    # 12 MB taken, 3 MB in the session's queue, one batch's columns and pages, the reader's buffer.
    print(f"\ngrown by {grown / MB:.0f} MB")
    assert grown < 50 * MB
    assert compare(tmp_path / "truth", Lake(ingest.lake_path)).passed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if why := missing_for_mounts():
        pytest.skip(why)
    with SmallDisk(tmp_path / "disk", 12 * MB) as disk:
        yield disk.path


def test_commits_leave_the_reserve_and_go_on_by_themselves(tmp_path: Path, broker: Broker, small_disk: Path) -> None:
    ingest = IngestProcess(tmp_path, broker.port, small_disk / "lake")
    ingest.config.write_text(ingest.config.read_text().replace("[ingest]\n", "[ingest]\nreserve_bytes = 6_000_000\n"))
    ballast = small_disk / "ballast"
    ingest.start()
    sender = Sender(tmp_path / "truth", broker.port, "s01", "s01-phone")
    try:
        sender.accept(make_chunk(1))
        wait_until(lambda: sender.step() == 0, what="the first chunk is acknowledged")
        ballast.write_bytes(bytes(7 * MB))
        for seq in range(2, 30):
            sender.accept(make_chunk(seq))
        refused = 'infomae_ingest_failures_total{reason="commit"}'
        wait_until(lambda: sender.step() == 28 and ingest.metric(refused) >= 2, what="commits are refused")
        assert ingest.log().count("commit_refused") == 1 and "stay in reserve" in ingest.log()
        ballast.unlink()
        wait_until(lambda: sender.step() == 0, what="everything is acknowledged after all")
        assert "commits_again" in ingest.log()
        assert ingest.stop() == 0
        assert compare(tmp_path / "truth", Lake(ingest.lake_path)).passed
    finally:
        sender.close()
        if ingest.process is not None and ingest.process.poll() is None:
            ingest.kill()
