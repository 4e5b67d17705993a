"""Rendered recordings of body-worn IMUs, in chunks of one second: what tests put into real lakes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from infomae_stream.clock import NS_PER_S
from infomae_stream.types import Chunk, ClockQuality, StreamId, StreamSpec

T0 = 1_657_533_978 * NS_PER_S
GOOD_CLOCK = ClockQuality("declared", synchronised=True, uncertainty_ns=1_000_000)
AXES = ("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z")


def imu_spec(site: str, device: str, rate_hz: float = 100.0) -> StreamSpec:
    stream = StreamId(site, f"{site}-{device}", "imu")
    units = ("m/s2",) * 3 + ("rad/s",) * 3
    return StreamSpec(stream, "imu", rate_hz, AXES, units, (1000.0,) * 6, modality=f"{device}_imu")


def recording(
    site: str,
    device: str,
    first_s: int,
    last_s: int,
    clock: ClockQuality = GOOD_CLOCK,
    *,
    seed: int = 0,
    still_axis: int | None = None,
    rhythm_hz: Callable[[int], float] = lambda second: 2.0,
) -> list[Chunk]:
    """Seconds first_s..last_s-1 after T0 of a sway with `rhythm_hz(second)`; the sequence number is the second.

    The watch swings harder and on other axes than the phone: related, not equal. `still_axis` never moves.
    """
    chunks = []
    phase_6 = np.arange(6) if device == "phone" else np.arange(6)[::-1] * 2.0
    for second in range(first_s, last_s):
        rng = np.random.default_rng([seed, second, len(site), sum(map(ord, site + device))])
        t_N = second + np.arange(100) / 100
        hz = rhythm_hz(second)
        swing = (1.0 if device == "phone" else 2.0) * min(hz, 4.0) / 2
        x_6N = swing * np.sin(2 * np.pi * hz * t_N[None, :] + phase_6[:, None]) + rng.normal(0, 0.1, (6, 100))
        x_6N[2 if device == "phone" else 0] += 9.81
        if still_axis is not None:
            x_6N[still_axis] = 1.0
        counts = np.round(x_6N * 1000).clip(-32767, 32766).astype(np.int16)
        chunks.append(Chunk(imu_spec(site, device), "e1", second, T0 + second * NS_PER_S, counts, clock))
    return chunks
