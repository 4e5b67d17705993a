"""Python's own file operations, told to the model of a disk (`power_files`) while they are done for real.

It stands in for the operating system, not for our code: `os.open`, `os.fsync`, `os.link` and their like, and the file
objects that `open` gives. Paths outside the disk's folder are left alone.
"""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.faults.power_files import Disk


@contextmanager
def recorded(current: Callable[[], Disk], *, real_syncs: bool = False) -> Iterator[None]:
    """Tell `current()` of every change that Python code makes below its root.

    Syncs are told and not done (the model decides what is durable) unless `real_syncs`.
    """
    layer = _Calls(current, real_syncs)
    table: list[tuple[Any, str, Callable[..., Any]]] = [
        (os, "open", layer.open_descriptor),
        (os, "write", layer.write),
        (os, "truncate", layer.truncate),
        (os, "ftruncate", layer.truncate),
        (os, "fsync", layer.fsync),
        (os, "fdatasync", layer.fsync),
        (os, "link", layer.link),
        (os, "rename", layer.rename),
        (os, "replace", layer.rename),
        (os, "unlink", layer.unlink),
        (os, "remove", layer.unlink),
        (os, "rmdir", layer.rmdir),
        (os, "mkdir", layer.mkdir),
        (io, "open", layer.open_file),
        (builtins, "open", layer.open_file),
    ]
    try:
        for module, name, own in table:
            setattr(module, name, own)
        yield
    finally:
        for module, name, _ in table:
            setattr(module, name, _REAL[module.__name__, name])


_NAMES = ("open", "write", "truncate", "ftruncate", "fsync", "fdatasync", "link", "rename", "replace", "unlink")
_REAL: dict[tuple[str, str], Any] = {
    **{("os", name): getattr(os, name) for name in (*_NAMES, "remove", "rmdir", "mkdir")},
    ("io", "open"): io.open,
    ("builtins", "open"): builtins.open,
}


class _Calls:
    def __init__(self, current: Callable[[], Disk], real_syncs: bool) -> None:
        self._current = current
        self._real_syncs = real_syncs

    def _disk(self, path: Any) -> Disk | None:
        disk = self._current()
        return disk if isinstance(path, (str, os.PathLike)) and disk.covers(path) else None

    def open_descriptor(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        disk = self._disk(path)
        existed = os.path.lexists(path)
        fd: int = _REAL["os", "open"](path, flags, *args, **kwargs)
        if disk is not None and not existed:
            disk.make(path)
        elif disk is not None and flags & os.O_TRUNC:
            disk.truncate(disk.make(path), 0)
        return fd

    def open_file(self, file: Any, mode: str = "r", buffering: int = -1, *text: Any, **more: Any) -> Any:
        disk = self._disk(file)
        if disk is None or not set(mode) & set("wxa+"):
            return _REAL["io", "open"](file, mode, buffering, *text, **more)
        raw = _RecordedFile(disk, os.fspath(file), mode.replace("b", "").replace("t", ""), more.pop("opener", None))
        more.pop("closefd", None)
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *text, line_buffering=buffering == 1, **more)

    def write(self, fd: int, content: bytes, /) -> int:
        path = _path_of(fd)
        assert self._disk(path) is None, f"os.write to {path}: the model does not know it yet"
        count: int = _REAL["os", "write"](fd, content)
        return count

    def truncate(self, path: Any, length: int) -> None:
        where = _path_of(path) if isinstance(path, int) else path
        os_name = "ftruncate" if isinstance(path, int) else "truncate"
        _REAL["os", os_name](path, length)
        disk = self._disk(where)
        if disk is not None:
            disk.truncate(disk.make(where), length)

    def fsync(self, fd: Any) -> None:
        path = _path_of(fd if isinstance(fd, int) else fd.fileno())
        disk = self._disk(path)
        if disk is None or self._real_syncs:
            _REAL["os", "fsync"](fd)
        if disk is not None:
            disk.sync_path(path)

    def link(self, src: Any, dst: Any, **kwargs: Any) -> None:
        _REAL["os", "link"](src, dst, **kwargs)
        disk = self._disk(dst)
        if disk is not None:
            disk.name(dst, disk.make(src))

    def rename(self, src: Any, dst: Any, **kwargs: Any) -> None:
        disk = self._disk(dst)
        if disk is not None:
            disk.notice_parent(src)
        _REAL["os", "rename"](src, dst, **kwargs)
        if disk is not None:
            disk.move(src, dst)

    def unlink(self, path: Any, **kwargs: Any) -> None:
        _REAL["os", "unlink"](path, **kwargs)
        self._gone(path)

    def rmdir(self, path: Any, **kwargs: Any) -> None:
        _REAL["os", "rmdir"](path, **kwargs)
        self._gone(path)

    def mkdir(self, path: Any, *args: Any, **kwargs: Any) -> None:
        _REAL["os", "mkdir"](path, *args, **kwargs)
        disk = self._disk(path)
        if disk is not None:
            disk.make(path, folder=True)

    def _gone(self, path: Any) -> None:
        disk = self._disk(path)
        if disk is not None and disk.node(path) is not None:
            disk.name(path, None)


class _RecordedFile(io.FileIO):
    """What the buffered layers above it write, the disk hears."""

    def __init__(self, disk: Disk, path: str, mode: str, opener: Any) -> None:
        existed = os.path.exists(path)
        super().__init__(path, mode, opener=opener)
        self._disk, self._node = disk, disk.make(path)
        self._appends = "a" in mode
        if existed and "w" in mode:
            disk.truncate(self._node, 0)

    def write(self, content: Any, /) -> int:
        offset = os.fstat(self.fileno()).st_size if self._appends else self.tell()
        count = super().write(content)
        self._disk.write(self._node, offset, bytes(memoryview(content).cast("B")[:count]))
        return count

    def truncate(self, size: int | None = None, /) -> int:
        size = super().truncate(size)
        self._disk.truncate(self._node, size)
        return size


def _path_of(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:  # closed, or no such file system; the real call will tell
        return os.devnull
