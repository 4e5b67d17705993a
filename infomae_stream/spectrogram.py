"""The one signal front end: windows of samples to normalised interval spectrograms, in numpy.

The trainer and the node run this very module; its settings travel as JSON in the bundle's manifest.
Legend: B batch, C sensor channels, N samples, K spectrogram channels, T intervals, F frequency bins.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infomae_stream.errors import ConfigError, DataError

Floats: TypeAlias = NDArray[np.float32]

IMU_CHANNELS = 6
GRAVITY_CHANNELS = 4
ORIENTATIONS = ("none", "gravity", "gravity_only")
CONTENTS = ("complex", "magnitude")
LOG_FLOOR = 1e-3


@dataclass(frozen=True, slots=True)
class SpectrogramSpec:
    """How a window becomes intervals and bins.

    `rate_hz`: samples a second. `window_s`, `interval_s`, `interval_hop_s`: seconds, rounded to whole samples.
    `channels`: C of the incoming window. `max_hz`: upper edge of the kept band; None keeps all bins up to Nyquist.
    Raises ConfigError when a length is not positive or an interval does not fit into the window.
    """

    rate_hz: float
    window_s: float
    interval_s: float
    interval_hop_s: float
    channels: int
    max_hz: float | None = None

    def __post_init__(self) -> None:
        lengths = (self.rate_hz, self.window_s, self.interval_s, self.interval_hop_s, self.channels)
        if not all(np.isfinite(value) and value > 0 for value in lengths):
            raise ConfigError(f"spectrogram: every length must be positive and finite, got {lengths}")
        if not 1 <= self.interval_samples <= self.window_samples or self.hop_samples < 1:
            raise ConfigError(
                f"spectrogram.interval_s: {self.interval_s} s (hop {self.interval_hop_s} s) does not fit into a window "
                f"of {self.window_s} s at {self.rate_hz} Hz"
            )
        if self.max_hz is not None and self.n_bins < 1:
            raise ConfigError(f"spectrogram.max_hz: {self.max_hz} Hz keeps no bin; give more than 0")

    @property
    def window_samples(self) -> int:
        return round(self.window_s * self.rate_hz)

    @property
    def interval_samples(self) -> int:
        return round(self.interval_s * self.rate_hz)

    @property
    def hop_samples(self) -> int:
        return round(self.interval_hop_s * self.rate_hz)

    @property
    def n_intervals(self) -> int:
        return (self.window_samples - self.interval_samples) // self.hop_samples + 1

    @property
    def n_bins(self) -> int:
        one_sided = self.interval_samples // 2 + 1
        if self.max_hz is None:
            return one_sided
        return min(one_sided, int(np.ceil(self.max_hz * self.interval_samples / self.rate_hz - 1e-9)))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Raises ConfigError when a key is unknown or missing."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(record) - known)
        missing = sorted(known - {"max_hz"} - set(record))
        if unknown or missing:
            raise ConfigError(f"spectrogram: unknown keys {unknown}, missing keys {missing}; known: {sorted(known)}")
        return cls(**record)


def _complex_spectrum(x_BCN: Floats, spec: SpectrogramSpec) -> NDArray[np.complex64]:
    """`s_BCTF`: the one-sided spectrum of every interval, divided by the interval's samples (so in units of x)."""
    if x_BCN.ndim != 3 or x_BCN.shape[2] != spec.window_samples:
        raise DataError(
            what=f"window of shape {x_BCN.shape}",
            where="spectrogram",
            fix=f"give B x C x {spec.window_samples} samples ({spec.window_s} s at {spec.rate_hz} Hz)",
        )
    starts_T = np.arange(spec.n_intervals) * spec.hop_samples
    samples_TI = starts_T[:, None] + np.arange(spec.interval_samples)
    spectrum = np.fft.rfft(x_BCN[:, :, samples_TI], axis=-1)[..., : spec.n_bins]
    scaled: NDArray[np.complex64] = (spectrum / spec.interval_samples).astype(np.complex64)
    return scaled


def spectrogram(x_BCN: Floats, spec: SpectrogramSpec) -> Floats:
    """Return `x_B(2C)TF`: FFT of every interval, real parts of all C channels first, then imaginary parts (METHOD 1).

    One-sided, because the other half of a real signal's spectrum repeats it. In units of x (mean, not sum, over the
    interval): bin 0 is the interval's mean. Raises DataError when the window has another length or channel count.
    """
    if x_BCN.ndim == 3 and x_BCN.shape[1] != spec.channels:
        raise DataError(
            what=f"window with {x_BCN.shape[1]} channels", where="spectrogram", fix=f"give {spec.channels} channels"
        )
    spectrum = _complex_spectrum(x_BCN, spec)
    return np.concatenate([spectrum.real, spectrum.imag], axis=1).astype(np.float32)


def gravity_frame(x_BCN: Floats) -> Floats:
    """Return `g_B4N`: motion seen from gravity, which no longer depends on how the device is worn.

    From C = 6 (acceleration xyz, rotation rate xyz): vertical acceleration, horizontal acceleration (norm), rotation
    about the vertical, rotation about the horizontal (norm), same units as given. The vertical is the window's mean
    acceleration: what stays when motion averages out. Raises DataError for another channel count.
    """
    if x_BCN.ndim != 3 or x_BCN.shape[1] != IMU_CHANNELS:
        raise DataError(
            what=f"window of shape {x_BCN.shape}", where="gravity frame", fix="give acceleration xyz and rotation xyz"
        )
    acc_B3N, gyro_B3N = x_BCN[:, :3], x_BCN[:, 3:]
    mean_B31 = acc_B3N.mean(axis=2, keepdims=True)
    up_B31 = mean_B31 / np.maximum(np.linalg.norm(mean_B31, axis=1, keepdims=True), 1e-6)
    rows = []
    for vector_B3N in (acc_B3N, gyro_B3N):
        along_B1N = (vector_B3N * up_B31).sum(axis=1, keepdims=True)
        rows += [along_B1N, np.linalg.norm(vector_B3N - along_B1N * up_B31, axis=1, keepdims=True)]
    return np.concatenate(rows, axis=1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """Spectrogram and robust normalisation of one modality: window in physical units -> encoder input.

    `orientation`: "none" (the sensor's axes), "gravity" (those and the gravity frame's four), "gravity_only".
    `content`: "complex" gives real and imaginary parts, K = 2 x channels; "magnitude" gives the signed
    interval mean in bin 0 and then the log magnitudes of all bins, K = channels, one bin more: no phase, which is
    chance and which a masked encoder cannot predict. (The mean is there twice: its sign tells posture, its magnitude
    that one turns, either way.)
    `centre_KF`, `scale_KF`: median and scaled interquartile range a channel and bin over the training windows; the
    quotient is clipped to +-`clip`. Raises ConfigError for shapes that do not belong together.
    """

    spec: SpectrogramSpec
    centre_KF: Floats
    scale_KF: Floats
    orientation: str = "none"
    content: str = "complex"
    clip: float = 6.0

    def __post_init__(self) -> None:
        channels, bins = channels_out(self.spec, self.orientation, self.content), bins_out(self.spec, self.content)
        shape = (channels, bins)
        if self.centre_KF.shape != shape or self.scale_KF.shape != shape:
            raise ConfigError(
                f"front_end: centre {self.centre_KF.shape} and scale {self.scale_KF.shape} must both be {shape}"
            )
        if not (np.isfinite(self.centre_KF).all() and np.isfinite(self.scale_KF).all() and (self.scale_KF > 0).all()):
            raise ConfigError("front_end: centre and scale must be finite and scale positive; fit it again")

    @property
    def shape_KTF(self) -> tuple[int, int, int]:
        return (self.centre_KF.shape[0], self.spec.n_intervals, self.centre_KF.shape[1])

    @classmethod
    def fit(
        cls,
        x_BCN: Floats,
        spec: SpectrogramSpec,
        *,
        orientation: str = "none",
        content: str = "complex",
        clip: float = 6.0,
    ) -> Self:
        """Measure centre and scale on `x_BCN`; raises DataError when there is no window or one is not finite."""
        if x_BCN.shape[0] == 0 or not np.isfinite(x_BCN).all():
            raise DataError(
                what=f"{x_BCN.shape[0]} windows, all finite: {bool(np.isfinite(x_BCN).all())}",
                where="front end",
                fix="fit on at least one window and refuse windows with NaN before",
            )
        raw_BKTF = _parts(x_BCN, spec, orientation, content)
        low_KF, centre_KF, high_KF = np.percentile(raw_BKTF, [25, 50, 75], axis=(0, 2))
        spread_KF = (high_KF - low_KF) / 1.349
        # A sensor that rests most of the time has a tiny interquartile range: the standard deviation is its floor.
        deviation_KF = raw_BKTF.std(axis=(0, 2))
        scale_KF = np.maximum(spread_KF, 0.5 * deviation_KF)
        scale_KF = np.where(scale_KF > 1e-6, scale_KF, 1.0)
        return cls(
            spec=spec,
            centre_KF=centre_KF.astype(np.float32),
            scale_KF=scale_KF.astype(np.float32),
            orientation=orientation,
            content=content,
            clip=clip,
        )

    def __call__(self, x_BCN: Floats) -> Floats:
        """Return `x_BKTF` float32, about unit scale, within +-clip."""
        raw_BKTF = _parts(x_BCN, self.spec, self.orientation, self.content)
        scaled = (raw_BKTF - self.centre_KF[:, None, :]) / self.scale_KF[:, None, :]
        out: Floats = np.clip(scaled, -self.clip, self.clip).astype(np.float32)
        return out

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; floats survive the round trip bit for bit."""
        return {
            "spec": self.spec.to_dict(),
            "centre_KF": self.centre_KF.tolist(),
            "scale_KF": self.scale_KF.tolist(),
            "orientation": self.orientation,
            "content": self.content,
            "clip": self.clip,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Raises ConfigError when a key is unknown or missing."""
        known = {field.name for field in fields(cls)}
        if set(record) != known:
            raise ConfigError(f"front_end: keys {sorted(record)} are not {sorted(known)}")
        return cls(
            spec=SpectrogramSpec.from_dict(record["spec"]),
            centre_KF=np.asarray(record["centre_KF"], dtype=np.float32),
            scale_KF=np.asarray(record["scale_KF"], dtype=np.float32),
            orientation=str(record["orientation"]),
            content=str(record["content"]),
            clip=float(record["clip"]),
        )


def channels_out(spec: SpectrogramSpec, orientation: str, content: str) -> int:
    """K, the spectrogram channels of a front end; raises ConfigError for an unknown orientation or content."""
    if orientation not in ORIENTATIONS:
        raise ConfigError(f"front_end.orientation: unknown {orientation!r}; known: {', '.join(ORIENTATIONS)}")
    if content not in CONTENTS:
        raise ConfigError(f"front_end.content: unknown {content!r}; known: {', '.join(CONTENTS)}")
    sensors = {"none": spec.channels, "gravity": spec.channels + GRAVITY_CHANNELS, "gravity_only": GRAVITY_CHANNELS}
    return sensors[orientation] * (2 if content == "complex" else 1)


def bins_out(spec: SpectrogramSpec, content: str) -> int:
    """F of a front end: the spectrum's bins, and one for the signed mean beside log magnitudes."""
    return spec.n_bins + (1 if content == "magnitude" else 0)


def _parts(x_BCN: Floats, spec: SpectrogramSpec, orientation: str, content: str) -> Floats:
    channels_out(spec, orientation, content)
    if x_BCN.ndim == 3 and x_BCN.shape[1] != spec.channels:
        raise DataError(
            what=f"window with {x_BCN.shape[1]} channels", where="front end", fix=f"give {spec.channels} channels"
        )
    if orientation == "gravity":
        x_BCN = np.concatenate([x_BCN, gravity_frame(x_BCN)], axis=1)
    elif orientation == "gravity_only":
        x_BCN = gravity_frame(x_BCN)
    spectrum = _complex_spectrum(x_BCN, spec)
    if content == "complex":
        return np.concatenate([spectrum.real, spectrum.imag], axis=1).astype(np.float32)
    magnitude = np.log(np.abs(spectrum) + LOG_FLOOR)
    return np.concatenate([spectrum[..., :1].real, magnitude], axis=3).astype(np.float32)
