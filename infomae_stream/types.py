"""The core types. Frozen, and checked where data enter: a value that exists is valid.

C channels, N samples. Time is integer nanoseconds UTC since 1970.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from infomae_stream.clock import NS_PER_S
from infomae_stream.errors import DataError

KINDS: Final = (
    "seismic",
    "acoustic",
    "accelerometer",
    "gyroscope",
    "magnetometer",
    "imu",  # accelerometer and gyroscope that share one chip, one clock and one row
    "light",
)
SAMPLE_DTYPES: Final = ("int16", "int32", "float32", "float64")
MAX_CHANNELS: Final = 64
MAX_SAMPLES: Final = 4_000_000  # channels x samples of one chunk
_ID = re.compile(r"[a-z0-9_-]{1,48}")


def check_id(value: str, what: str) -> str:
    """Return `value` when it is a legal id (`[a-z0-9_-]{1,48}`); raise DataError otherwise."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise DataError(f"{what} {value!r} is not an id", fix="use 1 to 48 of a-z, 0-9, '_' and '-'")
    return value


def plain_text(value: Any) -> str:
    """Return `value` when it is a text, also an empty one; raise DataError otherwise. Nothing is converted."""
    if not isinstance(value, str):
        raise DataError(f"{str(value)[:80]!r} is not a text")
    return value


def number(value: Any) -> float:
    """Return `value` as float when it is a number, and not True or "1"; raise DataError otherwise."""
    if type(value) not in (int, float) or abs(value) > 1e300:
        raise DataError(f"{str(value)[:80]!r} is not a number in range")
    return float(value)


def listed(value: Any) -> list[Any]:
    """Return `value` when it is a list, and not a text or an object; raise DataError otherwise."""
    if not isinstance(value, list):
        raise DataError(f"{str(value)[:80]!r} is not a list")
    return value


@dataclass(frozen=True, slots=True, order=True)
class StreamId:
    site: str
    node: str
    stream: str

    def __post_init__(self) -> None:
        check_id(self.site, "site")
        check_id(self.node, "node")
        check_id(self.stream, "stream")

    def __str__(self) -> str:
        return f"{self.site}/{self.node}/{self.stream}"


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """What a stream is. `modality` names the encoder that reads it; it is the kind unless the same kind is worn twice.

    `units` (UCUM) and `sensitivity` (counts per unit; physical value = count / sensitivity) have one entry a channel.
    """

    id: StreamId
    kind: str
    rate_hz: float
    channels: tuple[str, ...]
    units: tuple[str, ...]
    sensitivity: tuple[float, ...]
    modality: str = ""
    seed_id: str = ""

    def __post_init__(self) -> None:
        where = str(self.id)
        if self.kind not in KINDS:
            raise DataError(f"kind {self.kind!r} is unknown", where=where, fix=f"known: {', '.join(KINDS)}")
        if not self.modality:
            object.__setattr__(self, "modality", self.kind)
        check_id(self.modality, "modality")
        if not (0 < self.rate_hz <= 1e6):
            raise DataError(f"rate {self.rate_hz} Hz is not in (0, 1e6]", where=where)
        n = len(self.channels)
        if not (0 < n <= MAX_CHANNELS and len(self.units) == n and len(self.sensitivity) == n):
            raise DataError("channels, units and sensitivity need one entry each a channel", where=where)
        if not all(np.isfinite(s) and s != 0 for s in self.sensitivity):
            raise DataError("a sensitivity is zero or not finite", where=where)

    def to_dict(self) -> dict[str, Any]:
        return {
            "site": self.id.site,
            "node": self.id.node,
            "stream": self.id.stream,
            "kind": self.kind,
            "modality": self.modality,
            "rate_hz": self.rate_hz,
            "channels": list(self.channels),
            "units": list(self.units),
            "sensitivity": list(self.sensitivity),
            "seed_id": self.seed_id,
        }

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> StreamSpec:
        """Raises DataError when a field is missing or has the wrong type."""
        try:
            return cls(
                id=StreamId(d["site"], d["node"], d["stream"]),
                kind=plain_text(d["kind"]),
                rate_hz=number(d["rate_hz"]),
                channels=tuple(plain_text(c) for c in listed(d["channels"])),
                units=tuple(plain_text(u) for u in listed(d["units"])),
                sensitivity=tuple(number(s) for s in listed(d["sensitivity"])),
                modality=plain_text(d.get("modality", "")),
                seed_id=plain_text(d.get("seed_id", "")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise DataError(f"stream description is incomplete: {e!r}") from e


@dataclass(frozen=True, slots=True)
class ClockQuality:
    """What a node knew of its clock when it took a chunk, as chrony, gpsd or the system told it."""

    source: str
    offset_ns: int = 0
    uncertainty_ns: int = 0
    synchronised: bool = False
    boot_id: str = ""
    monotonic_ns: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Contiguous samples of one stream. `(stream, epoch, seq)` is its identity for ever.

    samples_CN: counts as the sensor gave them (int16, int32, float32, float64).
    times_ns: one time a sample, never decreasing, for irregular sensors only; None when the rate is exact.
    accepted_ns: the node's wall clock when it took the chunk (replayed data keep their old start_ns).
    """

    spec: StreamSpec
    epoch: str
    seq: int
    start_ns: int
    samples_CN: NDArray[Any]
    clock: ClockQuality
    times_ns: NDArray[np.int64] | None = None
    accepted_ns: int = 0

    def __post_init__(self) -> None:
        where = f"{self.spec.id} epoch {self.epoch} seq {self.seq}"
        s = self.samples_CN
        if s.ndim != 2 or s.shape[0] != len(self.spec.channels) or s.shape[1] == 0 or s.size > MAX_SAMPLES:
            raise DataError(f"samples have shape {s.shape}, want ({len(self.spec.channels)}, N > 0)", where=where)
        if s.dtype.name not in SAMPLE_DTYPES:
            raise DataError(f"samples are {s.dtype.name}, want one of {', '.join(SAMPLE_DTYPES)}", where=where)
        if self.times_ns is not None:
            if self.times_ns.shape != (s.shape[1],):
                raise DataError(f"{self.times_ns.shape} times for {s.shape[1]} samples", where=where)
            if np.any(np.diff(self.times_ns) < 0):
                raise DataError("sample times run backward", where=where, fix="refuse or reorder at the source")
            if int(self.times_ns[0]) != self.start_ns:
                raise DataError("start_ns is not the first sample's time", where=where)
        if not (0 <= self.start_ns < 2**62) or self.seq < 0:
            raise DataError("start_ns or seq is out of range", where=where)

    @property
    def n_samples(self) -> int:
        return int(self.samples_CN.shape[1])

    @property
    def end_ns(self) -> int:
        """Time just after the last sample."""
        step_ns = NS_PER_S / self.spec.rate_hz
        if self.times_ns is not None:
            return int(self.times_ns[-1]) + round(step_ns)
        return self.start_ns + round(self.n_samples * step_ns)

    def sample_times_ns(self) -> NDArray[np.int64]:
        """One time a sample, shape (N,)."""
        if self.times_ns is not None:
            return self.times_ns
        steps = np.arange(self.n_samples, dtype=np.float64) * (NS_PER_S / self.spec.rate_hz)
        return self.start_ns + np.round(steps).astype(np.int64)

    def physical_CN(self) -> NDArray[np.float32]:
        """Samples in the units of the spec, shape (C, N)."""
        sensitivity_C1 = np.asarray(self.spec.sensitivity, dtype=np.float64)[:, None]
        return np.asarray(self.samples_CN / sensitivity_C1, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Gap:
    """Samples of a stream that are missing, and why; a record like a chunk, with the same guarantee."""

    stream: StreamId
    epoch: str
    seq: int
    start_ns: int
    end_ns: int
    reason: str
    n_samples: int


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """A piece of one stream on the time grid: [start_ns, start_ns + window), resampled to the declared rate.

    x_CN: float32, physical units. coverage: share of grid points that lie within a sample's reach of real data.
    flags: any of "gap", "clipped", "flatline", "clock_jump". clock: the worst quality of the chunks it came from.
    """

    spec: StreamSpec
    start_ns: int
    x_CN: NDArray[np.float32]
    coverage: float
    clock: ClockQuality
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Pair:
    """Windows of different modalities at one place and time, or why they were refused (`reason` "" when paired).

    streams and modalities have one entry a window, sorted by modality; a lone window is refused as "no_partner".
    lag_ns: estimated offset between the clocks; uncertainty_ns: sum of both clocks' uncertainty.
    """

    site: str
    start_ns: int
    streams: tuple[StreamId, ...]
    modalities: tuple[str, ...]
    coverage: float
    lag_ns: int
    uncertainty_ns: int
    reason: str = ""

    @property
    def paired(self) -> bool:
        return not self.reason


@dataclass(frozen=True, slots=True)
class Event:
    """How the windows of a detection came to one event.

    windows: how many showed it. peak_score: the label's highest score among them.
    part: 1 for the first record of an event; one that outlasts the longest length goes on in parts 2, 3 ..., each of
    which begins where the last one ended. ongoing: another part may follow.
    missing: modalities of the bundle that at least one of the windows did without.
    attribution: at the peak, by how much the score falls when one modality is left out; {} when only one took part.
    on, off: the thresholds that the label's score had to reach, to begin and to go on.
    """

    windows: int
    peak_score: float
    part: int
    ongoing: bool
    missing: tuple[str, ...]
    attribution: dict[str, float] = field(hash=False)
    on: float
    off: float

    def __post_init__(self) -> None:
        if self.windows < 1 or self.part < 1 or not all(0 <= s <= 1 for s in (self.peak_score, self.on, self.off)):
            raise DataError("an event has windows and parts from 1 on, and scores and thresholds from 0 to 1")


@dataclass(frozen=True, slots=True)
class Detection:
    """What a node saw, when, and by which model. `scores` has one entry a class and sums to 1.

    With an `event` the scores are means over its windows, and `modalities` took part in at least one of them. Without
    one the detection is of a single window: so wrote the versions before events.
    """

    site: str
    node: str
    epoch: str
    seq: int
    start_ns: int
    end_ns: int
    label: str
    scores: dict[str, float] = field(hash=False)
    modalities: tuple[str, ...]
    bundle_version: int
    bundle_sha256: str
    event: Event | None = None

    @property
    def score(self) -> float:
        return self.scores[self.label]
