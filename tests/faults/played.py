"""What the sources of a trial play, known beforehand: the lake is compared with it, sample by sample.

The truth log is written by the node, so it cannot tell when the node itself loses or invents something; this can.
C channels, N samples.
"""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from infomae_stream.clock import NS_PER_S
from infomae_stream.types import Chunk, Gap

START: Final = "2021-11-20T08:00:00Z"
START_NS: Final = 1_637_395_200 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Size:
    """What the nodes play: each one stream of `seconds`, `speed` times as fast as time; a chunk is a second of it."""

    nodes: int = 2
    seconds: int = 240
    rate_hz: int = 100
    channels: int = 1
    speed: float = 80.0


@dataclass(frozen=True, eq=False)
class Played:
    """One node's recording: a WAV file with random samples at `rate_hz`."""

    site: str
    node: str
    rate_hz: int
    samples_CN: NDArray[np.int16]
    stream: str = "mic"

    @property
    def n_samples(self) -> int:
        return self.samples_CN.shape[1]

    def write(self, path: Path) -> None:
        with wave.open(str(path), "wb") as f:
            f.setnchannels(len(self.samples_CN))
            f.setsampwidth(2)
            f.setframerate(self.rate_hz)
            f.writeframes(self.samples_CN.T.astype("<i2").tobytes())

    def differences(self, chunks: list[Chunk], gaps: list[Gap]) -> list[str]:
        """What the lake holds of this stream and should not, or should and does not, in words."""
        found = []
        here = [c for c in chunks if (c.spec.id.node, c.spec.id.stream) == (self.node, self.stream)]
        times_N = np.zeros(self.n_samples, np.int32)  # how often each sample is there
        for chunk in here:
            first = round((chunk.start_ns - START_NS) * self.rate_hz / NS_PER_S)
            part = slice(first, first + chunk.n_samples)
            if first < 0 or not np.array_equal(self.samples_CN[:, part], chunk.samples_CN):
                found.append(f"{self.node} seq {chunk.seq} holds samples that were never played")
                continue
            times_N[part] += 1
        if (times_N > 1).any():
            found.append(f"{self.node}: {int((times_N > 1).sum())} samples are in the lake twice")
        told_N = times_N > 0
        for gap in gaps:
            if (gap.stream.node, gap.stream.stream) == (self.node, self.stream):
                first, end = (round((t - START_NS) * self.rate_hz / NS_PER_S) for t in (gap.start_ns, gap.end_ns))
                told_N[max(first, 0) : end + 1] = True
        if not told_N.all():
            untold = int((~told_N).sum())
            first = int(np.argmin(told_N))
            found.append(f"{self.node}: {untold} samples are in no chunk and no gap record, from sample {first} on")
        return found


def random_recording(seed: int, site: str, node: str, size: Size) -> Played:
    shape = (size.channels, size.seconds * size.rate_hz)
    samples_CN = np.random.default_rng(seed).integers(-(2**15), 2**15, shape, dtype=np.int16)
    return Played(site, node, size.rate_hz, samples_CN)
