"""The nodes of benchmarks/fleet.py: many in one process, each with a connection of its own.

`fleet_nodes.py PORT NODES FIRST SECONDS`. A node makes chunks of an 8 kHz microphone (int16, 1 s), a 100 Hz
seismometer (int32, 8 s) and a six-axis IMU (100 Hz, int16, 4 s): 17.6 kB/s. It keeps to what the outbox's sender
keeps to: at most 1 MB without the hub's acknowledgement, sent again 10 s (20, 40, at most 60 in all) after acks come
now, a backlog after an outage (what is sent again included) at 88 kB/s at most and after a random wait of up to 10 s,
reconnects with jittered back-off.
Lines of JSON every 5 s, the last with all counts; "end" on stdin stops the making of chunks.
"""

from __future__ import annotations

import heapq
import json
import random
import select
import selectors
import socket
import sys
import time
from collections import OrderedDict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.rig import EPOCH, FIRST_SEQ, SITE, ChunkTemplate, noise_blocks, with_checksums
from collectors.hub import mqtt_packets as packets
from infomae_stream.clock import NS_PER_S
from infomae_stream.types import StreamId, StreamSpec
from infomae_stream.wire import decode_ack

INFLIGHT_BYTES, RESEND_S, BACKLOG_BYTES_PER_S, START_JITTER_S = 1_000_000, 10.0, 88_000, 10.0
AXES = ("ax", "ay", "az", "gx", "gy", "gz")
# name: kind, rate, channels, type, seconds a chunk
STREAMS = {
    "mic": ("acoustic", 8000.0, ("p",), "int16", 1.0),
    "geo": ("seismic", 100.0, ("z",), "int32", 8.0),
    "imu": ("imu", 100.0, AXES, "int16", 4.0),
}
BLOCKS = {
    name: with_checksums(noise_blocks(16, int(rate * length) * len(channels), dtype))
    for name, (_, rate, channels, dtype, length) in STREAMS.items()
}


class Node:
    def __init__(self, name: str, port: int, rng: random.Random) -> None:
        self.name, self._port, self._rng = name, port, rng
        self._templates = {}
        for stream, (kind, rate, channels, dtype, _) in STREAMS.items():
            n = len(channels)
            spec = StreamSpec(StreamId(SITE, name, stream), kind, rate, channels, ("Pa",) * n, (1000.0,) * n)
            self._templates[stream] = ChunkTemplate(spec, BLOCKS[stream][0][0], dtype)
        self.seq = FIRST_SEQ
        # seq: stream, accepted, first sent, sent again at, times
        self.waiting: OrderedDict[int, tuple[str, float, float, float, int]] = OrderedDict()
        self._unsent: OrderedDict[int, None] = OrderedDict()
        self._inflight = 0
        self._allowance = 0.0
        self._ack_s = 0.0  # how long acks take now
        self._paced_at = self._backlog_from = 0.0
        self.sock: socket.socket | None = None
        self._out = bytearray()
        self._connect_at = time.monotonic() + rng.uniform(0, 2.0)
        self._backoff = 0.25
        self.online = False
        self.lags: list[tuple[float, float]] = []  # when acknowledged, after how long
        self.accepted = self.resent = self.connects = self.refused = 0

    def accept(self, stream: str, now: float) -> None:
        self.waiting[self.seq] = (stream, now, 0.0, 0.0, 0)
        self._unsent[self.seq] = None
        self.seq += 1
        self.accepted += 1

    def step(self, now: float, selector: selectors.BaseSelector) -> None:
        if self.sock is None:
            if now >= self._connect_at:
                self._connect(now, selector)
            return
        if self.online:
            self._send_due(now)
        self.flush(now, selector)

    def _connect(self, now: float, selector: selectors.BaseSelector) -> None:
        sock = socket.socket()
        try:
            sock.settimeout(2.0)
            sock.connect(("127.0.0.1", self._port))
        except OSError:
            sock.close()
            self._lost(now, None)
            return
        sock.setblocking(False)
        self.sock, self.connects = sock, self.connects + 1
        self._reader = packets.PacketReader(4, 65_536, self._acknowledged)
        ack = f"infomae/v1/{SITE}/{self.name}/ack"
        self._out = bytearray(packets.connect(packets.Login(self.name, 60, True), 4))
        self._out += packets.subscribe(65_535, [(ack, 1)], 4)
        selector.register(sock, selectors.EVENT_READ, self)

    def _lost(self, now: float, selector: selectors.BaseSelector | None) -> None:
        if self.sock is not None and selector is not None:
            selector.unregister(self.sock)
            self.sock.close()
        self.sock, self.online = None, False
        self._connect_at = now + self._backoff * self._rng.uniform(0.5, 1.5)
        self._backoff = min(2 * self._backoff, 10.0)
        for seq in self.waiting:
            self._unsent[seq] = None
        self._unsent = OrderedDict(sorted(self._unsent.items()))
        self._inflight = 0

    def _send_due(self, now: float) -> None:
        self._allowance = min(self._allowance + (now - self._paced_at) * BACKLOG_BYTES_PER_S, 100_000.0)
        self._paced_at = now
        backlog = len(self._unsent) > 5
        for seq, (_, _, _, again, _) in list(self.waiting.items())[:100]:
            if again and now > again and seq not in self._unsent and self._allowance > 0:
                self._publish(seq, now)
                self.resent += 1
        while self._unsent and self._inflight < INFLIGHT_BYTES:
            if backlog and (now < self._backlog_from or self._allowance <= 0):
                break
            seq, _ = self._unsent.popitem(last=False)
            self._publish(seq, now)
            stream = self.waiting[seq][0]
            self._inflight += self._templates[stream].size

    def _publish(self, seq: int, now: float) -> None:
        stream, accepted, first, _, times = self.waiting[seq]
        template, length = self._templates[stream], STREAMS[stream][4]
        accepted_ns = int(accepted * NS_PER_S)
        start_ns = accepted_ns - int(length * NS_PER_S)
        payload = template.payload(seq, start_ns, accepted_ns, BLOCKS[stream][seq % 16])
        self._out += packets.publish(seq % 65_534 + 1, template.topic, payload, False, 4)
        self._allowance -= len(payload)
        patience = min(self._ack_s + RESEND_S * 2**times, 6 * RESEND_S)
        self.waiting[seq] = (stream, accepted, first or now, now + patience, times + 1)

    def flush(self, now: float, selector: selectors.BaseSelector) -> None:
        try:
            while self._out and self.sock is not None:
                del self._out[: self.sock.send(self._out)]
        except BlockingIOError:
            return
        except OSError:
            self._lost(now, selector)

    def read(self, now: float, selector: selectors.BaseSelector) -> None:
        assert self.sock is not None
        try:
            n = self.sock.recv_into(self._reader.space(65_536))
        except BlockingIOError:
            return
        except OSError:
            n = 0
        if n == 0:
            self._lost(now, selector)
            return
        for kind, _ in self._reader.feed(n):
            if kind == packets.SUBACK:
                self.online, self._backoff, self._paced_at = True, 0.25, now
                self._backlog_from = now + self._rng.uniform(0, START_JITTER_S)
        self._out += self._reader.acknowledge
        self._reader.acknowledge.clear()

    def _acknowledged(self, _topic: bytes, payload: bytes, _retain: bool) -> None:
        ack, now = decode_ack(payload), time.time()
        assert ack.epoch == EPOCH
        self.refused += len(ack.refused)
        for first, last in ack.durable:
            for seq in range(first, last + 1):
                found = self.waiting.pop(seq, None)
                if found is not None:
                    self._unsent.pop(seq, None)
                    self._inflight = max(0, self._inflight - self._templates[found[0]].size)
                    self._ack_s += (now - found[2] - self._ack_s) / 8
                    self.lags.append((now, now - found[1]))


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def main() -> None:
    port, count, first, seconds = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    rng = random.Random(first)
    nodes = [Node(f"node-{i:04d}", port, rng) for i in range(first, first + count)]
    selector = selectors.DefaultSelector()
    start = time.time()
    # Each stream of each node at its own moment; the first five seconds are for connecting.
    due = [(start + 5 + rng.uniform(0, STREAMS[s][4]), i, s) for i in range(count) for s in STREAMS]
    heapq.heapify(due)
    report_at, reported = start + 10, 0.0
    ended = 0.0  # when the last chunk was made
    next_scan = 0.0
    while True:
        now = time.time()
        while not ended and due[0][0] <= now:
            at, i, stream = due[0]
            nodes[i].accept(stream, at)
            nodes[i].step(now, selector)
            heapq.heapreplace(due, (at + STREAMS[stream][4], i, stream))
        for key, _ in selector.select(min(0.02, max(0.0, due[0][0] - time.time()))):
            key.data.read(now, selector)
        if now >= next_scan:
            next_scan = now + 0.1
            for node in nodes:
                node.step(now, selector)
        if now - start > seconds + 5 and not ended:
            ended = now
        waiting = sum(len(node.waiting) for node in nodes) if now >= report_at or ended else 1
        if now >= report_at or (ended and waiting == 0):
            report(nodes, now, reported, waiting)
            report_at, reported = now + 5, now
        if ended and (waiting == 0 or now - ended > 120):
            break
        if select.select([sys.stdin], [], [], 0)[0] and sys.stdin.readline().strip() == "end":
            ended = ended or now
    print(json.dumps({"done": True, "accepted": {n.name: n.accepted for n in nodes}, "waiting": waiting}), flush=True)


def report(nodes: list[Node], now: float, since: float, waiting: int) -> None:
    lags = [lag for node in nodes for at, lag in node.lags if at > since]
    for node in nodes:
        node.lags.clear()
    line = {
        "at": now,
        "acknowledged": len(lags),
        "lag_p50_s": round(percentile(lags, 0.5), 3),
        "lag_p99_s": round(percentile(lags, 0.99), 3),
        "lag_max_s": round(max(lags, default=0.0), 3),
        "waiting": waiting,
        "oldest_s": round(max((now - next(iter(n.waiting.values()))[1] for n in nodes if n.waiting), default=0.0), 2),
        "online": sum(n.online for n in nodes),
        "resent": sum(n.resent for n in nodes),
        "refused": sum(n.refused for n in nodes),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
