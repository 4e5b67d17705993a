"""One node's sources into its outbox: chunked, committed once a second, and what found no room accounted for."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from collectors.chunker import Chunker, Piece
from collectors.gap_ledger import GapLedger
from collectors.signal_faults import count_clipped, is_flat
from collectors.sources import Position, Reading, Source
from infomae_stream.clock import NS_PER_S
from infomae_stream.errors import DataError, OutboxFull, SourceClosed, SourceError
from infomae_stream.outbox import Accepted, Outbox
from infomae_stream.telemetry import EventLog, Telemetry
from infomae_stream.types import ClockQuality, StreamSpec

COMMIT_BYTES = 1_000_000  # this much waiting is committed before its time
_RATE_MEMORY = 0.05


@dataclass(slots=True)
class _Stream:
    spec: StreamSpec
    chunker: Chunker
    source: Source
    taken: int = 0  # samples that came, whatever becomes of them
    refused_told: int = 0
    rate_error: float = 0.0


def read_position(outbox: Outbox, stream: str) -> Position | None:
    """How far `stream` has been accepted; None when nothing has been."""
    raw = outbox.get_state(f"position/{stream}")
    return None if raw is None else Position(**json.loads(raw))


class Intake:
    """offset_ns: what this node's clock shows minus the truth; it is added to the source's times (declared clocks)."""

    def __init__(
        self,
        sources: list[Source],
        outbox: Outbox,
        *,
        clock_quality: Callable[[], ClockQuality],
        offset_ns: int,
        telemetry: Telemetry,
        log: EventLog,
        site: str,
        node: str,
    ) -> None:
        self._sources = list(sources)
        self._outbox = outbox
        self._clock_quality = clock_quality
        self._offset_ns = offset_ns
        self._telemetry = telemetry
        self._log = log
        self._labels = {"site": site, "node": node}
        self._ledger = GapLedger()
        self._put: list[tuple[StreamSpec, int, int, int]] = []  # what the next commit holds: spec, start, end, samples
        self._gaps_buffered = False
        self.full = False  # of the last commit
        self._shed_bytes = 0
        self._streams: dict[str, _Stream] = {}
        for source in self._sources:
            self._meet(source)

    @property
    def finished(self) -> bool:
        """Every source has ended and all it gave has been committed."""
        return not self._sources and not self._put and not self._ledger.spans()

    @property
    def specs(self) -> list[StreamSpec]:
        return [stream.spec for stream in self._streams.values()]

    @property
    def sources(self) -> Sequence[Source]:
        """Those that have not ended."""
        return self._sources

    @property
    def taken(self) -> Mapping[str, int]:
        """Samples that came so far, by stream, of the sources that have not ended."""
        return {name: s.taken for name, s in self._streams.items() if s.source in self._sources}

    @property
    def samples_taken(self) -> int:
        """Samples that came so far, of all."""
        return sum(stream.taken for stream in self._streams.values())

    @property
    def rates_hz(self) -> Mapping[str, float]:
        return {name: stream.spec.rate_hz for name, stream in self._streams.items()}

    def poll(self) -> None:
        """Take what the sources have, unless a commit's worth waits already. A source that fails is closed."""
        for source in list(self._sources):
            if self._outbox.buffered_bytes >= COMMIT_BYTES:
                return
            try:
                readings = source.poll(0.0)
                self._meet(source)
                for reading in readings:
                    self._take(reading)
            except SourceClosed:
                self._end(source)
            except SourceError as e:
                self._log.error("source_failed", **self._labels, reason=str(e))
                self._end(source)

    @property
    def commit_is_due(self) -> bool:
        return self._outbox.buffered_bytes >= COMMIT_BYTES

    def commit(self) -> list[Accepted]:
        """D1. What found no room is counted and becomes a gap record with the first commit that finds some.

        Raises OutboxError when the file is locked or broken; what is buffered stays and is tried again.
        """
        spans = self._ledger.spans()
        if not self._put and not spans:
            return []
        try:
            # A gap is told when there is room for what follows it, not for the gap alone.
            self._outbox.make_room(0 if self._put or not self.full else self._shed_bytes)
            if not self._gaps_buffered:
                for span in spans:
                    self._outbox.put_gap(span.stream, span.start_ns, span.end_ns, span.reason, span.n_samples)
                self._gaps_buffered = True  # a commit that fails without a verdict leaves them in the buffer
            accepted = self._outbox.commit()
        except OutboxFull as e:
            self._shed(e)
            return []
        self._gaps_buffered = False
        self._ledger.clear()
        self._put.clear()
        if self.full:
            self.full, self._shed_bytes = False, 0
            self._log.info("outbox_has_room", **self._labels)
        return accepted

    def settle(self) -> list[Accepted]:
        """Commit also what is in the making. Raises OutboxError: it stays for the next commit."""
        for stream in self._streams.values():
            self._store(stream, stream.chunker.flush())
        return self.commit()

    def close(self, keep: Collection[Source] = ()) -> list[Accepted]:
        """Settle, then let go of the sources but for those to keep."""
        try:
            accepted = self.settle()
            return accepted + self._tell_last_gaps()
        finally:
            for source in self._sources:
                if source not in keep:
                    source.close()

    def _meet(self, source: Source) -> None:
        """Make room for its streams, of which a sensor that was not there tells later. Raises SourceError."""
        for spec in source.specs():
            known = self._streams.get(spec.id.stream)
            if known is None:
                chunker = Chunker(spec, position=read_position(self._outbox, spec.id.stream))
                self._streams[spec.id.stream] = _Stream(spec, chunker, source)
            elif known.source is not source:
                raise SourceError("two sources give this stream", where=str(spec.id), fix="set the option stream")

    def _tell_last_gaps(self) -> list[Accepted]:
        """There is no later commit to wait for: gap records alone may use the reserve."""
        spans = self._ledger.spans()
        if not spans:
            return []
        for span in spans:
            self._outbox.put_gap(span.stream, span.start_ns, span.end_ns, span.reason, span.n_samples)
        try:
            accepted = self._outbox.commit()
        except OutboxFull as e:
            self._log.error("gaps_not_told", **self._labels, gaps=len(spans), reason=str(e))
            return []
        self._ledger.clear()
        return accepted

    def _take(self, reading: Reading) -> None:
        stream = self._streams[reading.stream]
        stream.taken += reading.samples_CN.shape[1]
        clipped = count_clipped(reading.samples_CN, reading.full_scale)
        if clipped:
            labels = {**self._labels, "stream": reading.stream}
            self._telemetry.counter("infomae_stream_clipped_samples_total").labels(**labels).inc(clipped)
        self._store(stream, stream.chunker.push(reading))
        refused = stream.chunker.refused_backward - stream.refused_told
        if refused:
            stream.refused_told += refused
            self._count_refused(stream, "backward_time", refused)

    def _count_refused(self, stream: _Stream, reason: str, n_samples: int) -> None:
        labels = {**self._labels, "stream": stream.spec.id.stream, "reason": reason}
        self._telemetry.counter("infomae_samples_refused_total").labels(**labels).inc(n_samples)

    def _store(self, stream: _Stream, pieces: list[Piece]) -> None:
        for piece in pieces:
            start_ns = piece.start_ns + self._offset_ns
            times_ns = None if piece.times_ns is None else piece.times_ns + self._offset_ns
            quality = self._quality(piece)
            try:
                self._outbox.put_chunk(stream.spec, start_ns, piece.samples_CN, quality, times_ns)
            except OutboxFull as e:
                self._shed(e)
                self._outbox.put_chunk(stream.spec, start_ns, piece.samples_CN, quality, times_ns)
            except DataError as e:
                self._log.warning("samples_refused", **self._labels, reason=str(e))
                self._count_refused(stream, "invalid", piece.samples_CN.shape[1])
                continue
            name = stream.spec.id.stream
            self._outbox.put_state(f"position/{name}", json.dumps(asdict(piece.position)).encode())
            end_ns = piece.position.last_ns + self._offset_ns + round(NS_PER_S / stream.spec.rate_hz)
            self._put.append((stream.spec, start_ns, end_ns, piece.samples_CN.shape[1]))
            self._measure(stream, piece, end_ns)

    def _quality(self, piece: Piece) -> ClockQuality:
        q = piece.clock or self._clock_quality()
        # Recordings have no monotonic clock; their own time, without this node's error, does its work.
        monotonic_ns = piece.monotonic_ns or piece.start_ns
        uncertainty_ns = q.uncertainty_ns + piece.uncertainty_ns
        return ClockQuality(q.source, q.offset_ns, uncertainty_ns, q.synchronised, q.boot_id, monotonic_ns)

    def _measure(self, stream: _Stream, piece: Piece, end_ns: int) -> None:
        labels = {**self._labels, "stream": stream.spec.id.stream}
        n = piece.samples_CN.shape[1]
        self._telemetry.counter("infomae_stream_samples_total").labels(**labels).inc(n)
        self._telemetry.gauge("infomae_stream_last_sample_timestamp_seconds").labels(**labels).set(end_ns / NS_PER_S)
        self._telemetry.counter("infomae_stream_gap_seconds_total").labels(**labels).inc(piece.hole_ns / NS_PER_S)
        span_ns = piece.position.last_ns - piece.start_ns
        if is_flat(piece.samples_CN):
            flat: Any = self._telemetry.counter("infomae_stream_flatline_seconds_total")
            flat.labels(**labels).inc(span_ns / NS_PER_S)
        if n > 10 and span_ns > 0:
            error = (n - 1) / (span_ns / NS_PER_S) / stream.spec.rate_hz - 1
            stream.rate_error += _RATE_MEMORY * (error - stream.rate_error)
            self._telemetry.gauge("infomae_stream_rate_error_ratio").labels(**labels).set(stream.rate_error)

    def _shed(self, error: OutboxFull) -> None:
        """Nothing of the last batch was written: count it, and remember to say so."""
        self._shed_bytes = max(self._outbox.buffered_bytes, self._shed_bytes)
        self._outbox.discard()
        self._gaps_buffered = False
        for spec, start_ns, end_ns, n_samples in self._put:
            self._ledger.add(spec.id, start_ns, end_ns, "outbox_full", n_samples)
        dropped: Any = self._telemetry.counter("infomae_chunks_dropped_total")
        dropped.labels(**self._labels, reason="outbox_full").inc(len(self._put))
        self._put.clear()
        if not self.full:
            self.full = True
            self._log.warning("outbox_full", **self._labels, reason=str(error))

    def _end(self, source: Source) -> None:
        """The source has nothing more to give: what it left in the chunkers is complete."""
        for stream in self._streams.values():
            if stream.source is source:
                self._store(stream, stream.chunker.flush())
        source.close()
        self._sources.remove(source)
