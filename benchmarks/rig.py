"""What the benchmarks of ingest share: a pinned broker, a publisher that is never the slow one, figures of processes.

The publisher makes valid chunks without encoding each: one is encoded with `encode_chunk`, and its seq, its times and
its samples (with their checksum) are put in place of the old ones. Every identity is sent once.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from collectors.hub import mqtt_packets as packets
from infomae_stream.clock import NS_PER_S
from infomae_stream.types import Chunk, ClockQuality, StreamId, StreamSpec
from infomae_stream.wire import encode_chunk

N_SAMPLES = 8000
SITE, EPOCH, STREAM = "bench", "e1", "mic"
FIRST_SEQ = 70_000  # so that all have the same length in CBOR
NODES = 8
START_NS = 1_763_700_000 * NS_PER_S


def say(*what: object) -> None:
    print(*what, file=sys.stderr, flush=True)


def machine() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        model = next((line.split(":")[1].strip() for line in f if line.startswith("model name")), "unknown CPU")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    system = f"Linux {platform.release()}, Python {sys.version.split()[0]}"
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {system}"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def pinned(core: int | None, command: list[str]) -> list[str]:
    return command if core is None else ["taskset", "-c", str(core), *command]


class PinnedMosquitto:
    """Its queues have no bound: the publisher bounds what is on the way."""

    def __init__(self, folder: Path, core: int | None, port: int = 0) -> None:
        self.port = port or free_port()
        config = folder / "mosquitto.conf"
        config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\nlog_type none\n"
            "max_inflight_messages 1000\nmax_queued_messages 0\nset_tcp_nodelay true\n"
        )
        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        self._command = pinned(core, [program, "-c", str(config)])
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)
        for _ in range(500):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", self.port)) == 0:
                    return process
            time.sleep(0.02)
        raise RuntimeError("mosquitto does not start")

    def restart(self) -> None:
        self.process = self._start()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def cpu_seconds(pid: int, *, kernel_only: bool = False) -> float:
    """User and system time of a process, all its threads; or what of it the kernel took."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
        user, kernel = f.read().rpartition(")")[2].split()[11:13]
    return (int(kernel) + (0 if kernel_only else int(user))) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int, what: str = "VmHWM") -> float:
    """VmHWM: the most it ever had resident; VmRSS: now."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith(what))


def received_bytes(port: int, own_port: int) -> int:
    """Bytes that the broker's clients, but the one at `own_port`, have taken from it (TCP acknowledged)."""
    command = ["ss", "-tinH", "state", "established", "sport", "=", f":{port}"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    total = 0
    for peer, info in zip(lines[::2], lines[1::2], strict=False):
        if not peer.rstrip().endswith(f":{own_port}"):
            total += sum(int(w.split(":")[1]) for w in info.split() if w.startswith("bytes_acked:"))
    return total


def noise_blocks(n_blocks: int, n_samples: int, dtype: str = "int16", counts: float = 800) -> list[bytes]:
    """Noise as a quiet sensor gives it: falling spectrum, +-`counts`; zstd saves a sixth of such int16 audio."""
    rng = np.random.default_rng(1)
    blocks = []
    for _ in range(n_blocks):
        spectrum = np.fft.rfft(rng.standard_normal(n_samples)) / np.maximum(np.arange(n_samples // 2 + 1), 200)
        x = np.fft.irfft(spectrum, n_samples)
        blocks.append(np.round(x / x.std() * counts).astype(np.dtype(dtype).newbyteorder("<")).tobytes())
    return blocks


class ChunkTemplate:
    """Valid messages of one stream, as `encode_chunk` makes them, without encoding each."""

    def __init__(self, spec: StreamSpec, samples: bytes, dtype: str = "int16") -> None:
        clock = ClockQuality("chrony", 12_000, 250_000, True, "0b5e8a30-5b0e-4f4c-8a0b-1f0f6f9f7c11", 10**14)
        array = np.frombuffer(samples, np.dtype(dtype)).reshape(len(spec.channels), -1)
        chunk = Chunk(spec, EPOCH, FIRST_SEQ, START_NS, array, clock, accepted_ns=START_NS)
        payload = encode_chunk(chunk)
        seq = payload.index(b"\x63seq\x1a") + 5
        start = payload.index(b"\x68start_ns\x1b") + 10
        accepted = payload.index(b"\x6baccepted_ns\x1b") + 13
        block = payload.index(samples)
        crc = payload.index(b"\x65crc32", block + len(samples)) + 6
        self._to_seq, self._to_start = payload[:seq], payload[seq + 4 : start]
        self._to_accepted, self._to_block = payload[start + 8 : accepted], payload[accepted + 8 : block]
        self._to_crc = payload[block + len(samples) : crc] + b"\x1a"
        stream = spec.id
        self.topic = f"infomae/v1/{stream.site}/{stream.node}/{stream.stream}/chunk"
        self.size = len(payload)

    def payload(self, seq: int, start_ns: int, accepted_ns: int, block: tuple[bytes, bytes]) -> bytes:
        """`block`: samples and their checksum, as `with_checksums` gives them."""
        return b"".join(self.parts(seq, start_ns, accepted_ns, block))

    def parts(self, seq: int, start_ns: int, accepted_ns: int, block: tuple[bytes, bytes]) -> tuple[bytes, ...]:
        """What `payload` joins."""
        samples, crc = block
        parts = (self._to_seq, struct.pack(">I", seq), self._to_start, struct.pack(">Q", start_ns), self._to_accepted)
        return (*parts, struct.pack(">Q", accepted_ns), self._to_block, samples, self._to_crc, crc)


def with_checksums(blocks: list[bytes]) -> list[tuple[bytes, bytes]]:
    return [(block, struct.pack(">I", zlib.crc32(block))) for block in blocks]


class ChunkPackets:
    """PUBLISH packets of the streams of some nodes in turn, QoS 1, protocol level 4."""

    def __init__(self, nodes: int = NODES) -> None:
        self._blocks = with_checksums(noise_blocks(64, N_SAMPLES))
        specs = [
            StreamSpec(StreamId(SITE, f"node-{i}", STREAM), "acoustic", 8000.0, ("p",), ("Pa",), (1000.0,))
            for i in range(nodes)
        ]
        self._templates = [ChunkTemplate(spec, self._blocks[0][0]) for spec in specs]
        # Up to the packet id.
        self._heads = [packets.publish(1, t.topic, bytes(t.size), False, 4)[: -2 - t.size] for t in self._templates]

    def parts(self, i: int, accepted_ns: int) -> tuple[bytes, ...]:
        """Packet `i` (0, 1, ...) in pieces: seq FIRST_SEQ + i // nodes of node i % nodes."""
        second, node = divmod(i, len(self._templates))
        start_ns = START_NS + second * NS_PER_S
        chunk = self._templates[node].parts(FIRST_SEQ + second, start_ns, accepted_ns, self._blocks[i % 64])
        return (self._heads[node], struct.pack(">H", i % 65_534 + 1), *chunk)


def segments_since(folder: Path, since_s: float) -> Iterator[tuple[float, Path]]:
    for path in folder.rglob("*.parquet"):
        if not path.name.startswith(".") and "_delta_log" not in path.parts:
            changed = path.stat().st_mtime
            if changed >= since_s:
                yield changed, path
