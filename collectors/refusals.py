"""What sources refuse, counted and told: each reason at once, then once a minute with the number since."""

from __future__ import annotations

import threading
from typing import Final

from infomae_stream.clock import NS_PER_S, Clock
from infomae_stream.telemetry import EventLog, Telemetry

TELL_EVERY_NS: Final = 60 * NS_PER_S


class Refusals:
    """The `refuse` of one node's sources (collectors.sources.Refuse); any thread may call it."""

    def __init__(self, telemetry: Telemetry, log: EventLog, clock: Clock, *, site: str, node: str) -> None:
        self._counter = telemetry.counter("infomae_source_refused_total")
        self._log, self._clock = log, clock
        self._labels = {"site": site, "node": node}
        self._lock = threading.Lock()
        self._told_ns: dict[tuple[str, str], int] = {}
        self._untold: dict[tuple[str, str], int] = {}

    def __call__(self, stream: str, reason: str, count: int = 1, detail: str = "") -> None:
        self._counter.labels(**self._labels, stream=stream, reason=reason).inc(count)
        key, now_ns = (stream, reason), self._clock.monotonic_ns()
        with self._lock:
            count += self._untold.pop(key, 0)
            told_ns = self._told_ns.get(key)
            if told_ns is not None and now_ns - told_ns < TELL_EVERY_NS:
                self._untold[key] = count
                return
            self._told_ns[key] = now_ns
        fields = {"stream": stream, "reason": reason, "count": count, "detail": detail[:200]}
        self._log.warning("source_refused", **self._labels, **fields)
