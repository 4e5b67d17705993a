"""One file, or the files within a zip: the same to whoever reads recordings."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

from infomae_stream.errors import SourceError

MAX_MEMBER_BYTES: Final = 500_000_000  # unpacked; a zip may claim anything


class Archive:
    """`names`: the member paths within a zip, in order; of a single file its own name. Raises SourceError."""

    def __init__(self, path: Path, *, max_member_bytes: int = MAX_MEMBER_BYTES) -> None:
        self.path = path
        self._max_bytes = max_member_bytes
        self._zip: zipfile.ZipFile | None = None
        self.names: tuple[str, ...] = (path.name,)
        if path.suffix.lower() == ".zip":
            try:
                self._zip = zipfile.ZipFile(path)
            except (OSError, zipfile.BadZipFile) as e:
                raise SourceError(f"cannot be read as zip: {e}", where=str(path)) from e
            self.names = tuple(sorted(i.filename for i in self._zip.infolist() if not i.is_dir()))

    def where(self, name: str) -> str:
        return f"{self.path}: {name}" if self._zip else str(self.path)

    def read(self, name: str) -> bytes:
        """All bytes of a member. Raises SourceError when it is broken or larger than is allowed."""
        try:
            if self._zip is None:
                size = self.path.stat().st_size
                data = self.path.read_bytes() if size <= self._max_bytes else b""
            else:
                size = self._zip.getinfo(name).file_size
                data = self._zip.read(name) if size <= self._max_bytes else b""
        except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as e:
            raise SourceError(f"cannot be read: {e}", where=self.where(name)) from e
        if size > self._max_bytes:
            raise SourceError(f"{size} bytes are more than {self._max_bytes}", where=self.where(name))
        return data

    @contextmanager
    def lines(self, name: str) -> Iterator[Iterator[str]]:
        """The lines of a member, ends kept off; bytes that are no UTF-8 become U+FFFD, which no number parser takes."""
        text = io.TextIOWrapper(io.BytesIO(self.read(name)), encoding="utf-8-sig", errors="replace")
        yield (line.rstrip("\r\n") for line in text)

    def close(self) -> None:
        if self._zip is not None:
            self._zip.close()


def stem(name: str) -> str:
    """The last part of a member's path, without suffix."""
    return PurePosixPath(name).stem
