"""Small valid records for tests of the hub."""

from __future__ import annotations

import numpy as np

from infomae_stream.clock import NS_PER_S
from infomae_stream.types import Chunk, ClockQuality, Detection, Gap, StreamId, StreamSpec

START_NS = 1_600_000_000 * NS_PER_S
CHANNELS = ("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z")


def make_spec(site: str = "s01", node: str = "s01-phone", stream: str = "imu") -> StreamSpec:
    units = ("m/s2",) * 3 + ("rad/s",) * 3
    return StreamSpec(StreamId(site, node, stream), "imu", 100.0, CHANNELS, units, (1000.0,) * 6, "phone_imu")


def make_chunk(
    seq: int, *, site: str = "s01", node: str = "s01-phone", epoch: str = "e1", seed: int | None = None, n: int = 100
) -> Chunk:
    """Chunk `seq` starts `seq` seconds after START_NS; `seed` chooses its samples (by default `seq` does)."""
    samples = np.random.default_rng(seq if seed is None else seed).integers(-3000, 3000, (6, n)).astype(np.int16)
    start_ns = START_NS + seq * NS_PER_S
    clock = ClockQuality("chrony", 1_000, 2_000_000, True, "boot", 5)
    return Chunk(make_spec(site, node), epoch, seq, start_ns, samples, clock, accepted_ns=start_ns + NS_PER_S)


def make_gap(seq: int, *, site: str = "s01", node: str = "s01-phone", epoch: str = "e1") -> Gap:
    start_ns = START_NS + seq * NS_PER_S
    return Gap(StreamId(site, node, "imu"), epoch, seq, start_ns, start_ns + NS_PER_S, "shed", 100)


def make_detection(seq: int, *, site: str = "s01", node: str = "s01-phone", epoch: str = "e1") -> Detection:
    start_ns = START_NS + seq * NS_PER_S
    scores = {"walking": 0.75, "standing": 0.25}
    end_ns = start_ns + 2 * NS_PER_S
    return Detection(site, node, epoch, seq, start_ns, end_ns, "walking", scores, ("phone_imu",), 3, "ab" * 32)


def same_chunk(a: Chunk, b: Chunk) -> bool:
    """Equal in everything that a chunk says."""
    plain = all(getattr(a, n) == getattr(b, n) for n in ("spec", "epoch", "seq", "start_ns", "clock", "accepted_ns"))
    times = (a.times_ns is None) == (b.times_ns is None) and (
        a.times_ns is None or b.times_ns is None or np.array_equal(a.times_ns, b.times_ns)
    )
    return plain and times and a.samples_CN.dtype == b.samples_CN.dtype and np.array_equal(a.samples_CN, b.samples_CN)
