"""Raspberry Shake's UDP datacast: one channel a datagram, `{'EHZ', 1582315130.292, 14168, 14927, ...}`.

A datagram tells the time of its first sample to the millisecond and then counts: no station, no sequence number, no
checksum. So the station comes from the configuration, the sender must be on a list, and what is lost shows only as a
hole in time.
"""

from __future__ import annotations

import heapq
import ipaddress
import re
import select
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from collectors.sensing.sample_clock import SampleClock
from collectors.sensing.seismic_channels import StationOptions
from collectors.sources import Reading, SourceContext
from infomae_stream.clock import NS_PER_S
from infomae_stream.config import Settings
from infomae_stream.errors import SourceError
from infomae_stream.node_config import Port
from infomae_stream.telemetry import EventLog
from infomae_stream.types import ClockQuality, StreamSpec

FULL_SCALE: Final = float(2**23 - 1)  # the digitizer has 24 bits
MOST_DATAGRAMS: Final = 2_000  # in one poll
MOST_BYTES: Final = 65_535
KEPT_BACK: Final = 4  # datagrams of a channel that wait for one that is late
# The Shake sends a datagram when its last sample is there: one that seems much older or newer has a wrong clock.
MOST_DELAY_NS: Final = 5 * NS_PER_S
SO_RXQ_OVFL: Final = 40  # <asm-generic/socket.h>; Python's socket module has no name for it
_FORM = re.compile(rb"\{'([A-Z0-9]{3})', ?(\d{1,10})(?:\.(\d{1,9}))?((?:, ?-?\d{1,10}){1,10000})\}\s*")


class RaspberryShakeOptions(StationOptions):
    host: str = "127.0.0.1"  # where to listen; another address needs `senders`
    port: Port = 8888
    senders: list[str] = []  # addresses or networks that may send; empty: this machine only
    receive_buffer_bytes: int = Field(1_000_000, ge=4_096)

    @field_validator("senders")
    @classmethod
    def _addresses(cls, senders: list[str]) -> list[str]:
        for sender in senders:
            ipaddress.ip_network(sender)
        return senders

    @model_validator(mode="after")
    def _closed_to_strangers(self) -> RaspberryShakeOptions:
        if not self.senders and not _is_loopback(self.host):
            raise ValueError("host is not loopback: say in `senders` which addresses may send, as in ['192.168.1.20']")
        return self


@dataclass(frozen=True, slots=True, eq=False)
class Datagram:
    """start_ns: time of the first sample. samples_N: int32 counts."""

    channel: str
    start_ns: int
    samples_N: NDArray[np.int32]


def parse_datagram(data: bytes) -> Datagram:
    """Read one datagram. Raises SourceError when it is not of the form, or a count is beyond 32 bits."""
    found = _FORM.fullmatch(data)
    if found is None:
        raise SourceError(f"not of the datacast's form: {data[:60]!r}")
    channel, seconds, fraction, counts = found.groups()
    start_ns = int(seconds) * NS_PER_S + int((fraction or b"0").ljust(9, b"0"))
    values_N = np.array([int(count) for count in counts[1:].split(b",")], dtype=np.int64)
    limits = np.iinfo(np.int32)
    if values_N.max() > limits.max or values_N.min() < limits.min:
        raise SourceError(f"a count is beyond 32 bits: {data[:60]!r}")
    return Datagram(channel.decode(), start_ns, values_N.astype(np.int32))


def format_datagram(channel: str, start_ns: int, counts: Sequence[int]) -> bytes:
    """The bytes that a Shake sends; the time is rounded to milliseconds."""
    ms = round(start_ns / 1_000_000)
    return f"{{'{channel}', {ms // 1000}.{ms % 1000:03d}, {', '.join(str(c) for c in counts)}}}".encode()


class RaspberryShakeSource:
    """Live: what was sent while nobody listened is a gap. One stream a channel, named after it."""

    Options: ClassVar[type[Settings]] = RaspberryShakeOptions
    live: ClassVar[bool] = True

    def __init__(self, options: RaspberryShakeOptions, context: SourceContext) -> None:
        self._options = options
        self._clock = context.clock
        self._refuse = context.refuse
        allowed = options.senders or ["127.0.0.0/8", "::1/128"]
        self._allowed = [ipaddress.ip_network(sender) for sender in allowed]
        uncertainty_ns = round(options.clock_uncertainty_ms * 1e6)
        self._channels = {c: _Channel(options.spec(c, context), uncertainty_ns, context) for c in options.channels}
        self._socket = self._bind()
        self._dropped = 0

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens: the port is the one chosen when the option is 0."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    def specs(self) -> Sequence[StreamSpec]:
        return tuple(channel.spec for channel in self._channels.values())

    def poll(self, timeout_s: float) -> Sequence[Reading]:
        """What the socket holds. Waits for the first datagram only."""
        readings: list[Reading] = []
        if timeout_s > 0:
            select.select([self._socket], [], [], timeout_s)
        for _ in range(MOST_DATAGRAMS):
            try:
                data, notes, _, sender = self._socket.recvmsg(MOST_BYTES, socket.CMSG_SPACE(4))
            except BlockingIOError:
                break
            except OSError as e:
                raise SourceError(f"the socket failed: {e.strerror}", where=self._where()) from e
            self._count_dropped(notes)
            readings += self._take(data, sender[0])
        for channel in self._channels.values():
            readings += channel.release(self._clock.monotonic_ns())
        return readings

    def close(self) -> None:
        self._socket.close()

    def _take(self, data: bytes, sender: str) -> list[Reading]:
        address = ipaddress.ip_address(sender.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        if not any(address in network for network in self._allowed):
            self._refuse("", "sender", 1, f"{sender} is not in senders")
            return []
        try:
            datagram = parse_datagram(data)
        except SourceError as e:
            self._refuse("", "malformed", 1, str(e))
            return []
        channel = self._channels.get(datagram.channel)
        if channel is None:
            self._refuse("", "channel", 1, f"{datagram.channel} is not in channels")
            return []
        return channel.take(datagram, self._clock.now_ns(), self._clock.monotonic_ns())

    def _count_dropped(self, notes: list[tuple[int, int, bytes]]) -> None:
        """The kernel tells with a datagram how many before it found no room in the socket's buffer."""
        for level, kind, value in notes:
            if level == socket.SOL_SOCKET and kind == SO_RXQ_OVFL:
                dropped = int(struct.unpack("=I", value[:4])[0])
                if dropped != self._dropped:
                    self._refuse("", "buffer_full", (dropped - self._dropped) % 2**32, "raise receive_buffer_bytes")
                    self._dropped = dropped

    def _bind(self) -> socket.socket:
        o = self._options
        family = socket.AF_INET6 if ":" in o.host else socket.AF_INET
        made = socket.socket(family, socket.SOCK_DGRAM)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, o.receive_buffer_bytes)
            made.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
            made.bind((o.host, o.port))
        except OSError as e:
            made.close()
            fix = "stop what else listens there, or set the option port (and the Shake's datacast to the same)"
            raise SourceError(f"cannot listen: {e.strerror}", where=self._where(), fix=fix) from e
        made.setblocking(False)
        # The kernel gives twice what is asked, for its own book-keeping, and silently no more than its limit.
        given = made.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
        if given < o.receive_buffer_bytes:
            fields = {"asked_bytes": o.receive_buffer_bytes, "given_bytes": given, "fix": "sysctl net.core.rmem_max"}
            EventLog("infomae.sources").warning("receive_buffer_small", where=self._where(), **fields)
        return made

    def _where(self) -> str:
        return f"udp {self._options.host}:{self._options.port}"


class _Channel:
    """Datagrams of one channel in the order of time: one that comes early waits a little for those before it."""

    def __init__(self, spec: StreamSpec, uncertainty_ns: int, context: SourceContext) -> None:
        self.spec = spec
        self._refuse = context.refuse
        self._uncertainty_ns = uncertainty_ns
        # Half a sample, or two steps of the stamps' millisecond where the rate is high.
        self._tolerance_ns = max(round(NS_PER_S / spec.rate_hz / 2), 2_000_000)
        self._times = SampleClock(spec.rate_hz, tolerance_ns=self._tolerance_ns)
        self._early: list[tuple[int, int, Datagram]] = []  # a heap: start, order of arrival, datagram
        self._order = 0
        self._waiting_since_ns = 0
        self._quality = ClockQuality("raspberry_shake", 0, uncertainty_ns, True)
        self._block_ns = 0

    def take(self, datagram: Datagram, now_ns: int, monotonic_ns: int) -> list[Reading]:
        """The readings that are in order now."""
        self._judge_clock(datagram, now_ns)
        expected_ns = self._times.next_ns
        self._block_ns = round(len(datagram.samples_N) * NS_PER_S / self.spec.rate_hz)
        if expected_ns is not None:
            ahead_ns = datagram.start_ns - expected_ns
            if ahead_ns > self._tolerance_ns and ahead_ns <= KEPT_BACK * self._block_ns:
                self._order += 1
                heapq.heappush(self._early, (datagram.start_ns, self._order, datagram))
                self._waiting_since_ns = monotonic_ns if len(self._early) == 1 else self._waiting_since_ns
                return self.release(monotonic_ns)
            if -60 * NS_PER_S <= ahead_ns < -self._tolerance_ns:
                self._refuse(self.spec.id.stream, "late", 1, "its time is covered already: doubled or late")
                return []
        readings = self._drain(everything=True) if expected_ns is not None and self._is_far(datagram) else []
        readings.append(self._place(datagram))
        return readings + self.release(monotonic_ns)

    def release(self, monotonic_ns: int) -> list[Reading]:
        """Those kept back whose turn has come, or that have waited for a datagram's length or two in vain."""
        if not self._early:
            return []
        waited = monotonic_ns - self._waiting_since_ns > 2 * self._block_ns
        return self._drain(everything=waited or len(self._early) >= KEPT_BACK)

    def _is_far(self, datagram: Datagram) -> bool:
        return abs(datagram.start_ns - (self._times.next_ns or 0)) > self._tolerance_ns

    def _drain(self, *, everything: bool) -> list[Reading]:
        readings: list[Reading] = []
        while self._early:
            ahead_ns = self._early[0][0] - (self._times.next_ns or 0)
            if ahead_ns < -self._tolerance_ns:
                heapq.heappop(self._early)
                self._refuse(self.spec.id.stream, "late", 1, "its time is covered already: doubled or late")
            elif everything or ahead_ns <= self._tolerance_ns:
                readings.append(self._place(heapq.heappop(self._early)[2]))
            else:
                break
        return readings

    def _place(self, datagram: Datagram) -> Reading:
        placed = self._times.place(datagram.start_ns, len(datagram.samples_N))
        samples_CN = datagram.samples_N[None, :]
        return Reading(self.spec.id.stream, placed.start_ns, samples_CN, clock=self._quality, full_scale=FULL_SCALE)

    def _judge_clock(self, datagram: Datagram, now_ns: int) -> None:
        end_ns = datagram.start_ns + round(len(datagram.samples_N) * NS_PER_S / self.spec.rate_hz)
        delay_ns = now_ns - end_ns
        wrong = not -self._uncertainty_ns <= delay_ns <= MOST_DELAY_NS
        uncertainty_ns = abs(delay_ns) if wrong else self._uncertainty_ns
        self._quality = ClockQuality("raspberry_shake", 0, uncertainty_ns, not wrong)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
