"""Stations behind a SeedLink server: SeisComP, ringserver, a Raspberry Shake's own (port 18000). Extra `seismo`.

The server keeps records for a while, so a restart or a broken link costs nothing: it goes on with the record that was
the last one accepted into the outbox. N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from collectors.sensing.miniseed_bytes import load_obspy, read_miniseed
from collectors.sensing.seedlink_client import SEQUENCE_MODULUS, Packet, SeedLinkClient
from collectors.sensing.seismic_channels import StationOptions
from collectors.sources import Reading, SourceContext
from infomae_stream.clock import NS_PER_S
from infomae_stream.config import Settings
from infomae_stream.errors import ConnectionFailed, SourceError
from infomae_stream.node_config import Port
from infomae_stream.types import ClockQuality, StreamSpec

# A position's offset is (sequence << RECORD_BITS) + samples taken of that record.
RECORD_BITS: Final = 20
RATE_TOLERANCE: Final = 0.01  # between a record's rate and the declared one
# Older than the newest by more than this: the station's clock was set back, and time starts anew (as in the chunker).
RESTART_NS: Final = 60 * NS_PER_S


class SeedLinkOptions(StationOptions):
    host: str = "127.0.0.1"
    port: Port = 18_000
    timeout_s: float = Field(120.0, ge=5)  # without a word from the server, before connecting anew


class SeedLinkSource:
    """Live, yet with a memory: the server's. One stream a channel."""

    Options: ClassVar[type[Settings]] = SeedLinkOptions
    live: ClassVar[bool] = True

    def __init__(self, options: SeedLinkOptions, context: SourceContext) -> None:
        self._refuse = context.refuse
        load_obspy()  # now, so that a node without it says so at once
        uncertainty_ns = round(options.clock_uncertainty_ms * 1e6)
        self._quality = ClockQuality("station", 0, uncertainty_ns, True)
        self._specs = {options.spec(code, context).seed_id: options.spec(code, context) for code in options.channels}
        places = {spec.id.stream: context.position(spec.id.stream) for spec in self._specs.values()}
        self._resumed = {stream: p for stream, p in places.items() if p is not None and p.last_ns}
        self._newest_ns = {stream: p.last_ns for stream, p in self._resumed.items()}
        # The channel that is furthest back decides, unless another has never been heard.
        heard = len(self._resumed) == len(self._specs)
        oldest = min(self._resumed.values(), key=lambda p: p.last_ns) if heard else None
        self._client = SeedLinkClient(
            (options.host, options.port),
            context.clock,
            network=options.network,
            station=options.station,
            selectors=[f"{options.location}{code}" for code in options.channels],
            next_sequence=oldest.offset >> RECORD_BITS if oldest else None,
            timeout_s=options.timeout_s,
        )

    @property
    def connected(self) -> bool:
        return self._client.connected

    def specs(self) -> Sequence[StreamSpec]:
        return tuple(self._specs.values())

    def poll(self, timeout_s: float) -> Sequence[Reading]:
        """The records that have arrived. While there is no server: nothing; the client connects again by itself."""
        try:
            packets = self._client.step()
            if not packets and timeout_s > 0:
                self._client.wait(timeout_s)
                packets = self._client.step()
        except ConnectionFailed as e:
            self._refuse("", "connection", 1, str(e))
            return []
        return [reading for packet in packets if (reading := self._take(packet)) is not None]

    def close(self) -> None:
        self._client.close()

    def _take(self, packet: Packet) -> Reading | None:
        try:
            (trace,) = read_miniseed(packet.record, f"record {packet.sequence:06X}")
        except (SourceError, ValueError) as e:
            self._refuse("", "malformed", 1, str(e))
            return None
        spec = self._specs.get(trace.id)
        if spec is None:
            self._refuse("", "channel", 1, f"{trace.id} is not in channels")
        elif abs(trace.stats.sampling_rate - spec.rate_hz) > RATE_TOLERANCE * spec.rate_hz:
            said = f"{trace.id} has {trace.stats.sampling_rate:g} Hz, rate_hz says {spec.rate_hz:g}"
            self._refuse(spec.id.stream, "rate", 1, said)
        elif trace.data.dtype.name not in ("int16", "int32", "float32", "float64") or not len(trace.data):
            self._refuse(spec.id.stream, "malformed", 1, f"{trace.id} holds {trace.data.dtype.name}")
        else:
            data_N: NDArray[Any] = trace.data.astype(trace.data.dtype.newbyteorder("="), copy=False)
            return self._reading(spec, packet.sequence, int(trace.stats.starttime.ns), data_N)
        return None

    def _reading(self, spec: StreamSpec, sequence: int, start_ns: int, data_N: NDArray[Any]) -> Reading | None:
        stream, half_ns = spec.id.stream, NS_PER_S / spec.rate_hz / 2
        times_N = start_ns + np.round(np.arange(len(data_N)) * 2 * half_ns).astype(np.int64)
        accepted = self._accepted_again(stream, sequence, int(times_N[-1] - half_ns))
        if accepted >= len(data_N):
            return None
        first, newest_ns = accepted, self._newest_ns.get(stream)
        if newest_ns is not None and times_N[-1] >= newest_ns - RESTART_NS:
            # Half a sample of grace: records of one run are not stamped to the nanosecond.
            first = max(first, int(np.searchsorted(times_N, newest_ns + half_ns)))
        if first > accepted:
            said = f"record {sequence:06X}: its time is covered already: doubled or late"
            self._refuse(stream, "late", first - accepted, said)
        if first == len(data_N):
            return None
        self._newest_ns[stream] = int(times_N[-1])
        offset = (sequence << RECORD_BITS) + first
        return Reading(stream, int(times_N[first]), data_N[None, first:], None, "", offset, clock=self._quality)

    def _accepted_again(self, stream: str, sequence: int, last_ns: int) -> int:
        """How many samples of this record had been accepted before the restart: they were only asked for again."""
        position = self._resumed.get(stream)
        if position is None:
            return 0
        behind = (sequence - (position.offset >> RECORD_BITS)) % SEQUENCE_MODULUS
        if behind > SEQUENCE_MODULUS // 2 and last_ns <= position.last_ns:
            return 1 << RECORD_BITS
        del self._resumed[stream]
        return position.offset & ((1 << RECORD_BITS) - 1) if behind == 0 else 0
