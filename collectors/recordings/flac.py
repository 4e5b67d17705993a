"""FLAC files, read with soundfile (extra `audio`). They hold no time: the source's options say when they began."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from collectors.recordings import Description, Recording, only_part
from collectors.sensing.extras import extra
from infomae_stream.errors import SourceError

# Of FLAC's widths the smaller come as int16, the larger in the upper bits of int32.
SMALL: Final = ("PCM_S8", "PCM_16")


class FlacRecording:
    """One file is one recording, named after the file; full scale is 1, so a count is worth 1 / 2^15 or 1 / 2^31."""

    def __init__(self, path: Path, part: str = "") -> None:
        only_part(part, path)
        self._soundfile = extra("soundfile", "audio", "FLAC files")
        self._path = path
        self.names: tuple[str, ...] = (path.stem,)
        try:
            info = self._soundfile.info(str(path))
        except (self._soundfile.LibsndfileError, OSError) as e:
            raise SourceError(f"cannot be read as FLAC: {e}", where=str(path)) from e
        self._dtype = "int16" if info.subtype in SMALL else "int32"
        self.description = Description(
            channels=tuple(f"ch{i}" for i in range(info.channels)),
            units=("1",) * info.channels,
            sensitivity=(2.0 ** (15 if self._dtype == "int16" else 31),) * info.channels,
            rate_hz=float(info.samplerate),
            kind="acoustic",
            has_time=False,
        )

    def load(self, name: str) -> Recording:
        if name not in self.names:
            raise KeyError(name)
        try:
            samples_NC, _ = self._soundfile.read(str(self._path), dtype=self._dtype, always_2d=True)
        except (self._soundfile.LibsndfileError, OSError) as e:
            raise SourceError(f"cannot be read as FLAC: {e}", where=str(self._path)) from e
        if not len(samples_NC):
            raise SourceError("there are no samples", where=str(self._path))
        return Recording(np.ascontiguousarray(samples_NC.T), None, None)

    def close(self) -> None:
        return
