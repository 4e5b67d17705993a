"""WAV files (PCM, 16 or 32 bits). They hold no time: the source's option `start` says when the first sample was."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Final

import numpy as np

from collectors.recordings import Description, Recording
from infomae_stream.errors import SourceError

DTYPES: Final = {2: "<i2", 4: "<i4"}


class WavRecording:
    """One file is one recording, named after the file; full scale is 1, so a count is worth 1 / 2^15 or 1 / 2^31."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.names: tuple[str, ...] = (path.stem,)
        try:
            with wave.open(str(path)) as f:
                channels, self._width, rate_hz = f.getnchannels(), f.getsampwidth(), f.getframerate()
        except (wave.Error, EOFError, OSError) as e:
            raise SourceError(f"cannot be read as WAV: {e}", where=str(path), fix="use PCM, 16 or 32 bits") from e
        if self._width not in DTYPES:
            raise SourceError(f"{8 * self._width} bits a sample", where=str(path), fix="use PCM, 16 or 32 bits")
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
        little = np.frombuffer(raw[:whole], dtype=DTYPES[self._width])
        native = little.astype(little.dtype.newbyteorder("="), copy=False)
        return Recording(native.reshape(-1, len(self.description.channels)).T.copy(), None, None)

    def close(self) -> None:
        return
