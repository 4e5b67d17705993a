"""A sensor that is pulled out and put back, on the double of a kernel device."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collectors.reopening import Reopening, open_source
from collectors.sources import check_options
from infomae_stream.clock import ManualClock
from infomae_stream.errors import SourceError
from tests.iio_tree import ATTRIBUTES, SIX_AXES, IioTree
from tests.recording_files import write_csv
from tests.sensor_rig import Rig
from tests.sound_double import SoundDouble


class Plugged:
    """A microphone behind the double; `alsa` is built with it each time."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.rig = Rig(folder, self.clock)
        self.sound = SoundDouble(self.clock)

        def make(**changes: Any) -> Any:
            raw = {"type": "alsa", "rate_hz": 16_000, "device": "UMIK-1", **changes}
            options, cls = check_options(raw, where="t", prefix=())
            return cls(options, self.rig.context, lambda: self.sound)

        self.make = make
        self.source = Reopening(make(), make, self.rig.context)


def test_a_sensor_that_comes_back_is_opened_again_with_growing_pauses(tmp_path: Path) -> None:
    mic = Plugged(tmp_path)
    block = np.ones((1600, 1), dtype=np.int16)
    mic.sound.play(block)
    assert len(mic.source.poll(0.0)) == 1
    mic.sound.active = False
    mic.sound.devices = mic.sound.devices[:2]
    tries = []
    for second in range(200):
        before = mic.rig.refused["mic", "sensor_lost"]
        assert mic.source.poll(0.0) == []
        if mic.rig.refused["mic", "sensor_lost"] > before:
            tries.append(second)
        mic.clock.advance(1)
    assert tries == [0, 1, 3, 7, 15, 31, 63, 123, 183]
    assert "gives no samples any more" in mic.rig.details[0] and "no device is called" in mic.rig.details[1]
    mic.sound.devices = SoundDouble(mic.clock).devices
    mic.clock.advance(60)
    assert mic.source.poll(0.0) == []
    mic.sound.play(block)
    assert len(mic.source.poll(0.0)) == 1
    mic.source.close()
    assert not mic.sound.active


def test_another_sensor_in_its_place_is_not_taken(tmp_path: Path) -> None:
    mic = Plugged(tmp_path)
    other = Reopening(mic.make(), lambda: mic.make(channels=2), mic.rig.context)
    mic.sound.active = False
    assert other.poll(0.0) == []
    mic.clock.advance(1)
    assert other.poll(0.0) == []
    assert "gives other streams; restart the node" in mic.rig.details[-1]


def test_live_sources_are_watched_and_files_are_not(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    write_csv(tmp_path / "a.csv", [0, 10])
    assert not isinstance(
        open_source({"type": "replay", "path": "a.csv"}, rig.context, where="t", prefix=()), Reopening
    )
    tree = IioTree(tmp_path, SIX_AXES, ATTRIBUTES)
    source = open_source({"type": "iio", "rate_hz": 104, **tree.options}, rig.context, where="t", prefix=())
    assert isinstance(source, Reopening)
    tree.give(struct.pack("<6h4xq", *range(6), rig.clock.now_ns()))
    assert len(source.poll(0.0)) == 1
    source.close()
    tree.close()
    with pytest.raises(SourceError, match="there is no device"):
        open_source({"type": "iio", "rate_hz": 104, **tree.options, "device": "x"}, rig.context, where="t", prefix=())
