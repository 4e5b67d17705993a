"""Each source of a node that does not run, opened as the node would open it, and listened to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from collectors.deploying.check_broker import reach
from collectors.deploying.finding import Finding, bad, bounded, good, refused, warn
from collectors.sources import Reading, Source, SourceContext, check_options, make_source
from collectors.sources.mqtt import MqttOptions
from infomae_stream.clock import SystemClock
from infomae_stream.errors import SourceClosed, SourceError
from infomae_stream.node_config import NodeConfig, NodeSettings

STEP_S: Final = 0.1
AFTER_REFUSAL_S: Final = 2.0  # something comes, and is not taken: what is wanted would have come, too
PATIENCE_S: Final = 30.0  # beside the listening: opening a device, decoding a recording
# What to do about a sensor that is there and gives nothing.
SILENT_FIX: Final = {
    "raspberry_shake": "on the Shake's page, Settings, UDP data: add this machine's address and the option `port`",
    "alsa": "is it the right device? `infomae-stream node devices` lists them, `alsamixer` shows whether it is muted",
    "iio": "does the driver need a trigger? docs/sensors.md, iio",
    "i2c": "check wiring and supply",
    "seedlink": "does the station send to this server now? `slinktool -Q HOST` lists what it has",
}
# What a source refuses, as its own reasons name it.
REFUSED_FIX: Final = {
    "sender": "add the address to `senders` of the source",
    "channel": "add the channel to `channels` of the source, or stop it at the sensor",
    "malformed": "something else sends to this port: choose another one, here and at the sensor",
    "connection": "is the server's address right, and does it know the station?",
}


@dataclass(slots=True)
class _Listening:
    """What arrived: samples by stream, whether any of them differed, and what the source refused."""

    counts: dict[str, int] = field(default_factory=dict)
    moved: set[str] = field(default_factory=set)
    first: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # reason -> detail
    refused_s: float = float("inf")  # since when, on the monotonic clock

    def refuse(self, stream: str, reason: str, count: int = 1, detail: str = "") -> None:
        self.refused.setdefault(reason, detail)
        self.refused_s = min(self.refused_s, time.monotonic())

    def add(self, reading: Reading) -> None:
        stream, samples_CN = reading.stream, reading.samples_CN
        if not samples_CN.size:
            return
        self.counts[stream] = self.counts.get(stream, 0) + samples_CN.shape[1]
        first = self.first.setdefault(stream, float(samples_CN.flat[0]))
        if np.any(samples_CN != first):
            self.moved.add(stream)


def check_sensors(config: NodeConfig, where: str, listen_s: float) -> Iterator[Finding]:
    """One finding a source; each gets `listen_s` at most to give samples of all its streams."""
    for n, node in enumerate(config.nodes):
        for m, raw in enumerate(node.sources):
            check = f"sensor {node.node}/{raw['type']}"
            prefix = ("nodes", str(n), "sources", str(m))
            yield from bounded(
                check,
                lambda raw=raw, node=node, check=check, prefix=prefix: [  # type: ignore[misc]
                    _check_source(check, raw, config, node, where, prefix, listen_s)
                ],
                listen_s + PATIENCE_S,
            )


def _check_source(
    check: str,
    raw: dict[str, Any],
    config: NodeConfig,
    node: NodeSettings,
    where: str,
    prefix: tuple[str, ...],
    listen_s: float,
) -> Finding:
    options, cls = check_options(raw, where=where, prefix=prefix)
    if isinstance(options, MqttOptions):
        # As the node it would be given, and would lose, what the broker keeps for the node.
        failed = reach(check, options.broker, f"{node.node}-doctor", list(options.topics), config.base_dir)
        return failed or good(check, f"{options.broker.host}:{options.broker.port} lets it listen (nothing was taken)")
    heard = _Listening()
    context = SourceContext(node.site, node.node, config.base_dir, SystemClock(), lambda stream: None, heard.refuse)
    try:
        source = make_source(raw, context, where=where, prefix=prefix)
        try:
            streams = [spec.id.stream for spec in source.specs()]
            _listen(source, heard, set(streams), listen_s)
        finally:
            source.close()
    except SourceError as e:
        return refused(check, e, f"docs/sensors.md, {raw['type']}")
    return _judge(check, str(raw["type"]), streams, heard, listen_s, live=getattr(cls, "live", False))


def _listen(source: Source, heard: _Listening, streams: set[str], listen_s: float) -> None:
    """Until each stream has moved, the source is closed, something else keeps coming, or `listen_s` is over."""
    deadline = time.monotonic() + listen_s
    while time.monotonic() < min(deadline, heard.refused_s + AFTER_REFUSAL_S) and heard.moved != streams:
        try:
            for reading in source.poll(STEP_S):
                heard.add(reading)
        except SourceClosed:
            return


def _judge(check: str, kind: str, streams: list[str], heard: _Listening, listen_s: float, *, live: bool) -> Finding:
    silent = [stream for stream in streams if stream not in heard.counts]
    if silent and live:
        what = f"{', '.join(silent)}: no sample"
        for reason, detail in heard.refused.items():
            if reason in REFUSED_FIX:
                return bad(check, f"{what}; refused: {detail or reason}", REFUSED_FIX[reason])
        return bad(check, f"{what} in {listen_s:g} s", SILENT_FIX.get(kind, f"docs/sensors.md, {kind}"))
    told = ", ".join(f"{stream} {heard.counts.get(stream, 0)} samples" for stream in streams)
    still = [stream for stream in heard.counts if stream not in heard.moved]
    if still and live:
        what = f"{', '.join(still)}: every sample is {heard.first[still[0]]:g}"
        return warn(check, what, "a cable that is off, a microphone that is muted, or a dead chip?")
    return good(check, told)
