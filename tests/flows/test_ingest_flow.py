"""From one node's outbox to the lake and back, over a lossy line and with a clock that moves by hand only."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from collectors.hub.dead_letters import DeadLetters
from collectors.hub.ingest import Ingest
from infomae_stream.clock import NS_PER_S, ManualClock
from infomae_stream.outbox import Outbox
from infomae_stream.types import ClockQuality
from infomae_stream.wire import decode_ack
from storage import query
from storage.lake import Lake
from tests.hub_records import START_NS, make_spec


def test_every_accepted_record_reaches_the_lake_once_over_a_line_that_loses_doubles_and_reorders(
    tmp_path: Path,
) -> None:
    rng = random.Random(7)
    clock = ManualClock(START_NS)
    outbox = Outbox.open(tmp_path / "outbox.sqlite", clock, max_bytes=100_000_000, reserve_bytes=0)
    lake = Lake(tmp_path / "lake", clock)
    accepted = set()
    for second in range(40):
        spec = make_spec()
        samples = np.random.default_rng(second).integers(-3000, 3000, (6, 100)).astype(np.int16)
        outbox.put_chunk(spec, START_NS + second * NS_PER_S, samples, ClockQuality("chrony"))
        if second % 10 == 0:
            outbox.put_gap(spec.id, START_NS, START_NS + NS_PER_S, "shed", 100)
            outbox.put_detection(
                site="s01", node="s01-phone", start_ns=START_NS, end_ns=START_NS + NS_PER_S, label="walking",
                scores={"walking": 1.0}, modalities=("phone_imu",), bundle_version=1, bundle_sha256="ab" * 32,
            )  # fmt: skip
        accepted |= {(record.kind, record.seq) for record in outbox.commit()}
        clock.advance(1.0)

    rounds = 0
    while outbox.pending(1):
        # Ingest may die after any commit: a new one knows only what the lake tells.
        ingest = Ingest(
            lake if rng.random() < 0.5 else Lake(tmp_path / "lake", clock),
            DeadLetters(tmp_path / "letters", 1_000_000),
            clock,
            commit_interval_s=1.0,
            commit_bytes=1_000_000,
            max_inflight_bytes=10_000_000,
        )
        arriving = [r for r in outbox.pending(10**9) for _ in range(rng.choice([0, 1, 1, 2]))]
        rng.shuffle(arriving)
        for record in arriving:
            ingest.take(record.topic, record.payload)
        for topic, payload in ingest.commit().acks:
            assert topic == "infomae/v1/s01/s01-phone/ack"
            if rng.random() < 0.5:
                outbox.acknowledge(decode_ack(payload))
        rounds += 1
        assert rounds < 100

    kinds = {"chunks": "chunk", "gaps": "gap", "detections": "detection"}
    stored = [(kinds[t], seq) for t in kinds for seq in query.logical_identities(lake, t)["seq"].to_pylist()]
    assert sorted(stored) == sorted(accepted)
    assert list((tmp_path / "letters").iterdir()) == []
    outbox.close()
