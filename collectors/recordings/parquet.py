"""Parquet files, read by a short-lived child process: the collecting process stays small and never loads pyarrow."""

from __future__ import annotations

import atexit
import json
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from collectors.recordings import Description, Recording, only_part
from infomae_stream.errors import SourceError

CHILD_TIMEOUT_S: Final = 120.0


class ParquetRecordings:
    """Excerpts as scripts/pack_geotec.py writes them, and exported rows of the lake's chunks (see parquet_child)."""

    def __init__(self, path: Path, part: str = "") -> None:
        only_part(part, path)
        self._path = path
        with tempfile.TemporaryDirectory(prefix="infomae-") as folder:
            answer = _decoder.decode(path, Path(folder))
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
        _decoder.reap()
        first, end = self._ranges[name]
        times_N = np.array(self._times_N[first:end])
        return Recording(np.ascontiguousarray(self._samples_NC[first:end].T), times_N, int(times_N[0]))

    def close(self) -> None:
        del self._samples_NC, self._times_N


class ParquetDecoder:
    """The child: started at need, shared by all files, gone again a few seconds after the last one."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def decode(self, path: Path, folder: Path) -> dict[str, Any]:
        """Have `path` decoded into `folder`; the child's answer. Raises SourceError when the file cannot be read."""
        try:
            line = self._ask({"path": str(path.absolute()), "folder": str(folder)})
            answer: dict[str, Any] = json.loads(line)
        except (OSError, ValueError) as e:
            self.close()
            raise SourceError(f"the Parquet decoder failed: {e or 'it died'}", where=str(path)) from e
        if "error" in answer:
            raise SourceError(f"cannot be read as Parquet: {answer['error']}", where=str(path))
        return answer

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            with child:  # closes the pipes and waits
                pass

    def reap(self) -> None:
        """Let go of a child that has ended by itself."""
        if self._child is not None and self._child.poll() is not None:
            self.close()

    def _ask(self, question: dict[str, str]) -> bytes:
        line = json.dumps(question).encode() + b"\n"
        try:
            self._send(line)
        except BrokenPipeError:  # it had just gone home
            self.close()
            self._send(line)
        assert self._child is not None and self._child.stdout is not None
        if not select.select([self._child.stdout], [], [], CHILD_TIMEOUT_S)[0]:
            raise OSError(f"no answer within {CHILD_TIMEOUT_S} s")
        return self._child.stdout.readline()

    def _send(self, line: bytes) -> None:
        self.reap()
        if self._child is None:
            command = [sys.executable, "-m", "collectors.recordings.parquet_child"]
            # Its own session: a Ctrl-C is for us, and its stdin ends with us.
            pipe = subprocess.PIPE
            self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)
        assert self._child.stdin is not None
        self._child.stdin.write(line)
        self._child.stdin.flush()


_decoder = ParquetDecoder()
atexit.register(_decoder.close)
