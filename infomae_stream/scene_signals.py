"""What the synthetic scene is made of: sources, noises and sensors, as functions of time or of frequency.

Legend: N samples, F frequency bins, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVELS: Final = 8
FUNDAMENTAL_HZ: Final = np.geomspace(8.0, 40.0, LEVELS)
RESONANCE_HZ: Final = np.geomspace(3.0, 45.0, LEVELS)
FORMANT_HZ: Final = np.geomspace(600.0, 3500.0, LEVELS)
N_RESPONSES: Final = 4
_HIGHEST_HARMONIC_HZ: Final = 500.0


@dataclass(frozen=True, slots=True)
class Sensor:
    """A synthetic sensor. `scale`: physical units of a signal of unit power; `sensitivity`: counts a unit."""

    kind: str
    rate_hz: float
    channels: tuple[str, ...]
    units: tuple[str, ...]
    sensitivity: tuple[float, ...]
    scale: float
    dtype: str


SENSORS: Final[dict[str, Sensor]] = {
    "seismic": Sensor("seismic", 100.0, ("ehz",), ("um/s",), (400.0,), 10.0, "int32"),
    "acoustic": Sensor("acoustic", 8000.0, ("mic",), ("Pa",), (4000.0,), 0.3, "int16"),
    "imu": Sensor(
        "imu",
        100.0,
        ("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z"),
        ("m/s2",) * 3 + ("rad/s",) * 3,
        (1500.0,) * 3 + (2000.0,) * 3,
        0.8,
        "int16",
    ),
}
GRAVITY: Final = 9.81


@dataclass(frozen=True, slots=True)
class Factors:
    """Levels 0..7. `r` is in every sensor, `u_seismic` and `u_acoustic` in one each; `parity` needs both of them."""

    r: int
    u_seismic: int
    u_acoustic: int

    @property
    def parity(self) -> int:
        """Exactly one bit from both private factors together, none from either alone."""
        return (self.u_seismic ^ self.u_acoustic) & 1

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Factors:
        """Independent and uniform."""
        r, u_seismic, u_acoustic = rng.integers(LEVELS, size=3)
        return cls(int(r), int(u_seismic), int(u_acoustic))


def harmonics(fundamental_hz: float, rate_hz: float) -> Floats:
    """Frequencies of the source's harmonics that a sensor of this rate can hold, at least the first."""
    highest_hz = min(0.48 * rate_hz, _HIGHEST_HARMONIC_HZ)
    return fundamental_hz * np.arange(1, max(1, int(highest_hz / fundamental_hz)) + 1, dtype=np.float64)


def tone_complex(t_N: Floats, frequencies_hz: Floats, phases: Floats, gains: Floats | float = 1.0) -> Floats:
    """The source: harmonics with amplitudes 1/sqrt(h), of unit power together before `gains`. `t_N` in seconds."""
    amplitudes = 1 / np.sqrt(np.arange(1, len(frequencies_hz) + 1))
    amplitudes *= gains * np.sqrt(2 / np.sum(amplitudes**2))
    out_N = np.zeros_like(t_N)
    for amplitude, frequency_hz, phase in zip(amplitudes, frequencies_hz, phases, strict=True):
        out_N += amplitude * np.sin(2 * np.pi * frequency_hz * t_N + phase)
    return out_N


def band_shape(n_samples: int, rate_hz: float, centre_hz: float) -> Floats:
    """Gain a bin of a narrow band, 6 % wide and at least 0.4 Hz."""
    f_F = np.fft.rfftfreq(n_samples, 1 / rate_hz)
    width_hz = max(0.06 * centre_hz, 0.4)
    return np.asarray(np.exp(-0.5 * ((f_F - centre_hz) / width_hz) ** 2))


def pink_shape(n_samples: int, rate_hz: float) -> Floats:
    """Gain a bin that falls by 3 dB an octave, level below 1 Hz."""
    f_F = np.fft.rfftfreq(n_samples, 1 / rate_hz)
    shape_F = 1 / np.sqrt(np.maximum(f_F, 1.0))
    shape_F[0] = 0.0
    return np.asarray(shape_F)


def shaped_noise(rng: np.random.Generator, n_samples: int, shape_F: Floats) -> Floats:
    """Gaussian noise with the given spectral shape and, on average, unit power."""
    spectrum_F = (rng.normal(size=len(shape_F)) + 1j * rng.normal(size=len(shape_F))) * shape_F
    power = 4 * np.sum(shape_F**2) / n_samples**2
    return np.asarray(np.fft.irfft(spectrum_F, n_samples) / np.sqrt(power))


def response(f_F: NDArray[np.floating[Any]], node_response: int, site_response: int) -> Floats:
    """Gain of one of 4 nodes at one of 2 sites: smooth, within about +-5 dB. The first site is neutral."""
    octaves_F = np.log2(np.maximum(f_F, 1.0))
    gain_db_F = node_response * 1.3 * np.sin(octaves_F * 1.1 + 1.7 * node_response)
    if site_response:
        gain_db_F = gain_db_F - 1.0 + 0.15 * octaves_F
    return np.asarray(10 ** (gain_db_F / 20))


def through_response(x_N: Floats, rate_hz: float, node_response: int, site_response: int) -> Floats:
    f_F = np.fft.rfftfreq(len(x_N), 1 / rate_hz)
    return np.asarray(np.fft.irfft(np.fft.rfft(x_N) * response(f_F, node_response, site_response), len(x_N)))


def spread_channels(x_N: Floats, sensor: Sensor, mounting: np.random.Generator) -> Floats:
    """One motion onto the sensor's channels, x_CN in physical units: an IMU feels it along two random axes.

    Gravity is added where there is an accelerometer.
    """
    if sensor.kind != "imu":
        return sensor.scale * x_N[None, :]
    axes_23 = mounting.normal(size=(2, 3))
    axes_23 /= np.linalg.norm(axes_23, axis=1, keepdims=True)
    x_CN = sensor.scale * np.concatenate([axes_23[0], 0.3 * axes_23[1]])[:, None] * x_N[None, :]
    x_CN[2] += GRAVITY
    return np.asarray(x_CN)
