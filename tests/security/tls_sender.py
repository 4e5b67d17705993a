"""A node's connection over TLS that sends records until the hub has acknowledged them, and writes its truth log."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from infomae_stream.errors import ConnectionFailed
from infomae_stream.node_config import MqttSettings
from infomae_stream.session import MqttSession
from infomae_stream.topics import node_topic, stream_topic
from infomae_stream.types import Chunk
from infomae_stream.wire import chunk_crc32, decode_ack, encode_chunk


class TlsSender:
    """`messages` keeps whatever else arrives. step() sends, listens, and returns how many records still wait."""

    def __init__(self, settings: MqttSettings, site: str, node: str, truth_dir: Path, listen_to: str = "") -> None:
        ack = node_topic(site, listen_to or node, "ack")
        self.session = MqttSession(settings, node, subscriptions=[(ack, 1)])
        self.session.start()
        self._topic = stream_topic(site, node, "imu", "chunk")
        self._waiting: dict[int, tuple[bytes, float]] = {}
        self.acks = 0
        truth_dir.mkdir(exist_ok=True)
        self._truth = (truth_dir / f"{node}.jsonl").open("a", buffering=1)

    def accept(self, chunk: Chunk) -> None:
        stream = chunk.spec.id
        line = {"kind": "chunk", "site": stream.site, "node": stream.node, "stream": stream.stream}
        line |= {"epoch": chunk.epoch, "seq": chunk.seq, "start_ns": chunk.start_ns, "n_samples": chunk.n_samples}
        self._truth.write(json.dumps(line | {"crc32": chunk_crc32(chunk)}) + "\n")
        self._waiting[chunk.seq] = (encode_chunk(chunk), 0.0)

    def step(self) -> int:
        now = time.monotonic()
        if self.session.connected:
            for seq, (payload, sent_at) in self._waiting.items():
                if now - sent_at > 0.5 and self.session.publish(self._topic, payload):
                    self._waiting[seq] = (payload, now)
        with suppress(ConnectionFailed):
            for message in self.session.poll(0.02):
                self.acks += 1
                ack = decode_ack(message.payload)
                for first, last, *_ in (*ack.durable, *ack.refused):
                    for seq in [s for s in self._waiting if first <= s <= last]:
                        del self._waiting[seq]
        return len(self._waiting)

    def close(self) -> None:
        self.session.close()
        self._truth.close()
