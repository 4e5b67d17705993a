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
        self.source = Reopening(make, self.rig.context)


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


def test_a_sensor_that_is_not_there_at_first_is_taken_when_it_comes(tmp_path: Path) -> None:
    mic = Plugged(tmp_path)
    devices, mic.sound.devices = mic.sound.devices, mic.sound.devices[:2]
    late = Reopening(mic.make, mic.rig.context, kind="alsa")
    assert "no device is called" in late.missing
    assert late.specs() == () and late.poll(0.0) == []
    assert mic.rig.refused["", "sensor_absent"] == 1
    mic.clock.advance(1)
    assert late.poll(0.0) == []
    assert mic.rig.refused["", "sensor_absent"] == 2
    mic.sound.devices = devices
    mic.clock.advance(1.9)
    assert late.poll(0.0) == [] and late.missing  # the second pause is twice as long
    mic.clock.advance(0.1)
    late.poll(0.0)
    assert not late.missing
    assert [spec.id.stream for spec in late.specs()] == ["mic"]
    mic.sound.play(np.ones((1600, 1), dtype=np.int16))
    assert len(late.poll(0.0)) == 1
    late.close()


def test_another_sensor_in_its_place_is_not_taken(tmp_path: Path) -> None:
    mic = Plugged(tmp_path)
    made = iter([mic.make(), mic.make(channels=2)])
    other = Reopening(lambda: next(made), mic.rig.context)
    mic.sound.active = False
    assert other.poll(0.0) == []
    mic.clock.advance(1)
    assert other.poll(0.0) == []
    assert "gives other streams; restart the node" in mic.rig.details[-1]
    assert "gives other streams" in other.missing


def test_a_file_is_waited_for_and_one_that_fails_later_is_not_opened_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    raw = {"type": "replay", "path": "a.csv", "speed": 0}
    source = open_source(raw, rig.context, where="t", prefix=())
    assert source.missing
    write_csv(tmp_path / "a.csv", [0, 10])
    rig.clock.sleep(1)
    assert [r.samples_CN.shape[1] for r in source.poll(0.0)] == [2]
    assert not source.missing
    source.close()

    class Rotten:
        specs = staticmethod(lambda: ())
        close = staticmethod(lambda: None)

        def poll(self, timeout_s: float) -> Any:
            raise SourceError("a torn block")

    torn: Any = Reopening(lambda: Rotten(), rig.context, live=False)  # type: ignore[arg-type,return-value]
    with pytest.raises(SourceError, match="torn"):
        torn.poll(0.0)


def test_a_sensor_of_the_kernel_is_watched(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    tree = IioTree(tmp_path, SIX_AXES, ATTRIBUTES)
    source = open_source({"type": "iio", "rate_hz": 104, **tree.options}, rig.context, where="t", prefix=())
    tree.give(struct.pack("<6h4xq", *range(6), rig.clock.now_ns()))
    assert len(source.poll(0.0)) == 1
    source.close()
    tree.close()
    absent = {"type": "iio", "rate_hz": 104, **tree.options, "device": "x"}
    assert "there is no device" in open_source(absent, rig.context, where="t", prefix=()).missing
