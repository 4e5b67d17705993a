"""Publishers that know nothing of this project: an ESP32 that sends its samples to a broker joins as a stream.

What such a publisher sent while nobody listened is kept by the broker (QoS 1, a session that lasts); between this
process and the outbox a crash may cost what had just arrived. A node of one's own has an outbox, and is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Final

import numpy as np
from paho.mqtt.client import topic_matches_sub
from pydantic import AfterValidator, Field

from collectors.sensing.foreign_payload import Block, Layout, payload_reader
from collectors.sensing.sample_clock import SampleClock
from collectors.sources import Reading, SourceContext
from infomae_stream.clock import NS_PER_S
from infomae_stream.config import Settings
from infomae_stream.errors import ConnectionFailed, DataError
from infomae_stream.node_config import Id, MqttSettings
from infomae_stream.session import Message, MqttSession
from infomae_stream.types import ClockQuality, StreamId, StreamSpec

# Older than the newest by more than this: the publisher's clock was set back, and time starts anew (as in the chunker).
RESTART_NS: Final = 60 * NS_PER_S


def _topic_filter(topic: str) -> str:
    levels = topic.split("/")
    wrong = "#" in "/".join(levels[:-1]) or any(len(level) > 1 and set(level) & set("+#") for level in levels)
    if not topic or wrong or "\0" in topic:
        raise ValueError(f"{topic!r} is no topic filter")
    return topic


class MqttOptions(Settings):
    """topics: topic filter -> stream; one publisher a stream, all of the same layout."""

    broker: MqttSettings = MqttSettings()
    topics: Annotated[dict[Annotated[str, AfterValidator(_topic_filter)], Id], Field(min_length=1)]
    kind: str
    rate_hz: float = Field(gt=0)
    channels: Annotated[list[str], Field(min_length=1)]
    units: list[str]
    sensitivity: list[float] = []
    modality: str = ""
    payload: Layout = Layout()
    sender_uncertainty_ms: float = Field(50.0, ge=0)  # of the publisher's clock, where the payload holds a time
    sender_synchronised: bool = False  # say so when it keeps its clock by NTP
    arrival_uncertainty_ms: float = Field(250.0, gt=0)  # of times taken on arrival
    max_payload_bytes: int = Field(1_000_000, ge=1)


class MqttSource:
    """Live. A payload's time is that of its first sample; without one the last sample is of the moment of arrival."""

    Options: ClassVar[type[Settings]] = MqttOptions
    live: ClassVar[bool] = True

    def __init__(self, options: MqttOptions, context: SourceContext) -> None:
        self._options, self._clock, self._refuse = options, context.clock, context.refuse
        self._read = payload_reader(options.payload, len(options.channels))
        self._streams = [(topic, _Stream(stream, options, context)) for topic, stream in options.topics.items()]
        name = f"{context.node}-hears-{next(iter(options.topics.values()))}"
        subscriptions = [(topic, 1) for topic in options.topics]
        self._session = MqttSession(
            options.broker, name, subscriptions=subscriptions, clean=False, base_dir=context.base_dir
        )
        self._session.start()

    @property
    def connected(self) -> bool:
        return self._session.connected

    def specs(self) -> Sequence[StreamSpec]:
        return tuple({stream.spec.id.stream: stream.spec for _, stream in self._streams}.values())

    def poll(self, timeout_s: float) -> Sequence[Reading]:
        """What has arrived. While there is no broker: nothing; the session connects again by itself."""
        try:
            messages = self._session.poll(timeout_s)
        except ConnectionFailed as e:
            self._refuse("", "broker", 1, str(e))
            return []
        return [reading for message in messages if (reading := self._take(message)) is not None]

    def close(self) -> None:
        self._session.close()

    def _take(self, message: Message) -> Reading | None:
        stream = next((s for topic, s in self._streams if topic_matches_sub(topic, message.topic)), None)
        name = stream.spec.id.stream if stream else ""
        if stream is None:
            # A session that lasts may hold a subscription of an earlier configuration.
            self._refuse(name, "topic", 1, f"{message.topic[:80]} is not in topics")
        elif message.retain:
            self._refuse(name, "retained", 1, "a retained message is of the past: publish samples without retain")
        elif len(message.payload) > self._options.max_payload_bytes:
            self._refuse(name, "too_large", 1, f"{len(message.payload)} bytes on {message.topic[:80]}")
        else:
            try:
                block = self._read(message.payload)
            except DataError as e:
                self._refuse(name, "malformed", 1, f"{message.topic[:80]}: {e}")
                return None
            return stream.place(block, self._clock.now_ns(), self._clock.monotonic_ns())
        return None


class _Stream:
    def __init__(self, stream: str, options: MqttOptions, context: SourceContext) -> None:
        n = len(options.channels)
        self.spec = StreamSpec(
            id=StreamId(context.site, context.node, stream),
            kind=options.kind,
            rate_hz=options.rate_hz,
            channels=tuple(options.channels),
            units=tuple(options.units),
            sensitivity=tuple(options.sensitivity) or (1.0,) * n,
            modality=options.modality,
        )
        self._refuse = context.refuse
        self._newest_ns = -(2**62)
        stamped = options.payload.has_time
        self._sender_ns = round((options.sender_uncertainty_ms if stamped else 0) * 1e6)
        self._synchronised = options.sender_synchronised
        self._arrival_ns = 0 if stamped else round(options.arrival_uncertainty_ms * 1e6)
        half_ns = round(NS_PER_S / options.rate_hz / 2)
        self._times = SampleClock(options.rate_hz, tolerance_ns=max(half_ns, self._arrival_ns, 2_000_000))

    def place(self, block: Block, now_ns: int, monotonic_ns: int) -> Reading | None:
        """The block in time; None when it had been taken before."""
        n = block.samples_CN.shape[1]
        if block.start_ns is None:
            stamp_ns = now_ns - round((n - 1) * NS_PER_S / self.spec.rate_hz)
        else:
            stamp_ns = block.start_ns
            if not 0 <= stamp_ns < 2**62:
                self._refuse(self.spec.id.stream, "malformed", 1, "its time is before 1970 or beyond 2116")
                return None
            if -RESTART_NS <= stamp_ns - self._newest_ns <= 0:
                self._refuse(self.spec.id.stream, "late", 1, "its time is covered already: doubled or late")
                return None
            self._newest_ns = stamp_ns
        times_N = np.array([stamp_ns], dtype=np.int64) if n == 1 else None
        start_ns = stamp_ns if n == 1 else self._times.place(stamp_ns, n).start_ns
        # A publisher's own clock is not ours: what we know of it is what the configuration says.
        clock = (
            ClockQuality("publisher", 0, self._sender_ns, self._synchronised) if block.start_ns is not None else None
        )
        monotonic_ns = 0 if clock else max(monotonic_ns - (now_ns - start_ns), 1)
        return Reading(
            self.spec.id.stream,
            start_ns,
            block.samples_CN,
            times_N,
            monotonic_ns=monotonic_ns,
            clock=clock,
            uncertainty_ns=self._arrival_ns,
        )
