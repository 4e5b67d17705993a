"""SeedLink 3, as SeisComP, ringserver and Raspberry Shakes serve it: one station, records of 512 bytes, in order.

It never waits: `step` moves what can move. A connection that ends is made again, with the record that was asked for.
obspy's client sleeps between looks, owns its thread, and asks for what follows the last record received; here it is
the last one accepted that counts.
"""

from __future__ import annotations

import os
import re
import select
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from infomae_stream.clock import NS_PER_S, Clock
from infomae_stream.errors import ConnectionFailed

HEADER_BYTES: Final = 8
RECORD_BYTES: Final = 512
PACKET_BYTES: Final = HEADER_BYTES + RECORD_BYTES
SEQUENCE_MODULUS: Final = 1 << 24
MOST_LINE_BYTES: Final = 4096
MOST_READ_BYTES: Final = 1_000_000  # in one step
FIRST_BACKOFF_S: Final = 1.0
LONGEST_BACKOFF_S: Final = 30.0
_DATA = re.compile(rb"SL([0-9A-Fa-f]{6})")


@dataclass(frozen=True, slots=True)
class Packet:
    sequence: int
    record: bytes


class SeedLinkClient:
    """selectors: channels, as in 00EHZ. next_sequence: the first record wanted, None for the next that is made.

    timeout_s: a server that says nothing for so long is taken for dead.
    """

    def __init__(
        self,
        address: tuple[str, int],
        clock: Clock,
        *,
        network: str,
        station: str,
        selectors: Sequence[str],
        next_sequence: int | None = None,
        timeout_s: float = 120.0,
    ) -> None:
        self._address, self._clock = address, clock
        self._greeting = ["HELLO", f"STATION {station} {network}", *(f"SELECT {s}" for s in selectors)]
        self.next_sequence = next_sequence
        self._timeout_ns = round(timeout_s * NS_PER_S)
        self._socket: socket.socket | None = None
        self._retry_ns = clock.monotonic_ns()
        self._backoff_s = FIRST_BACKOFF_S
        self.connections = 0

    @property
    def connected(self) -> bool:
        """Records may come."""
        return self._socket is not None and not self._connecting and not self._commands

    def wait(self, timeout_s: float) -> None:
        """Until there is something to do, for at most `timeout_s`."""
        if self._socket is None:
            self._clock.sleep(timeout_s)
        else:
            select.select([self._socket], [self._socket] if self._connecting else [], [], timeout_s)

    def step(self) -> list[Packet]:
        """What has arrived. Raises ConnectionFailed, once for each attempt; the next one follows by itself."""
        now_ns = self._clock.monotonic_ns()
        try:
            if self._socket is None:
                if now_ns < self._retry_ns:
                    return []
                self._connect(now_ns)
            if self._connecting and not self._established():
                if now_ns - self._heard_ns > self._timeout_ns:
                    raise ConnectionFailed("no answer")
                return []
            ended = self._receive(now_ns)
            self._negotiate()
            packets = self._packets()
            if ended and not packets:
                raise ConnectionFailed("the server hung up")
            return packets
        except (OSError, ConnectionFailed) as e:
            self.close()
            self._retry_ns = now_ns + round(self._backoff_s * NS_PER_S)
            self._backoff_s = min(2 * self._backoff_s, LONGEST_BACKOFF_S)
            said = e.what if isinstance(e, ConnectionFailed) else e.strerror or str(e)
            raise ConnectionFailed(said, where=f"seedlink {self._address[0]}:{self._address[1]}") from e

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self, now_ns: int) -> None:
        family, kind, _, _, address = socket.getaddrinfo(*self._address, type=socket.SOCK_STREAM)[0]
        self._socket = socket.socket(family, kind)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._socket.connect_ex(address)
        self._connecting, self._buffer, self._heard_ns = True, b"", now_ns
        # DATA goes on from a record; END begins the transfer and has no answer.
        resume = "DATA" if self.next_sequence is None else f"DATA {self.next_sequence % SEQUENCE_MODULUS:06X}"
        self._commands = [*self._greeting, resume]

    def _established(self) -> bool:
        assert self._socket is not None
        if not select.select([], [self._socket], [], 0)[1]:
            return False
        error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, _words(error))
        self._connecting = False
        self._say(self._commands[0])
        return True

    def _receive(self, now_ns: int) -> bool:
        """Take what has come; True when nothing more will."""
        assert self._socket is not None
        received = 0
        while received < MOST_READ_BYTES:
            try:
                data = self._socket.recv(65_536)
            except BlockingIOError:
                break
            if not data:
                return True
            self._buffer += data
            received += len(data)
        if received:
            self._heard_ns = now_ns
        elif now_ns - self._heard_ns > self._timeout_ns:
            raise ConnectionFailed(f"nothing heard for {self._timeout_ns / NS_PER_S:g} s")
        return False

    def _negotiate(self) -> None:
        """Commands one by one, each after the answer to the one before it."""
        while self._commands:
            lines = 2 if self._commands[0] == "HELLO" else 1
            parts = self._buffer.split(b"\r\n", lines)
            if len(parts) <= lines:
                if len(self._buffer) > MOST_LINE_BYTES:
                    raise ConnectionFailed("this is no SeedLink server: it answers at length")
                return
            self._buffer = parts[lines]
            if lines == 2 and not parts[0].lower().startswith(b"seedlink"):
                raise ConnectionFailed(f"this is no SeedLink server: {parts[0][:60]!r}")
            if lines == 1 and parts[0] != b"OK":
                raise ConnectionFailed(f"{self._commands[0]!r} is answered {parts[0][:60]!r}")
            self._commands.pop(0)
            self._say(self._commands[0] if self._commands else "END")
        self._backoff_s = FIRST_BACKOFF_S if self._buffer else self._backoff_s

    def _packets(self) -> list[Packet]:
        packets: list[Packet] = []
        while not self._commands and len(self._buffer) >= HEADER_BYTES:
            header = self._buffer[:HEADER_BYTES]
            if header.startswith((b"ERROR", b"END")):
                raise ConnectionFailed(f"the server says {header[:5]!r}")
            found = _DATA.fullmatch(header)
            if found is None and not header.startswith(b"SLINFO"):
                raise ConnectionFailed(f"no packet begins with {header!r}")
            if len(self._buffer) < PACKET_BYTES:
                break
            if found is not None:
                sequence = int(found[1], 16)
                packets.append(Packet(sequence, self._buffer[HEADER_BYTES:PACKET_BYTES]))
                self.next_sequence = (sequence + 1) % SEQUENCE_MODULUS
            self._buffer = self._buffer[PACKET_BYTES:]
        return packets

    def _say(self, command: str) -> None:
        if command == "END":
            self.connections += 1
        assert self._socket is not None
        self._socket.sendall(f"{command}\r\n".encode("ascii"))


def _words(error: int) -> str:
    return os.strerror(error)
