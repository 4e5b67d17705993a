"""Ingest as a process, beside what the rows of the fault matrix show: its readers, garbage, a clean stop."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infomae_stream.errors import LakeError
from storage import query
from storage.lake import Lake
from storage.verify import compare
from tests.brokers import HAS_MOSQUITTO, Broker, wait_until
from tests.faults.hub_process import IngestProcess, Sender
from tests.hub_records import make_chunk

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not HAS_MOSQUITTO, reason="mosquitto is not installed")]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker("mosquitto", tmp_path).start()
    yield broker
    broker.stop()


@pytest.fixture
def ingest(tmp_path: Path, broker: Broker) -> Iterator[IngestProcess]:
    process = IngestProcess(tmp_path, broker.port)
    process.start()
    yield process
    if process.process is not None and process.process.poll() is None:
        process.kill()


class ReaderOfVersions(threading.Thread):
    """Reads while commits go on: a version never changes, and a newer one never holds less."""

    def __init__(self, lake_path: Path) -> None:
        super().__init__()
        self._lake_path = lake_path
        self.stop = threading.Event()
        self.reads = 0
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            lake = Lake(self._lake_path)
            last, held = -1, 0
            while not self.stop.wait(0.2):
                version = lake.version("chunks")
                now = query.logical_identities(lake, "chunks", version=version).num_rows
                again = query.logical_identities(lake, "chunks", version=version).num_rows
                assert now == again, f"version {version} changed: {now}, then {again}"
                assert version > last or (version == last and now == held), f"{held} rows at {last}, {now} at {version}"
                assert now >= held
                last, held = version, now
                self.reads += 1
        except (AssertionError, LakeError) as e:
            self.failure = e


def test_versions_stay_what_they_are_for_a_reader_while_ingest_is_killed(
    tmp_path: Path, broker: Broker, ingest: IngestProcess
) -> None:
    rng = random.Random(1)
    senders = [Sender(tmp_path / "truth", broker.port, f"s{i:02}", f"s{i:02}-phone") for i in (1, 2)]
    reader = ReaderOfVersions(ingest.lake_path)
    reader.start()
    try:
        seq = 0

        def work() -> int:
            """Keep both outboxes busy; return how many records were acknowledged so far."""
            nonlocal seq
            if max([sender.step() for sender in senders]) < 300:
                for _ in range(10):
                    seq += 1
                    for i, sender in enumerate(senders, 1):
                        sender.accept(make_chunk(seq, site=f"s{i:02}", node=f"s{i:02}-phone", n=20))
            return sum(sender.acknowledged for sender in senders)

        for kill in range(4):
            # The first process dies while it starts, the others somewhere in their commits.
            if kill:
                before = work()
                wait_until(lambda before=before: work() > before, what="an acknowledgement from the new process")
            kill_at = time.monotonic() + rng.uniform(0.0, 0.7)
            while time.monotonic() < kill_at:
                work()
            ingest.kill()
            ingest.start()
        wait_until(lambda: sum([sender.step() for sender in senders]) == 0, what="everything is acknowledged")
        assert ingest.stop() == 0
    finally:
        reader.stop.set()
        reader.join()
        for sender in senders:
            sender.close()
    found = compare(tmp_path / "truth", Lake(ingest.lake_path))
    print(f"\n{found} sent={[s.sent for s in senders]} reads={reader.reads}")
    assert found.passed, found
    assert found.accepted == 2 * seq == found.in_lake
    assert found.physical_duplicates == 0
    assert sum(sender.sent for sender in senders) > found.accepted, "nothing was sent twice: the test tests nothing"
    assert reader.failure is None and reader.reads > 3


def test_garbage_is_refused_and_counted_and_the_rest_goes_on(
    tmp_path: Path, broker: Broker, ingest: IngestProcess
) -> None:
    sender = Sender(tmp_path / "truth", broker.port, "s01", "s01-phone")
    sender.accept(make_chunk(1))
    wait_until(lambda: sender.step() == 0, what="the first chunk is acknowledged")
    sender.send_raw(b"\x00 garbage \xff")
    sender.send_raw(b"anything", "infomae/v1/s01/s01-phone/imu/gap")
    sender.accept(make_chunk(2))
    wait_until(lambda: sender.step() == 0, what="the chunk after the garbage is acknowledged")
    wait_until(lambda: ingest.metric('infomae_ingest_chunks_total{outcome="refused"}') == 2, what="two are counted")
    assert ingest.metric('infomae_ingest_chunks_total{outcome="stored"}') == 2
    wait_until(lambda: ingest.metric("infomae_lake_files") > 0, what="the lake's size is told")
    assert len(list((ingest.lake_path / "_dead_letters").glob("*.bin"))) == 2
    assert ingest.stop() == 0
    sender.close()


def test_what_was_received_is_committed_before_a_clean_stop(tmp_path: Path) -> None:
    broker = Broker("mosquitto", tmp_path, "log_type all").start()
    ingest = IngestProcess(tmp_path, broker.port)
    ingest.config.write_text(ingest.config.read_text().replace("commit_interval_s = 0.1", "commit_interval_s = 60"))
    ingest.start()
    sender = Sender(tmp_path / "truth", broker.port, "s01", "s01-phone", resend_after_s=0.2)
    try:
        sender.accept(make_chunk(1))
        # Sent again and again until ingest has subscribed; the broker tells when ingest has one in its hands.
        wait_until(
            lambda: sender.step() and "Received PUBACK from hub-ingest" in broker.log.read_text(), what="receipt"
        )
        assert ingest.stop() == 0
        wait_until(lambda: sender.step() == 0, what="the ack of the last commit")
        assert [c.seq for c in query.read_chunks(Lake(ingest.lake_path))] == [1]
    finally:
        sender.close()
        if ingest.process is not None and ingest.process.poll() is None:
            ingest.kill()
        broker.stop()
