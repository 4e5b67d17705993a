"""Microphones and other sound devices, through PortAudio (extra `audio`). C channels, N samples."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from collectors.sensing.extras import extra
from collectors.sensing.sample_clock import SampleClock
from collectors.sources import Reading, SourceContext
from infomae_stream.clock import NS_PER_S, Clock
from infomae_stream.config import Settings
from infomae_stream.errors import SourceError
from infomae_stream.node_config import Id
from infomae_stream.types import StreamId, StreamSpec

QUEUED_S: Final = 10.0  # of sound that waits for poll; what comes beyond it is an overrun
SILENT_NS: Final = 5 * NS_PER_S  # a device that gives nothing for so long is gone
TOLERANCE_NS: Final = 20_000_000  # a block's stamp within it is jitter of the callback
LEAST_UNCERTAINTY_NS: Final = 1_000_000
BITS: Final = {"int16": 15, "int32": 31}


class AlsaOptions(Settings):
    """device: a name as `python -m sounddevice` shows it, or part of one."""

    device: str = ""  # "": the system's default
    stream: Id = "mic"
    modality: str = ""
    rate_hz: float = Field(48_000.0, gt=0)
    channels: int = Field(1, ge=1, le=16)
    dtype: Literal["int16", "int32"] = "int16"  # int32 for 24-bit devices
    block_samples: int = Field(0, ge=0)  # 0: as the device likes it
    unit: str = "1"
    sensitivity: float = Field(0.0, ge=0)  # counts per unit; 0: full scale is 1


@dataclass(frozen=True, slots=True, eq=False)
class _Heard:
    """What the callback was given; stamp_ns is the wall time of the first sample."""

    samples_NC: NDArray[Any]
    stamp_ns: int
    monotonic_ns: int
    overrun: bool


class AlsaSource:
    """Live. The callback puts blocks on a bounded queue and returns; all else is done in poll."""

    Options: ClassVar[type[Settings]] = AlsaOptions
    live: ClassVar[bool] = True

    def __init__(self, options: AlsaOptions, context: SourceContext, library: Callable[[], Any] | None = None) -> None:
        self._options, self._clock, self._refuse = options, context.clock, context.refuse
        self._sounddevice = (library or load_sounddevice)()
        self._where = f"sound device {options.device or '(default)'}"
        scale = options.sensitivity or 2.0 ** BITS[options.dtype]
        self._spec = StreamSpec(
            id=StreamId(context.site, context.node, options.stream),
            kind="acoustic",
            rate_hz=options.rate_hz,
            channels=tuple(f"ch{i}" for i in range(options.channels)),
            units=(options.unit,) * options.channels,
            sensitivity=(scale,) * options.channels,
            modality=options.modality,
        )
        self._times = SampleClock(options.rate_hz, tolerance_ns=TOLERANCE_NS, gain=0.02)
        self._uncertainty_ns = float(LEAST_UNCERTAINTY_NS)
        self._ear = _Ear(self._clock, options.rate_hz)
        self._heard_ns = self._clock.monotonic_ns()
        self._stream = self._open()

    def specs(self) -> Sequence[StreamSpec]:
        return (self._spec,)

    def poll(self, timeout_s: float) -> Sequence[Reading]:
        """The blocks that the callback has queued. Raises SourceError when the device has fallen silent."""
        if not self._ear.queue and timeout_s > 0:
            self._clock.sleep(timeout_s)
        readings = []
        while self._ear.queue:
            readings.append(self._reading(self._ear.queue.popleft()))
        now_ns = self._clock.monotonic_ns()
        if readings:
            self._heard_ns = now_ns
        elif now_ns - self._heard_ns > SILENT_NS or not self._stream.active:
            raise SourceError("it gives no samples any more", where=self._where, fix="is it plugged in?")
        return readings

    def close(self) -> None:
        self._stream.close()

    def _reading(self, heard: _Heard) -> Reading:
        stamp_ns = heard.stamp_ns
        if heard.overrun:
            # Between the last block and this one samples are missing: how many, the stamp tells.
            self._refuse(self._spec.id.stream, "overrun", 1, "this process was too slow, or the system too busy")
            stamp_ns = max(stamp_ns, self._times.next_ns or stamp_ns)
            self._times.restart()
        placed = self._times.place(stamp_ns, len(heard.samples_NC))
        jitter_ns = abs(stamp_ns - placed.start_ns)
        self._uncertainty_ns = max(0.99 * self._uncertainty_ns, float(jitter_ns), LEAST_UNCERTAINTY_NS)
        return Reading(
            self._spec.id.stream,
            placed.start_ns,
            np.ascontiguousarray(heard.samples_NC.T),
            monotonic_ns=max(heard.monotonic_ns + placed.start_ns - heard.stamp_ns, 1),
            uncertainty_ns=round(self._uncertainty_ns),
        )

    def _open(self) -> Any:
        o = self._options
        device = _find_device(self._sounddevice, o.device)
        try:
            stream = self._sounddevice.InputStream(
                device=device,
                samplerate=o.rate_hz,
                channels=o.channels,
                dtype=o.dtype,
                blocksize=o.block_samples,
                callback=self._ear.hear,
            )
            stream.start()
        except (self._sounddevice.PortAudioError, ValueError) as e:
            fix = "check rate_hz, channels and dtype against the device, and that nothing else holds it"
            raise SourceError(f"cannot be opened: {e}", where=self._where, fix=fix) from e
        return stream


class _Ear:
    """PortAudio's callback: it runs on a thread of PortAudio's, and only enqueues."""

    def __init__(self, clock: Clock, rate_hz: float) -> None:
        self._clock, self._rate_hz = clock, rate_hz
        self.queue: deque[_Heard] = deque()
        self._lost = False

    def hear(self, samples_NC: NDArray[Any], frames: int, time_info: Any, status: Any) -> None:
        now_ns, monotonic_ns = self._clock.now_ns(), self._clock.monotonic_ns()
        lost = self._lost or bool(status.input_overflow)
        if len(self.queue) * frames > QUEUED_S * self._rate_hz:
            self._lost = True
            return
        # How long ago the first sample was taken, by PortAudio's own clock; some drivers do not tell.
        age_s = float(time_info.currentTime) - float(time_info.inputBufferAdcTime)
        if not time_info.inputBufferAdcTime or not 0 <= age_s < 2.0:
            age_s = frames / self._rate_hz
        age_ns = round(age_s * NS_PER_S)
        # A copy: the buffer is PortAudio's again when we return.
        self.queue.append(_Heard(samples_NC.copy(), now_ns - age_ns, monotonic_ns - age_ns, lost))
        self._lost = False


def load_sounddevice() -> Any:
    """The library. Raises SourceError with the words that mend it when it, or PortAudio, is not there."""
    try:
        return extra("sounddevice", "audio", "sound devices")
    except OSError as e:
        raise SourceError(f"PortAudio is missing: {e}", fix="apt install libportaudio2") from e


def _find_device(sounddevice: Any, wanted: str) -> int | None:
    """The number that PortAudio gives to the device today: numbers change with every boot, names do not."""
    try:
        devices = [d for d in sounddevice.query_devices() if d["max_input_channels"] > 0]
    except sounddevice.PortAudioError as e:
        raise SourceError(f"PortAudio cannot list the devices: {e}", where="sound devices") from e
    there = ", ".join(repr(d["name"]) for d in devices) or "none"
    if not devices:
        raise SourceError("there is no sound device that records", where="sound devices", fix="see `arecord -l`")
    if not wanted:
        return None
    exact = [d for d in devices if wanted in (d["name"], _lasting_name(d["name"]))]
    found = exact or [d for d in devices if wanted.lower() in d["name"].lower()]
    if len(found) == 1:
        return int(found[0]["index"])
    said = f"{len(found)} devices are called {wanted!r}" if found else f"no device is called {wanted!r}"
    raise SourceError(said, where="sound devices", fix=f"set device to one of: {there}")


def _lasting_name(name: str) -> str:
    """`USB Audio: - (hw:1,0)` without the card's number."""
    return name.partition(" (hw:")[0].rstrip(" -:")
