"""WAV files (PCM of 16, 24 or 32 bits). They hold no time: the source's options say when the first sample was."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from collectors.recordings import Description, Recording, only_part
from infomae_stream.errors import SourceError

WIDTHS: Final = (2, 3, 4)
FIX: Final = "use PCM of 16, 24 or 32 bits"


class WavRecording:
    """One file is one recording, named after the file; full scale is 1, so a count is worth 1 / 2^15, 2^23 or 2^31."""

    def __init__(self, path: Path, part: str = "") -> None:
        only_part(part, path)
        self._path = path
        self.names: tuple[str, ...] = (path.stem,)
        try:
            with wave.open(str(path)) as f:
                channels, self._width, rate_hz = f.getnchannels(), f.getsampwidth(), f.getframerate()
        except (wave.Error, EOFError, OSError) as e:
            raise SourceError(f"cannot be read as WAV: {e}", where=str(path), fix=FIX) from e
        if self._width not in WIDTHS:
            raise SourceError(f"{8 * self._width} bits a sample", where=str(path), fix=FIX)
        self.description = Description(
            channels=tuple(f"ch{i}" for i in range(channels)),
            units=("1",) * channels,
            sensitivity=(2.0 ** (8 * self._width - 1),) * channels,
            rate_hz=float(rate_hz),
            kind="acoustic",
            has_time=False,
        )

    def load(self, name: str) -> Recording:
        if name not in self.names:
            raise KeyError(name)
        try:
            with wave.open(str(self._path)) as f:
                raw = f.readframes(f.getnframes())
        except (wave.Error, EOFError, OSError) as e:
            raise SourceError(f"cannot be read as WAV: {e}", where=str(self._path)) from e
        whole = len(raw) - len(raw) % (self._width * len(self.description.channels))
        if not whole:
            raise SourceError("there are no samples", where=str(self._path))
        samples_NC = _counts(raw[:whole], self._width).reshape(-1, len(self.description.channels))
        return Recording(np.ascontiguousarray(samples_NC.T), None, None)

    def close(self) -> None:
        return


def _counts(raw: bytes, width: int) -> NDArray[Any]:
    """Little-endian integers of `width` bytes, in the next larger type of the machine."""
    if width == 3:
        padded = np.zeros((len(raw) // 3, 4), dtype=np.uint8)
        padded[:, 1:] = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 3)
        return padded.view("<i4").ravel().astype(np.int32) >> 8
    return np.frombuffer(raw, dtype=f"<i{width}").astype(f"=i{width}")
