"""Sources of samples: sensors, recordings, synthetic scenes. One file an implementation, one line in SOURCES.

C channels, N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from infomae_stream.clock import Clock
from infomae_stream.config import Settings, validate
from infomae_stream.errors import ConfigError
from infomae_stream.types import ClockQuality, StreamSpec

SOURCES: Final = {
    "alsa": "collectors.sources.alsa:AlsaSource",
    "csv": "collectors.sources.csv:CsvSource",
    "i2c": "collectors.sources.i2c:I2cSource",
    "iio": "collectors.sources.iio:IioSource",
    "mqtt": "collectors.sources.mqtt:MqttSource",
    "raspberry_shake": "collectors.sources.raspberry_shake:RaspberryShakeSource",
    "replay": "collectors.sources.replay:ReplaySource",
    "seedlink": "collectors.sources.seedlink:SeedLinkSource",
    "synthetic": "collectors.sources.synthetic:SyntheticSource",
}


@dataclass(frozen=True, slots=True)
class Position:
    """How far a stream has been accepted: the next item is sample `offset` of `cursor` (a recording's name, or "").

    last_ns: time of the newest accepted sample there, by the source's own clock.
    """

    cursor: str = ""
    offset: int = 0
    last_ns: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """Samples as the source gave them; times may be equal, have holes, or run backward (the chunker sees to that).

    times_ns: shape (N,), or None where the samples follow `start_ns` at exactly the declared rate.
    cursor, offset: the place of the first sample, see Position.
    monotonic_ns: of the first sample; 0 where the source's own time is all there is (recordings).
    ends: nothing follows without a break, so what is buffered makes a chunk now.
    clock: quality of the clock that gave the times; None where it is this node's.
    uncertainty_ns: of these times, on top of their clock's: how they were taken (on arrival, say).
    full_scale: samples at or beyond +- this many counts are clipped; 0: where the integer type ends.
    """

    stream: str
    start_ns: int
    samples_CN: NDArray[Any]
    times_ns: NDArray[np.int64] | None = None
    cursor: str = ""
    offset: int = 0
    monotonic_ns: int = 0
    ends: bool = False
    clock: ClockQuality | None = None
    uncertainty_ns: int = 0
    full_scale: float = 0.0


class Refuse(Protocol):
    def __call__(self, stream: str, reason: str, count: int = 1, detail: str = "") -> None:
        """Count what a source did not take (datagrams, rows, messages, samples) and say why, from any thread.

        reason: one word of the source's own closed list, fit for a metric's label. stream: "" where it is of none.
        """


def _unheard(stream: str, reason: str, count: int = 1, detail: str = "") -> None:
    return


@dataclass(frozen=True, slots=True)
class SourceContext:
    """What the node tells its source. `position(stream)` is where to go on, None at the very first start."""

    site: str
    node: str
    base_dir: Path
    clock: Clock
    position: Callable[[str], Position | None]
    refuse: Refuse = _unheard


class Source(Protocol):
    """Made by `Class(options, context)`; raises SourceError when the sensor or the file cannot be read.

    A class with `live = True` is a sensor that may come back: when poll fails it is closed and made anew, later.
    """

    Options: ClassVar[type[Settings]]

    def specs(self) -> Sequence[StreamSpec]:
        """The streams this source gives; they never change."""

    def poll(self, timeout_s: float) -> Sequence[Reading]:
        """Return what has arrived within `timeout_s`; empty when nothing has. Never blocks for longer.

        Resumes AFTER the position of the context. Raises SourceClosed once, after the last reading, and SourceError
        when the sensor or the file fails.
        """

    def close(self) -> None:
        """Give back what is open. May never be called (power cut)."""


def source_class(name: str) -> Any:
    """The class that SOURCES lists under `name`."""
    module, attribute = SOURCES[name].split(":")
    return getattr(import_module(module), attribute)


def make_source(raw: dict[str, Any], context: SourceContext, *, where: str, prefix: tuple[str, ...]) -> Source:
    """Build what a `[[nodes.sources]]` table describes; its key `type` names the source, the rest are its options.

    Raises ConfigError with the dotted key, and what the source's constructor raises.
    """
    options, cls = check_options(raw, where=where, prefix=prefix)
    source: Source = cls(options, context)
    return source


def check_options(raw: dict[str, Any], *, where: str, prefix: tuple[str, ...]) -> tuple[Settings, Any]:
    """The checked options and the class of a source, nothing opened. Raises ConfigError."""
    name = raw.get("type")
    if name not in SOURCES:
        dotted = ".".join((*prefix, "type"))
        raise ConfigError(f"{dotted}: {name!r} is no source; known: {', '.join(sorted(SOURCES))}", where=where)
    cls = source_class(name)
    rest = {key: value for key, value in raw.items() if key != "type"}
    return validate(rest, cls.Options, where=where, prefix=prefix), cls
