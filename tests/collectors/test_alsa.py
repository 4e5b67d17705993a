"""Sound devices against a double of PortAudio: names, times, overruns, silence; and the library itself where it is."""

from __future__ import annotations

import inspect
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collectors.sources import Reading, check_options
from collectors.sources.alsa import AlsaSource, load_sounddevice
from infomae_stream.clock import NS_PER_S, ManualClock
from infomae_stream.errors import SourceError
from tests.sensor_rig import Rig, pieces_of, samples_of
from tests.sound_double import SoundDouble


class Microphone:
    def __init__(self, folder: Path, **options: Any) -> None:
        self.clock = ManualClock()
        self.rig = Rig(folder, self.clock)
        self.sound = SoundDouble(self.clock)
        self._options = options

    def open(self) -> AlsaSource:
        raw = {"type": "alsa", "rate_hz": 16_000, **self._options}
        options, cls = check_options(raw, where="node.toml", prefix=())
        return cls(options, self.rig.context, lambda: self.sound)  # type: ignore[no-any-return]


def counted(first: int, n: int = 1024) -> Any:
    """Samples that count on, modulo 20000."""
    return ((first + np.arange(n)) % 20_000).astype(np.int16)[:, None]


def test_sound_becomes_one_stream_whose_times_do_not_jitter(tmp_path: Path) -> None:
    mic = Microphone(tmp_path, device="UMIK-1")
    source = mic.open()
    began_ns, rng = mic.clock.now_ns(), np.random.default_rng(0)
    readings: list[Reading] = []
    for k in range(200):
        mic.sound.play(counted(1024 * k), latency_s=float(rng.uniform(0, 0.004)))
        readings += source.poll(0.0)
    pieces = pieces_of(source, readings)
    samples_CN = samples_of(pieces)
    assert samples_CN.dtype == np.int16
    np.testing.assert_array_equal(samples_CN[0], np.arange(200 * 1024) % 20_000)
    assert len(pieces) == 13 and sum(p.hole_ns for p in pieces) == 0
    errors_ns = [r.start_ns - began_ns - k * 64_000_000 for k, r in enumerate(readings)]
    assert max(map(abs, errors_ns)) < 1_000_000
    assert all(r.monotonic_ns > 0 and r.uncertainty_ns >= 1_000_000 for r in readings)
    source.close()


def test_a_device_is_found_by_its_name_whatever_its_number(tmp_path: Path) -> None:
    for name, index in (
        ("UMIK-1: USB Audio (hw:3,0)", 2),
        ("UMIK-1: USB Audio", 2),
        ("usb pnp", 1),
        ("", None),
    ):
        mic = Microphone(tmp_path, device=name)
        mic.open()
        assert mic.sound.opened["device"] == index


def test_an_unknown_or_ambiguous_device_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no device is called 'Blue Yeti'; set device to one of: 'USB PnP .*'UMIK-1"):
        Microphone(tmp_path, device="Blue Yeti").open()
    with pytest.raises(SourceError, match="2 devices are called 'usb'"):
        Microphone(tmp_path, device="usb").open()
    mic = Microphone(tmp_path)
    mic.sound.devices = mic.sound.devices[:1]
    with pytest.raises(SourceError, match="no sound device that records; see `arecord -l`"):
        mic.open()


def test_a_rate_that_the_device_refuses_is_told_with_what_to_check(tmp_path: Path) -> None:
    mic = Microphone(tmp_path)
    mic.sound.refuses = "Invalid sample rate [PaErrorCode -9997]"
    with pytest.raises(
        SourceError, match=r"cannot be opened: Invalid sample rate .*; check rate_hz, channels and dtype"
    ):
        mic.open()


def test_an_overrun_is_a_gap_and_is_counted(tmp_path: Path) -> None:
    mic = Microphone(tmp_path)
    source = mic.open()
    readings: list[Reading] = []
    for k in range(20):
        if k == 10:
            mic.clock.advance(0.5)
        mic.sound.play(counted(1024 * k), overflow=k == 10)
        readings += source.poll(0.0)
    assert mic.rig.refused == {("mic", "overrun"): 1}
    holes_s = [p.hole_ns / NS_PER_S for p in pieces_of(source, readings) if p.hole_ns]
    assert holes_s == [pytest.approx(0.5, abs=0.001)]


def test_an_overrun_shorter_than_the_jitter_that_is_smoothed_still_shows_in_the_times(tmp_path: Path) -> None:
    mic = Microphone(tmp_path)
    source = mic.open()
    mic.sound.play(counted(0))
    (before,) = source.poll(0.0)
    mic.clock.advance(0.010)
    mic.sound.play(counted(0), overflow=True)
    (after,) = source.poll(0.0)
    assert after.start_ns - before.start_ns == pytest.approx(74_000_000, abs=1000)


def test_a_loop_that_does_not_come_by_costs_an_overrun_and_no_more_memory(tmp_path: Path) -> None:
    mic = Microphone(tmp_path)
    source = mic.open()
    for k in range(300):  # 19 s
        mic.sound.play(counted(1024 * k))
    readings = list(source.poll(0.0))
    assert sum(r.samples_CN.shape[1] for r in readings) <= 10.1 * 16_000
    mic.sound.play(counted(0))
    readings += source.poll(0.0)
    assert mic.rig.refused == {("mic", "overrun"): 1}
    assert sum(p.hole_ns for p in pieces_of(source, readings)) / NS_PER_S == pytest.approx(9.1, abs=0.2)


def test_a_driver_without_adc_time_is_taken_by_arrival(tmp_path: Path) -> None:
    mic = Microphone(tmp_path)
    source = mic.open()
    began_ns = mic.clock.now_ns()
    mic.sound.play(counted(0), adc=False)
    (reading,) = source.poll(0.0)
    assert abs(reading.start_ns - began_ns) < 1000


def test_a_device_that_falls_silent_fails_with_words(tmp_path: Path) -> None:
    mic = Microphone(tmp_path)
    source = mic.open()
    mic.sound.play(counted(0))
    assert len(source.poll(0.0)) == 1
    mic.clock.advance(4.9)
    assert source.poll(0.0) == []
    mic.clock.advance(0.2)
    with pytest.raises(SourceError, match="gives no samples any more; is it plugged in"):
        source.poll(0.0)


class Missing(MetaPathFinder):
    """Lets an import fail as a machine without the library, or without PortAudio, does."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name == "sounddevice":
            raise self._error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("PortAudio library not found"), "PortAudio is missing: .*; apt install libportaudio2"),
        (ModuleNotFoundError("no", name="sounddevice"), r"need sounddevice; pip install 'infomae-stream\[audio\]'"),
    ],
)
def test_what_is_missing_is_told_with_the_command_that_mends_it(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(error), *sys.meta_path])
    with pytest.raises(SourceError, match=message):
        load_sounddevice()


def test_the_library_has_what_is_used() -> None:
    pytest.importorskip("sounddevice", exc_type=ImportError)
    try:
        library = load_sounddevice()
    except SourceError as e:
        pytest.skip(str(e))
    assert callable(library.query_devices) and issubclass(library.PortAudioError, Exception)
    assert {"device", "samplerate", "channels", "dtype", "blocksize", "callback"} <= set(
        inspect.signature(library.InputStream.__init__).parameters
    )
