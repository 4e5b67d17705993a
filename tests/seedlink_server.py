"""A SeedLink 3 server on a real loopback socket: it keeps records, answers commands, and can hang up."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from collectors.sensing.seedlink_client import RECORD_BYTES
from tests.waiting import PATIENCE_S


class SeedLinkServer:
    """`add` gives records from `first_sequence` on; `hang_up` drops whoever is connected; `requests` were heard."""

    def __init__(self, first_sequence: int = 1) -> None:
        self._lock = threading.Condition()
        self._records: list[tuple[int, bytes]] = []
        self._next = first_sequence
        self._peers: list[socket.socket] = []
        self._stopped = False
        self.requests: list[str] = []
        self.refuses = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._listen, daemon=True)]
        self._threads[0].start()

    def add(self, data: bytes) -> None:
        with self._lock:
            for i in range(0, len(data), RECORD_BYTES):
                self._records.append((self._next, data[i : i + RECORD_BYTES]))
                self._next = (self._next + 1) % (1 << 24)
            self._lock.notify_all()

    def hang_up(self) -> None:
        with self._lock:
            for peer in self._peers:
                with contextlib.suppress(OSError):
                    peer.shutdown(socket.SHUT_RDWR)
            self._peers.clear()

    def close(self) -> None:
        with self._lock:
            self._stopped = True
            self._lock.notify_all()
        self.hang_up()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def _listen(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._peers.append(peer)
            thread = threading.Thread(target=self._serve, args=(peer,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            first = self._negotiate(peer)
            if first is not None:
                self._stream(peer, first)

    def _negotiate(self, peer: socket.socket) -> int | None:
        first = self._next
        for command in _lines(peer):
            self.requests.append(command)
            word, *rest = command.split()
            if word == "HELLO":
                peer.sendall(b"SeedLink v3.1 (a double) :: SLPROTO:3.1\r\nnowhere\r\n")
            elif self.refuses and command.encode().startswith(self.refuses):
                peer.sendall(b"ERROR\r\n")
            elif word in ("STATION", "SELECT"):
                peer.sendall(b"OK\r\n")
            elif word == "DATA":
                if rest:
                    first = int(rest[0], 16)
                peer.sendall(b"OK\r\n")
            elif word == "END":
                return first
        return None

    def _stream(self, peer: socket.socket, first: int) -> None:
        with self._lock:
            sequences = [s for s, _ in self._records]
            # One that is not there (any more): what comes next.
            at = sequences.index(first) if first in sequences else len(sequences)
        while True:
            with self._lock:
                while at >= len(self._records) and not self._stopped and peer in self._peers:
                    self._lock.wait(0.1)
                if self._stopped or peer not in self._peers:
                    return
                sequence, record = self._records[at]
            peer.sendall(b"SL%06X" % sequence + record)
            at += 1


def _lines(peer: socket.socket) -> Iterator[str]:
    buffer = b""
    while data := peer.recv(4096):
        buffer += data.replace(b"\n", b"")
        while b"\r" in buffer:
            line, _, buffer = buffer.partition(b"\r")
            if line:
                yield line.decode()
