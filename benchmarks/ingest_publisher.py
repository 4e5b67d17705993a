"""The publisher of benchmarks/ingest.py: sends for so many seconds, as fast as the consumer takes it.

`ingest_publisher.py PORT SECONDS WINDOW_MB PACE`. PACE "acks": at most WINDOW_MB are without the hub's acknowledgement;
"tcp": at most WINDOW_MB are not yet taken from the broker by its other client (peers acknowledge nothing).
Last line: JSON of what was sent and acknowledged.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.rig import EPOCH, FIRST_SEQ, NODES, ChunkPackets, received_bytes
from collectors.hub import mqtt_packets as packets
from infomae_stream.wire import decode_ack

BATCH = 8


class Publisher:
    def __init__(self, port: int, window_bytes: int, pace: str) -> None:
        self._port, self._window, self._pace = port, window_bytes, pace
        self._sock = socket.create_connection(("127.0.0.1", port))
        self._reader = packets.PacketReader(4, 8_000_000, self._message)
        self._packets = ChunkPackets()
        self.sent = self.pubacked = 0
        self.sent_bytes = 0
        self.acked: set[tuple[str, int]] = set()
        self.refused = 0
        self._looked_at = 0.0
        self._taken_bytes = 0
        self._sock.sendall(packets.connect(packets.Login("publisher", 60, True), 4))
        self._sock.sendall(packets.subscribe(65_535, [("infomae/v1/+/+/ack", 1)], 4))
        time.sleep(0.3)

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self._sock.settimeout(0.02)
        while time.monotonic() < end:
            if self.sent - self.pubacked > 500 or self._waiting() > self._window:
                self._read(0.005)
                continue
            accepted_ns = time.time_ns()
            # In one step: what this process takes of its core the broker does not have.
            data = b"".join([part for k in range(BATCH) for part in self._packets.parts(self.sent + k, accepted_ns)])
            self._send(data)
            self.sent += BATCH
            self.sent_bytes += len(data)
            self._read(0)

    def drain(self, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and len(self.acked) + self.refused < self.sent:
            self._read(0.05)

    def _waiting(self) -> int:
        if self._pace == "acks":
            return (self.sent - len(self.acked)) * 16_400
        now = time.monotonic()
        if now - self._looked_at > 0.1:
            self._looked_at = now
            self._taken_bytes = received_bytes(self._port, self._sock.getsockname()[1])
        return self.sent_bytes - self._taken_bytes

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._sock.send(view) :]
            except TimeoutError:
                self._read(0)

    def _read(self, timeout_s: float) -> None:
        self._sock.settimeout(timeout_s)
        try:
            n = self._sock.recv_into(self._reader.space(1_000_000))
        except (TimeoutError, BlockingIOError):
            n = 0
        finally:
            self._sock.settimeout(0.02)
        for kind, _ in self._reader.feed(n) if n else ():
            self.pubacked += kind == packets.PUBACK
        if self._reader.acknowledge:
            self._sock.sendall(self._reader.acknowledge)
            self._reader.acknowledge.clear()

    def _message(self, topic: bytes, payload: bytes, _retain: bool) -> None:
        node = topic.decode().split("/")[3]
        ack = decode_ack(payload)
        for first, last in ack.durable:
            self.acked |= {(node, seq) for seq in range(first, last + 1)}
        self.refused += len(ack.refused)


def main() -> None:
    port, seconds, window_mb, pace = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
    publisher = Publisher(port, int(window_mb * 1e6), pace)
    started = time.time()
    publisher.run(seconds)
    ended = time.time()
    if pace == "acks":
        publisher.drain(60)
    print(
        json.dumps(
            {
                "started": started,
                "ended": ended,
                "sent": publisher.sent,
                "acked": len(publisher.acked),
                "refused": publisher.refused,
                "epoch": EPOCH,
                "first_seq": FIRST_SEQ,
                "nodes": NODES,
            }
        )
    )


if __name__ == "__main__":
    main()
