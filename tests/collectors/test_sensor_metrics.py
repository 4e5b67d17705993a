"""What a node reports of its sensors: clipping, flat lines, refusals, rate error, and each chunk's uncertainty."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collectors.intake import Intake
from collectors.refusals import Refusals
from collectors.signal_faults import count_clipped, is_flat
from collectors.sources import SourceContext, make_source
from collectors.sources.raspberry_shake import format_datagram
from infomae_stream.clock import ManualClock
from infomae_stream.outbox import Outbox
from infomae_stream.telemetry import EventLog, Telemetry
from infomae_stream.types import ClockQuality
from tests.waiting import send_datagram

LABELS = {"site": "s01", "node": "s01-node"}


@pytest.mark.parametrize(
    ("samples", "full_scale", "clipped"),
    [
        (np.array([[0, 32767, -32768, 32766]], dtype=np.int16), 0.0, 2),
        (np.array([[0, 2**23 - 1, -(2**23), 5]], dtype=np.int32), 2.0**23 - 1, 2),
        (np.array([[32767, 0], [32767, 1]], dtype=np.int16), 0.0, 1),
        (np.array([[1e9, 0]], dtype=np.float32), 0.0, 0),
        (np.array([[1.0, 0]], dtype=np.float32), 1.0, 1),
    ],
)
def test_clipping_is_counted_in_samples(samples: Any, full_scale: float, clipped: int) -> None:
    assert count_clipped(samples, full_scale) == clipped


def test_one_dead_channel_is_a_flat_line_and_a_short_pause_is_none() -> None:
    alive, dead = np.arange(100), np.full(100, 7)
    assert is_flat(np.stack([alive, dead])) and not is_flat(np.stack([alive, alive]))
    assert not is_flat(dead[None, :10])


class Node:
    """An intake with one Raspberry Shake on a real socket, its metrics and its outbox."""

    def __init__(self, folder: Path, quality: ClockQuality) -> None:
        self.clock = ManualClock()
        self.telemetry, log = Telemetry(), EventLog("test")
        refusals = Refusals(self.telemetry, log, self.clock, **LABELS)
        context = SourceContext("s01", "s01-node", folder, self.clock, lambda stream: None, refusals)
        raw = {"type": "raspberry_shake", "station": "R1234", "port": 0, "clock_uncertainty_ms": 5}
        self.source: Any = make_source(raw, context, where="t", prefix=())
        self.outbox = Outbox.open(folder / "o.sqlite", self.clock, max_bytes=10**8, reserve_bytes=0)
        self.intake = Intake(
            [self.source],
            self.outbox,
            clock_quality=lambda: quality,
            offset_ns=0,
            telemetry=self.telemetry,
            log=log,
            **LABELS,
        )

    def send(self, counts: Any, rate_hz: float = 100.0) -> None:
        """A second's worth, and the second passes."""
        for k in range(0, 100, 25):
            datagram = format_datagram("EHZ", self.clock.now_ns(), counts[k : k + 25])
            send_datagram(datagram, self.source._socket)
            self.clock.advance(25 / rate_hz)
            self.intake.poll()

    def raw(self, data: bytes) -> None:
        send_datagram(data, self.source._socket)
        self.intake.poll()

    def value(self, name: str, **labels: str) -> float:
        return self.telemetry.registry.get_sample_value(name, {**LABELS, **labels}) or 0.0

    def close(self) -> None:
        self.intake.close()
        self.outbox.close()


def test_a_sick_sensor_shows_in_the_metrics(tmp_path: Path) -> None:
    node = Node(tmp_path, ClockQuality("chrony"))
    node.send(range(100))
    node.send([2**23 - 1] * 3 + list(range(97)))
    node.send([42] * 100)
    node.send([42] * 100)
    node.send(range(100))
    node.raw(b"garbage")
    node.raw(b"garbage")
    assert node.value("infomae_stream_clipped_samples_total", stream="ehz") == 3
    assert node.value("infomae_stream_flatline_seconds_total", stream="ehz") == pytest.approx(2.0, abs=0.1)
    assert node.value("infomae_source_refused_total", stream="", reason="malformed") == 2
    node.close()


def test_a_digitizer_that_is_off_shows_as_rate_error(tmp_path: Path) -> None:
    node = Node(tmp_path, ClockQuality("chrony"))
    for _ in range(200):
        node.send(range(100), rate_hz=100.1)
    assert node.value("infomae_stream_rate_error_ratio", stream="ehz") == pytest.approx(1e-3, rel=0.3)
    assert node.value("infomae_stream_gap_seconds_total", stream="ehz") == 0
    node.close()


def test_every_chunk_carries_the_quality_of_the_clock_that_timed_it(tmp_path: Path) -> None:
    node = Node(tmp_path, ClockQuality("chrony", 0, 1, True))
    node.send(range(100))
    node.intake.close()
    (chunk,) = node.outbox.tail_chunks(0, 10)
    # The Shake's own clock, not this node's; a position in its chunk as ever.
    assert (chunk.clock.source, chunk.clock.uncertainty_ns) == ("raspberry_shake", 5_000_000)
    assert chunk.clock.monotonic_ns == chunk.start_ns
    node.outbox.close()


def test_a_refusal_is_told_at_once_and_then_once_a_minute_with_its_number(caplog: pytest.LogCaptureFixture) -> None:
    clock, telemetry = ManualClock(), Telemetry()
    refusals = Refusals(telemetry, EventLog("test"), clock, **LABELS)
    with caplog.at_level(logging.WARNING):
        for _ in range(120):
            refusals("ehz", "late", 2, "why")
            clock.advance(1)
        refusals("", "sender", 1, "who")
    told = [r.fields for r in caplog.records if r.message == "source_refused"]  # type: ignore[attr-defined]
    assert [(f["reason"], f["count"]) for f in told] == [("late", 2), ("late", 120), ("sender", 1)]
    total = telemetry.registry.get_sample_value(
        "infomae_source_refused_total", {**LABELS, "stream": "ehz", "reason": "late"}
    )
    assert total == 240
