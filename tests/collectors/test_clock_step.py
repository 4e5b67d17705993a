"""A clock that somebody has set: what its time source said before holds no longer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from collectors.clock_quality import ClockReader
from infomae_stream.clock import NS_PER_S, ManualClock
from infomae_stream.node_config import ClockSettings


def test_the_time_source_is_asked_anew_as_soon_as_the_clock_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, chronyc = tmp_path / "said", tmp_path / "chronyc"
    chronyc.write_text(f"#!/bin/sh\ncat {said}\n")
    chronyc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def say(offset_s: float) -> None:
        said.write_text(f"7F7F0101,truth,1,0,{offset_s},0,0,0,0,0,0,0,1,Normal\n")

    clock = ManualClock()
    reader = ClockReader(ClockSettings(source="chrony"), clock)
    say(0.0)
    assert reader.read().offset_ns == 0
    say(4.0)
    clock.advance(1.0)
    assert reader.read().offset_ns == 0  # nothing has happened, and it was asked a moment ago
    clock.step(4.0)
    assert reader.read().offset_ns == 4 * NS_PER_S
    say(0.0)
    clock.step(-4.0)
    assert reader.read().offset_ns == 0
    reader.close()
