"""A double of sounddevice and of a device behind it: `play` calls the callback as PortAudio does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infomae_stream.clock import ManualClock

DEVICES = (
    {"index": 0, "name": "bcm2835 Headphones: - (hw:0,0)", "max_input_channels": 0},
    {"index": 1, "name": "USB PnP Sound Device: Audio (hw:2,0)", "max_input_channels": 1},
    {"index": 2, "name": "UMIK-1: USB Audio (hw:3,0)", "max_input_channels": 2},
)


class SoundDouble:
    class PortAudioError(Exception):
        pass

    def __init__(self, clock: ManualClock, devices: Sequence[dict[str, Any]] = DEVICES) -> None:
        self.clock = clock
        self.devices = devices
        self.opened: dict[str, Any] = {}
        self.refuses = ""
        self.active = False
        self._callback: Callable[..., None] | None = None

    def query_devices(self) -> Sequence[dict[str, Any]]:
        return self.devices

    def InputStream(self, callback: Callable[..., None], **options: Any) -> SoundDouble:
        if self.refuses:
            raise self.PortAudioError(self.refuses)
        self.opened, self._callback = options, callback
        return self

    def start(self) -> None:
        self.active = True

    def close(self) -> None:
        self.active = False

    def play(
        self, samples_NC: NDArray[Any], *, latency_s: float = 0.0, overflow: bool = False, adc: bool = True
    ) -> None:
        """Let the block's time pass, then call back `latency_s` late; the ADC time is exact, or 0."""
        frames = len(samples_NC)
        duration_s = frames / self.opened["samplerate"]
        self.clock.advance(duration_s)
        now_s = self.clock.monotonic_ns() / 1e9 + 1000
        times = SimpleNamespace(inputBufferAdcTime=now_s - duration_s if adc else 0.0, currentTime=now_s + latency_s)
        # The callback comes late on the wall clock, too.
        self.clock.advance(latency_s)
        assert self._callback is not None
        buffer = np.array(samples_NC)
        self._callback(buffer, frames, times, SimpleNamespace(input_overflow=overflow))
        buffer[:] = -1  # PortAudio uses it again
        self.clock.advance(-latency_s)
