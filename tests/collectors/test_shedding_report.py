from __future__ import annotations

import logging
from collections import Counter

import pytest

from collectors.shedding_report import SheddingReport
from infomae_stream.clock import ManualClock
from infomae_stream.telemetry import EventLog, Telemetry

LABELS = {"site": "s01", "node": "n1"}


def test_an_episode_is_two_lines_and_every_record_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock, telemetry = ManualClock(), Telemetry()
    report = SheddingReport(clock, telemetry, EventLog("test"), **LABELS)
    for second in range(3000):
        report.add(Counter({"audio": 2, "imu": 1}) if second < 2000 and second % 60 == 0 else Counter())
        clock.advance(1)
    assert [r.getMessage() for r in caplog.records] == ["shedding_began", "shedding_ended"]
    assert caplog.records[1].fields["records"] == {"audio": 68, "imu": 34}  # type: ignore[attr-defined]
    value = telemetry.registry.get_sample_value
    assert value("infomae_chunks_dropped_total", {**LABELS, "reason": "shed"}) == 102
    assert value("infomae_records_shed_total", {**LABELS, "stream": "audio"}) == 68
