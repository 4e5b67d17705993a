"""The synthetic scene: sources with planted factors, so that the truth is known. Always reported as synthetic.

A source has a fundamental (factor r, in every sensor), the ground a resonance (u_seismic) and the body a formant
(u_acoustic). Each factor has 8 levels, independent and uniform: the sensors share H(r) = 3 bits, noise aside.
Legend: B windows, C channels, N samples.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from infomae_stream.clock import NS_PER_S
from infomae_stream.errors import DataError
from infomae_stream.scene_signals import (
    FORMANT_HZ,
    FUNDAMENTAL_HZ,
    LEVELS,
    N_RESPONSES,
    RESONANCE_HZ,
    SENSORS,
    Factors,
    Floats,
    Sensor,
    band_shape,
    harmonics,
    pink_shape,
    response,
    shaped_noise,
    spread_channels,
    through_response,
    tone_complex,
)
from infomae_stream.types import StreamId, StreamSpec

__all__ = ["ContinuousScene", "Factors", "Pass", "SceneNode", "SceneWindows", "draw_scene_windows", "held_out_factors"]

N_SITES: Final = 2
_BLOCK_S: Final = 1
_BLOCKS_KEPT: Final = 4
_WANDER_NS: Final = 3600 * NS_PER_S
_PASS_REACH: Final = 4.0  # a pass is heard this many widths around its closest point


@dataclass(frozen=True)
class SceneWindows:
    """`x`: sensor kind -> x_BCN float32 in physical units, row b of all is the same instant. Labels are int64, (B,)."""

    x: dict[str, NDArray[np.float32]]
    r_B: NDArray[np.int64]
    u_seismic_B: NDArray[np.int64]
    u_acoustic_B: NDArray[np.int64]
    parity_B: NDArray[np.int64]
    node_B: NDArray[np.int64]
    site_B: NDArray[np.int64]
    snr_db: dict[str, NDArray[np.float64]]
    dropped: dict[str, NDArray[np.bool_]]


def draw_scene_windows(
    n: int,
    seed: int,
    *,
    kinds: Sequence[str] = ("seismic", "acoustic"),
    window_s: float = 2.0,
    snr_db: tuple[float, float] = (-5.0, 20.0),
    dropout: float = 0.05,
) -> SceneWindows:
    """Draw `n` > 0 independent windows; window b depends on the settings, `seed` and b alone.

    Nuisance: phases, gain +-6 dB, offset +-50 ms between sensors, pink noise at an SNR uniform in `snr_db`, 4 node
    responses, 2 sites, and in a share `dropout` of windows a stretch of zeros. Raises DataError for an unknown kind.
    """
    for kind in kinds:
        if kind not in SENSORS:
            raise DataError(f"unknown sensor {kind!r}", where="synthetic scene", fix=f"known: {', '.join(SENSORS)}")
    rows = [_draw_window(np.random.default_rng((seed, b)), kinds, window_s, snr_db, dropout) for b in range(n)]
    labels_B6 = np.array([row.labels for row in rows], dtype=np.int64).reshape(n, 6)
    return SceneWindows(
        x={kind: np.stack([row.x[kind] for row in rows]) for kind in kinds},
        r_B=labels_B6[:, 0],
        u_seismic_B=labels_B6[:, 1],
        u_acoustic_B=labels_B6[:, 2],
        parity_B=labels_B6[:, 3],
        node_B=labels_B6[:, 4],
        site_B=labels_B6[:, 5],
        snr_db={kind: np.array([row.snr_db[kind] for row in rows]) for kind in kinds},
        dropped={kind: np.array([row.dropped[kind] for row in rows]) for kind in kinds},
    )


def held_out_factors(seed: int, share: float = 0.2) -> NDArray[np.bool_]:
    """Which combinations (r, u_seismic, u_acoustic) are held out for tests, shape (8, 8, 8)."""
    combinations = LEVELS**3
    held = np.zeros(combinations, dtype=np.bool_)
    held[np.random.default_rng(seed).permutation(combinations)[: round(share * combinations)]] = True
    return held.reshape(LEVELS, LEVELS, LEVELS)


@dataclass(frozen=True)
class _WindowRow:
    labels: tuple[int, ...]
    x: dict[str, NDArray[np.float32]]
    snr_db: dict[str, float]
    dropped: dict[str, bool]


def _draw_window(
    rng: np.random.Generator, kinds: Sequence[str], window_s: float, snr_range: tuple[float, float], dropout: float
) -> _WindowRow:
    factors = Factors.draw(rng)
    node, site = int(rng.integers(N_RESPONSES)), int(rng.integers(N_SITES))
    phase_seed = int(rng.integers(2**31))
    x: dict[str, NDArray[np.float32]] = {}
    snr_db: dict[str, float] = {}
    dropped: dict[str, bool] = {}
    for kind in kinds:
        sensor = SENSORS[kind]
        n_samples = round(window_s * sensor.rate_hz)
        t_N = np.arange(n_samples) / sensor.rate_hz + rng.uniform(-0.025, 0.025)
        signal_N = window_signal(rng, t_N, factors, sensor, phase_seed)
        signal_N = through_response(signal_N, sensor.rate_hz, node, site)
        snr_db[kind] = float(rng.uniform(*snr_range))
        noise_N = shaped_noise(rng, n_samples, pink_shape(n_samples, sensor.rate_hz))
        noise_N *= np.sqrt(np.mean(signal_N**2) / np.mean(noise_N**2)) * 10 ** (-snr_db[kind] / 20)
        gain = 10 ** (rng.uniform(-6, 6) / 20)
        x_CN = spread_channels(gain * (signal_N + noise_N), sensor, np.random.default_rng(node))
        dropped[kind] = bool(rng.random() < dropout)
        if dropped[kind]:
            start, length = rng.uniform(0, 0.85), rng.uniform(0.025, 0.15)
            x_CN[:, round(start * n_samples) : round((start + length) * n_samples)] = 0.0
        x[kind] = x_CN.astype(np.float32)
    f = factors
    return _WindowRow((f.r, f.u_seismic, f.u_acoustic, f.parity, node, site), x, snr_db, dropped)


def window_signal(rng: np.random.Generator, t_N: Floats, factors: Factors, sensor: Sensor, phase_seed: int) -> Floats:
    """What the sensor hears of the source, without noise: its harmonics (equal phases in all sensors), its own band."""
    frequencies_hz = harmonics(float(FUNDAMENTAL_HZ[factors.r]), sensor.rate_hz)
    signal_N = tone_complex(t_N, frequencies_hz, _phases(phase_seed, len(frequencies_hz)))
    centre_hz = _private_band_hz(factors, sensor)
    if centre_hz is not None:
        signal_N = signal_N + shaped_noise(rng, len(t_N), band_shape(len(t_N), sensor.rate_hz, centre_hz))
    return signal_N


def _phases(seed: int, n: int) -> Floats:
    return np.random.default_rng(seed).uniform(0, 2 * np.pi, size=n)


def _private_band_hz(factors: Factors, sensor: Sensor) -> float | None:
    if sensor.kind == "seismic":
        return float(RESONANCE_HZ[factors.u_seismic])
    return float(FORMANT_HZ[factors.u_acoustic]) if sensor.kind == "acoustic" else None


@dataclass(frozen=True, slots=True)
class SceneNode:
    """A node beside the road of its site.

    clock_offset_s: what its clock shows minus the truth. clock_drift_ppm: the offset wanders on top of it, as a sine
    of one hour whose steepest slope this is.
    """

    site: str
    node: str
    position_m: float = 0.0
    kinds: tuple[str, ...] = ("seismic", "acoustic")
    clock_offset_s: float = 0.0
    clock_drift_ppm: float = 0.0
    response: int = 0


@dataclass(frozen=True, slots=True)
class Pass:
    """One vehicle on one site's road. It is beside position x metres at `middle_ns` + x / speed."""

    site: str
    index: int
    middle_ns: int
    speed_m_s: float  # negative when it comes from the other side
    factors: Factors

    def closest_ns(self, node: SceneNode) -> int:
        return self.middle_ns + round(node.position_m / self.speed_m_s * NS_PER_S)


class ContinuousScene:
    """Vehicles pass several nodes; each stream can be read at any time, and gives the same samples every time.

    One vehicle a site every `period_s`, with its factors; heard for about `width_s` around its closest point, over
    pink noise. Keep positions within +-(period_s * speed_m_s / 4) so that passes do not run into each other.
    """

    def __init__(
        self,
        seed: int,
        nodes: Sequence[SceneNode],
        *,
        period_s: float = 20.0,
        speed_m_s: float = 10.0,
        width_s: float = 2.0,
        snr_db: float = 15.0,
    ) -> None:
        self._seed = seed
        self._nodes = {(node.site, node.node): node for node in nodes}
        self._period_ns = round(period_s * NS_PER_S)
        self._speed_m_s = speed_m_s
        self._width_s = width_s
        self._noise = 10 ** (-snr_db / 20)
        self._blocks: OrderedDict[tuple[StreamId, int], NDArray[Any]] = OrderedDict()

    def streams(self) -> list[StreamSpec]:
        """All streams; a stream bears its sensor's name."""
        specs = []
        for node in self._nodes.values():
            for kind in node.kinds:
                s = SENSORS[kind]
                stream_id = StreamId(node.site, node.node, kind)
                specs.append(StreamSpec(stream_id, s.kind, s.rate_hz, s.channels, s.units, s.sensitivity))
        return specs

    def read(self, stream: StreamId, start_ns: int, n_samples: int) -> NDArray[Any]:
        """Counts (C, n_samples), int16 or int32, from `start_ns` of the node's own clock, rounded to a whole sample.

        Raises DataError for a stream that is not in the scene.
        """
        node = self._nodes.get((stream.site, stream.node))
        if node is None or stream.stream not in node.kinds:
            raise DataError("no such stream in the scene", where=str(stream))
        sensor = SENSORS[stream.stream]
        block = round(_BLOCK_S * sensor.rate_hz)
        rate_mhz = round(sensor.rate_hz * 1000)
        first = (start_ns * rate_mhz + 500 * NS_PER_S) // (1000 * NS_PER_S)
        last = first + n_samples
        parts = [self._block(stream, node, sensor, k) for k in range(first // block, -(-last // block))]
        offset = first % block
        return np.concatenate(parts, axis=1)[:, offset : offset + n_samples]

    def passes(self, site: str, first_ns: int, end_ns: int) -> list[Pass]:
        """The vehicles that are in the middle of the site's road in [first_ns, end_ns), true time."""
        found = [self._pass(site, i) for i in range(first_ns // self._period_ns, end_ns // self._period_ns + 1)]
        return [p for p in found if first_ns <= p.middle_ns < end_ns]

    def _pass(self, site: str, index: int) -> Pass:
        rng = np.random.default_rng((self._seed, zlib.crc32(site.encode()), index))
        middle_ns = index * self._period_ns + round(self._period_ns * rng.uniform(0.45, 0.55))
        speed_m_s = float(self._speed_m_s * rng.uniform(0.8, 1.2) * rng.choice([-1.0, 1.0]))
        return Pass(site, index, middle_ns, speed_m_s, Factors.draw(rng))

    def _block(self, stream: StreamId, node: SceneNode, sensor: Sensor, index: int) -> NDArray[Any]:
        """One second on the grid of whole seconds of the node's clock: rendered whole, so that all reads agree."""
        key = (stream, index)
        found = self._blocks.get(key)
        if found is None:
            found = self._blocks[key] = self._render(stream, node, sensor, index)
            if len(self._blocks) > _BLOCKS_KEPT * len(self._nodes) * len(SENSORS):
                self._blocks.popitem(last=False)
        return found

    def _render(self, stream: StreamId, node: SceneNode, sensor: Sensor, index: int) -> NDArray[Any]:
        n = round(_BLOCK_S * sensor.rate_hz)
        key = zlib.crc32(str(stream).encode())
        shape_F = pink_shape(2 * n, sensor.rate_hz)
        x_N = self._noise * self._noise_block((key, 0), index, n, shape_F)
        true_ns = _true_ns(node, index * _BLOCK_S * NS_PER_S)
        reach_ns = round(_PASS_REACH * self._width_s * NS_PER_S)
        margin_ns = reach_ns + self._period_ns
        for vehicle in self.passes(node.site, true_ns - margin_ns, true_ns + margin_ns):
            if abs(vehicle.closest_ns(node) - true_ns) < reach_ns + NS_PER_S:
                x_N = x_N + self._vehicle(vehicle, node, sensor, key, index, n, true_ns)
        x_CN = spread_channels(x_N, sensor, np.random.default_rng(key))
        counts_CN = np.round(x_CN * np.asarray(sensor.sensitivity)[:, None])
        limits = np.iinfo(sensor.dtype)
        return np.asarray(np.clip(counts_CN, limits.min, limits.max), dtype=sensor.dtype)

    def _vehicle(
        self, vehicle: Pass, node: SceneNode, sensor: Sensor, key: int, index: int, n: int, true_ns: int
    ) -> Floats:
        # Seconds since the closest point, so that a float64 holds them; the phases refer to the middle of the road.
        step_N = np.arange(n) / sensor.rate_hz
        t_N = (true_ns - vehicle.closest_ns(node)) / NS_PER_S + step_N
        source_N = (true_ns - vehicle.middle_ns) / NS_PER_S + step_N
        frequencies_hz = harmonics(float(FUNDAMENTAL_HZ[vehicle.factors.r]), sensor.rate_hz)
        phases = _phases(zlib.crc32(f"{self._seed} {vehicle.site} {vehicle.index}".encode()), len(frequencies_hz))
        x_N = tone_complex(source_N, frequencies_hz, phases, response(frequencies_hz, node.response, 0))
        centre_hz = _private_band_hz(vehicle.factors, sensor)
        if centre_hz is not None:
            shape_F = band_shape(2 * n, sensor.rate_hz, centre_hz)
            gain = response(np.array([centre_hz]), node.response, 0)
            x_N = x_N + gain * self._noise_block((key, 1 + vehicle.index), index, n, shape_F)
        return np.asarray(np.exp(-0.5 * (t_N / self._width_s) ** 2) * x_N)

    def _noise_block(self, key: tuple[int, int], index: int, n: int, shape_F: Floats) -> Floats:
        """Stationary noise in blocks: grains of two blocks under a sine window, each overlapping the next by half."""
        window_N = np.sin(np.pi * (np.arange(2 * n) + 0.5) / (2 * n))

        def grain(i: int) -> Floats:
            rng = np.random.default_rng((self._seed, *key, i))
            return np.asarray(window_N * shaped_noise(rng, 2 * n, shape_F))

        return np.asarray(grain(index)[n:] + grain(index + 1)[:n])


def _true_ns(node: SceneNode, node_ns: int) -> int:
    """The true time at which the node's clock shows `node_ns`."""
    swing_ns = node.clock_drift_ppm * 1e-6 * _WANDER_NS / (2 * np.pi)
    wander_ns = swing_ns * np.sin(2 * np.pi * (node_ns % _WANDER_NS) / _WANDER_NS)
    return node_ns - round(node.clock_offset_s * NS_PER_S + float(wander_ns))
