"""What a node of the paper's size (8 kHz int16, 100 Hz int32, six IMU axes: 17.6 kB/s) costs its disk and its memory.

Commits: one second of such data an outbox commit, fsync included, in turn with two peers in the same folder: a plain
SQLite table with the same settings and the same bytes (no index, no trigger, no sums), and a file that is appended to
and fsynced. Percentiles over all commits; the ratio is of the medians. Shedding: the same commits into a full outbox.

Process: a real `node collect` with synthetic sensors against mosquitto and a hub that acknowledges once a second. After
the warm-up, in which the outbox comes to rest (acknowledged rows stay for a minute), what the kernel counts as written
(/proc/PID/io) a byte of payload, and the memory. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import rig
from benchmarks.rig import cpu_seconds, memory_mb, say
from infomae_stream.clock import NS_PER_S, SystemClock
from infomae_stream.node_config import MqttSettings
from infomae_stream.outbox import Outbox
from infomae_stream.session import MqttSession
from infomae_stream.shedding import SheddingPolicy
from infomae_stream.topics import node_topic, parse_topic
from infomae_stream.types import ClockQuality, StreamId, StreamSpec
from infomae_stream.wire import Ack, decode_chunk, encode_ack, seq_ranges

QUALITY = ClockQuality("bench", 0, 1000, True)
ID = ("bench", "n1")
SPECS = {
    StreamSpec(StreamId(*ID, "acoustic"), "acoustic", 8000.0, ("mic",), ("Pa",), (1.0,)): "int16",
    StreamSpec(StreamId(*ID, "seismic"), "seismic", 100.0, ("ehz",), ("um/s",), (1.0,)): "int32",
    StreamSpec(StreamId(*ID, "imu"), "imu", 100.0, tuple("abcdef"), ("m/s2",) * 6, (1.0,) * 6): "int16",
}


def put_second(outbox: Outbox, second: int, rng: np.random.Generator) -> None:
    for spec, dtype in SPECS.items():
        samples_CN = rng.integers(-30_000, 30_000, (len(spec.channels), round(spec.rate_hz)), dtype=dtype)
        outbox.put_chunk(spec, second * NS_PER_S, samples_CN, QUALITY)


class PlainTable:
    """The same file settings, and nothing but the bytes."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("CREATE TABLE records (seq INTEGER PRIMARY KEY, payload BLOB NOT NULL)")

    def commit(self, payloads: list[bytes]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany("INSERT INTO records (payload) VALUES (?)", [(p,) for p in payloads])
        self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()


def percentiles(values_s: list[float]) -> tuple[float, float]:
    """(p50, p99) in ms."""
    return statistics.median(values_s) * 1e3, float(np.percentile(values_s, 99)) * 1e3


def measure_commits(folder: Path, commits: int) -> dict[str, float]:
    rng = np.random.default_rng(1)
    outbox = Outbox.open(folder / "outbox.sqlite", SystemClock(), max_bytes=10**10, reserve_bytes=0)
    plain = PlainTable(folder / "plain.sqlite")
    took: dict[str, list[float]] = {"outbox": [], "plain": [], "append": []}
    with (folder / "append.bin").open("wb", buffering=0) as append:
        for second in range(commits):
            put_second(outbox, second, rng)
            after = outbox.last_seq()
            began = time.perf_counter()
            outbox.commit()
            took["outbox"].append(time.perf_counter() - began)
            payloads = [r.payload for r in outbox.pending(10**9, after)]
            began = time.perf_counter()
            plain.commit(payloads)
            took["plain"].append(time.perf_counter() - began)
            began = time.perf_counter()
            append.write(b"".join(payloads))
            os.fsync(append.fileno())
            took["append"].append(time.perf_counter() - began)
            # As on a node, where the hub acknowledges and old rows go.
            outbox.put_ack(Ack(outbox.epoch, ((after + 1, outbox.last_seq()),)))
            if second % 60 == 59:
                outbox.purge(0.0)
    outbox.close()
    plain.close()
    found = {}
    for name, values in took.items():
        found[f"{name}_p50_ms"], found[f"{name}_p99_ms"] = percentiles(values)
        say(f"{name:8} p50 {found[f'{name}_p50_ms']:.2f} ms, p99 {found[f'{name}_p99_ms']:.2f} ms")
    return found


def measure_shedding(folder: Path, commits: int) -> dict[str, float]:
    """Commits into an outbox that holds an hour and is full."""
    rng, hour = np.random.default_rng(2), 3600
    path = folder / "full.sqlite"
    filling = Outbox.open(path, SystemClock(), max_bytes=10**10, reserve_bytes=0)
    for second in range(hour):
        put_second(filling, second, rng)
        if second % 100 == 99:
            filling.commit()
    limit = filling.unacked_bytes()
    filling.close()
    outbox = Outbox.open(path, SystemClock(), max_bytes=limit, reserve_bytes=0, shedding=SheddingPolicy())
    quiet, shedding = [], []
    for second in range(hour, hour + commits):
        put_second(outbox, second, rng)
        began = time.perf_counter()
        outbox.commit()
        (shedding if outbox.take_shed() else quiet).append(time.perf_counter() - began)
    outbox.close()
    worst_ms = max(shedding) * 1e3
    share_ms = (sum(shedding) - len(shedding) * statistics.median(quiet)) / commits * 1e3
    say(
        f"full outbox: {len(shedding)} of {commits} commits shed, {share_ms:.3f} ms a commit, at most {worst_ms:.1f} ms"
    )
    return {"shedding_commits": len(shedding), "shedding_worst_ms": worst_ms, "shedding_ms_per_commit": share_ms}


class Hub:
    """Acknowledges once a second what arrived, and counts its bytes."""

    def __init__(self, port: int) -> None:
        self._session = MqttSession(MqttSettings(port=port), "hub", subscriptions=[("infomae/v1/+/+/+/chunk", 1)])
        self._session.start()
        self.payload_bytes = self.sample_bytes = 0

    def work(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(1.0)
            seqs: dict[tuple[str, str, str], list[int]] = {}
            for message in self._session.poll(0.0):
                topic, chunk = parse_topic(message.topic), decode_chunk(message.payload)
                seqs.setdefault((topic.site, topic.node, chunk.epoch), []).append(chunk.seq)
                self.payload_bytes += len(message.payload)
                self.sample_bytes += chunk.samples_CN.nbytes
            for (site, node, epoch), numbers in seqs.items():
                self._session.publish(node_topic(site, node, "ack"), encode_ack(Ack(epoch, seq_ranges(numbers))))

    def close(self) -> None:
        self._session.close()


def written_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("write_bytes")))


def measure_process(folder: Path, warmup_s: float, seconds: float) -> dict[str, float]:
    broker = rig.PinnedMosquitto(folder, None)
    config = folder / "node.toml"
    config.write_text(
        f"[mqtt]\nport = {broker.port}\n[metrics]\ncollect_port = 0\n"
        '[[nodes]]\nsite = "bench"\nnode = "n1"\n'
        '[[nodes.sources]]\ntype = "synthetic"\nkinds = ["acoustic", "seismic", "imu"]\n'
    )
    hub = Hub(broker.port)
    with (folder / "collect.log").open("wb") as log:
        command = [sys.executable, "-m", "infomae_stream.cli", "node", "collect", "--config", str(config)]
        node = subprocess.Popen(command, stderr=log, cwd=Path(__file__).resolve().parents[1])
    try:
        say(f"node collect, {warmup_s:.0f} s of warm-up")
        hub.work(warmup_s)
        rss_mb = memory_mb(node.pid, "VmRSS")
        began, bytes_began, cpu_began = time.monotonic(), written_bytes(node.pid), cpu_seconds(node.pid)
        payload_began, samples_began = hub.payload_bytes, hub.sample_bytes
        hub.work(seconds)
        took_s, written = time.monotonic() - began, written_bytes(node.pid) - bytes_began
        payload, samples = hub.payload_bytes - payload_began, hub.sample_bytes - samples_began
        rss_mb = max(rss_mb, memory_mb(node.pid, "VmRSS"))
        cpu_share = (cpu_seconds(node.pid) - cpu_began) / took_s
    finally:
        node.send_signal(signal.SIGTERM)
        node.wait(20)
        hub.close()
        broker.stop()
    say(f"{payload / took_s:.0f} payload bytes/s ({samples / took_s:.0f} of samples), {written / took_s:.0f} written/s")
    return {
        "bytes_written_per_payload_byte": written / payload,
        "bytes_written_per_sample_byte": written / samples,
        "payload_bytes_per_s": payload / took_s,
        "rss_mb": rss_mb,
        "cpu_share": cpu_share,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commits", type=int, default=1000)
    parser.add_argument("--warmup", type=float, default=75.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to be measured; default: TMPDIR")
    args = parser.parse_args()
    say(str(rig.machine()))
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        commits = measure_commits(folder, args.commits)
        shedding = measure_shedding(folder, args.commits)
        process = measure_process(folder, args.warmup, args.seconds)
    result: dict[str, Any] = {
        "commit_p50_ms": commits["outbox_p50_ms"],
        "commit_p99_ms": commits["outbox_p99_ms"],
        "ratio_to_plain_sqlite": commits["outbox_p50_ms"] / commits["plain_p50_ms"],
        "bytes_written_per_payload_byte": process.pop("bytes_written_per_payload_byte"),
        "rss_mb": process.pop("rss_mb"),
        "ratio_to_append": commits["outbox_p50_ms"] / commits["append_p50_ms"],
        **{k: v for k, v in commits.items() if not k.startswith("outbox")},
        **shedding,
        **process,
    }
    print(json.dumps({k: round(v, 4) for k, v in result.items()} | {"machine": rig.machine()}))


if __name__ == "__main__":
    main()
