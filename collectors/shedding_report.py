"""What a node shed, told: every record counted, and one line at the beginning and at the end of an episode."""

from __future__ import annotations

from collections import Counter
from typing import Final

from infomae_stream.clock import NS_PER_S, Clock
from infomae_stream.telemetry import EventLog, Telemetry

QUIET_NS: Final = 600 * NS_PER_S  # a full outbox sheds about once a minute; this long without ends the episode


class SheddingReport:
    def __init__(self, clock: Clock, telemetry: Telemetry, log: EventLog, *, site: str, node: str) -> None:
        self._clock, self._telemetry, self._log = clock, telemetry, log
        self._labels = {"site": site, "node": node}
        self._last_ns: int | None = None  # when records were shed last, None outside of an episode
        self._episode: Counter[str] = Counter()

    def add(self, counts: Counter[str]) -> None:
        """counts: records shed since the last call, by stream; call it also with none, so that an episode can end."""
        now_ns = self._clock.monotonic_ns()
        if counts:
            dropped = self._telemetry.counter("infomae_chunks_dropped_total")
            dropped.labels(**self._labels, reason="shed").inc(counts.total())
            for stream, count in counts.items():
                by_stream = self._telemetry.counter("infomae_records_shed_total")
                by_stream.labels(**self._labels, stream=stream).inc(count)
            if self._last_ns is None:
                self._log.warning("shedding_began", **self._labels, records=dict(counts))
            self._last_ns = now_ns
            self._episode += counts
        elif self._last_ns is not None and now_ns - self._last_ns > QUIET_NS:
            self._log.info("shedding_ended", **self._labels, records=dict(self._episode))
            self._last_ns = None
            self._episode.clear()
