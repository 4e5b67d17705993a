"""A real `hub ingest`, and a sender that does what an outbox does, for fault tests."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from infomae_stream.node_config import MqttSettings
from infomae_stream.session import MqttSession
from infomae_stream.topics import node_topic, stream_topic
from infomae_stream.types import Chunk
from infomae_stream.wire import chunk_crc32, decode_ack, encode_chunk
from tests import waiting
from tests.brokers import free_port


class IngestProcess:
    """`infomae-stream hub ingest`; `kill` is SIGKILL, `stop` is SIGTERM and gives the exit code."""

    def __init__(self, folder: Path, broker_port: int, lake_path: Path | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.lake_path = lake_path or folder / "lake"
        self.metrics_port = free_port()
        self.config = folder / "hub.toml"
        self.config.write_text(
            f"[mqtt]\nport = {broker_port}\n[lake]\npath = '{self.lake_path}'\n"
            f"[metrics]\ningest_port = {self.metrics_port}\n[ingest]\ncommit_interval_s = 0.1\n"
            "[matcher]\nmodalities = ['phone_imu', 'watch_imu']\n[align]\nclasses = ['walking', 'standing']\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "ingest.log").open("ab") as log:
            command = [sys.executable, "-m", "infomae_stream.cli", "hub", "ingest", "--config", str(self.config)]
            self.process = subprocess.Popen(command, stderr=log)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(waiting.PATIENCE_S)

    def log(self) -> str:
        return (self.folder / "ingest.log").read_text()

    def metric(self, sample: str) -> float:
        """Value of one sample line of /metrics; 0 when it is not there yet."""
        return waiting.sample(self.metrics_port, sample)


class Sender:
    """Sends chunks of one node until the hub has acknowledged them, and writes the truth log."""

    def __init__(self, truth_dir: Path, port: int, site: str, node: str, resend_after_s: float = 0.5) -> None:
        self._site, self._node = site, node
        ack = node_topic(site, node, "ack")
        self._session = MqttSession(MqttSettings(port=port), f"{node}-sender", subscriptions=[(ack, 1)])
        self._session.start()
        self._topic = stream_topic(site, node, "imu", "chunk")
        self.waiting: dict[int, tuple[bytes, float]] = {}
        self._resend_after_s = resend_after_s
        truth_dir.mkdir(exist_ok=True)
        self._truth = (truth_dir / f"{node}.jsonl").open("a", buffering=1)
        self.refused: list[tuple[int, int, str]] = []
        self.sent = 0
        self.acknowledged = 0

    def accept(self, chunk: Chunk) -> None:
        stream = chunk.spec.id
        line = {"kind": "chunk", "site": stream.site, "node": stream.node, "stream": stream.stream}
        line |= {"epoch": chunk.epoch, "seq": chunk.seq, "start_ns": chunk.start_ns, "n_samples": chunk.n_samples}
        self._truth.write(json.dumps(line | {"crc32": chunk_crc32(chunk)}) + "\n")
        self.waiting[chunk.seq] = (encode_chunk(chunk), 0.0)

    def send_raw(self, payload: bytes, topic: str = "") -> None:
        self._session.publish(topic or self._topic, payload)

    def step(self) -> int:
        """Send what is due, take in acks; return how many records wait for theirs."""
        now = time.monotonic()
        for seq, (payload, sent_at) in list(self.waiting.items())[:500]:
            if now - sent_at > self._resend_after_s and self._session.publish(self._topic, payload):
                self.waiting[seq] = (payload, now)
                self.sent += 1
        for message in self._session.poll(0.02):
            ack = decode_ack(message.payload)
            self.refused += ack.refused
            for first, last, *_ in (*ack.durable, *ack.refused):
                for seq in [s for s in self.waiting if first <= s <= last]:
                    del self.waiting[seq]
                    self.acknowledged += 1
        return len(self.waiting)

    def close(self) -> None:
        self._session.close()
        self._truth.close()
