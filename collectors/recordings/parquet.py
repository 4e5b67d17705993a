"""Parquet files, read by a short-lived child process: the collecting process stays small and never loads pyarrow."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from collectors.recordings import Description, Recording
from infomae_stream.errors import SourceError

CHILD_TIMEOUT_S: Final = 120.0


class ParquetRecordings:
    """Excerpts as scripts/pack_geotec.py writes them, and exported rows of the lake's chunks (see parquet_child)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with tempfile.TemporaryDirectory(prefix="infomae-") as folder:
            answer = self._decode(Path(folder))
            try:
                d = answer["description"]
                self.description = Description(
                    channels=tuple(d["channels"]),
                    units=tuple(d["units"]),
                    sensitivity=tuple(d["sensitivity"]),
                    rate_hz=float(d["rate_hz"]),
                    kind=d["kind"],
                    modality=d["modality"],
                )
                self._ranges = {name: (int(first), int(end)) for name, first, end in answer["recordings"]}
                # Mapped, so that the pages can go again; the files' names go at once, also when we are killed later.
                self._samples_NC = np.load(Path(folder) / "samples.npy", mmap_mode="r", allow_pickle=False)
                self._times_N = np.load(Path(folder) / "times.npy", mmap_mode="r", allow_pickle=False)
            except (KeyError, TypeError, ValueError, OSError) as e:
                raise SourceError(f"the decoder's answer is unusable: {e!r}", where=str(path)) from e
        self.names = tuple(self._ranges)

    def load(self, name: str) -> Recording:
        first, end = self._ranges[name]
        times_N = np.array(self._times_N[first:end])
        return Recording(np.ascontiguousarray(self._samples_NC[first:end].T), times_N, int(times_N[0]))

    def close(self) -> None:
        del self._samples_NC, self._times_N

    def _decode(self, folder: Path) -> dict[str, Any]:
        command = [sys.executable, "-m", "collectors.recordings.parquet_child", str(self._path), str(folder)]
        try:
            child = subprocess.run(command, capture_output=True, timeout=CHILD_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as e:
            raise SourceError(f"the Parquet decoder did not end well: {e}", where=str(self._path)) from e
        if child.returncode:
            lines = child.stderr.decode(errors="replace").strip().splitlines()
            why = lines[-1] if lines else f"exit {child.returncode}"
            raise SourceError(f"cannot be read as Parquet: {why}", where=str(self._path))
        answer: dict[str, Any] = json.loads(child.stdout)
        return answer
