"""A small disk (tmpfs) that can be filled to the last byte and freed again."""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType


def missing_for_mounts() -> str:
    """Why no tmpfs can be mounted here, "" when it can."""
    if os.geteuid() != 0:
        return "needs root, to mount a small tmpfs"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, text=True, check=False)
        if done.returncode:
            return f"no tmpfs can be mounted: {done.stderr.strip()}"
        subprocess.run(["umount", folder], check=True)
    return ""


class SmallDisk:
    """`path`, mounted while the context lasts."""

    def __init__(self, path: Path, n_bytes: int) -> None:
        self.path = path
        self._ballast = path / "ballast"
        self._size = n_bytes

    def fill(self) -> None:
        """Take every byte that is free now; again and again, for what others free meanwhile."""
        with self._ballast.open("ab", buffering=0) as f, suppress(OSError):
            while True:
                f.write(bytes(4096))

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def __enter__(self) -> SmallDisk:
        self.path.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self._size}", "tmpfs", str(self.path)], check=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)
