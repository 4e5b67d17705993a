"""SQLite's file operations, told to the model of a disk (`power_files`) by a VFS in front of SQLite's own.

The VFS is registered as the default one in the library that Python's `sqlite3` is linked with, so the real, unchanged
outbox runs on it. It is the `unix` VFS with a few methods wrapped: open and delete, and of each open database, journal
or log: write, truncate, sync, close. What SQLite does by itself is followed: the first sync of a journal or of a log
syncs the folder too (`unixSync`, UNIXFILE_DIRSYNC); a deletion does when it is asked to (`syncDir`). The `-shm` file is
shared memory, and gone after a cut.
"""

from __future__ import annotations

import atexit
import ctypes as c
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tests.faults.power_files import Disk

_OK: Final = 0
_IOERR: Final = 10
_OPEN_CREATE: Final = 0x4
_MAIN_DB: Final = 0x100
_WITH_FOLDER_SYNC: Final = 0x800 | 0x4000 | 0x80000  # main journal, super-journal, write-ahead log

# The name as a bare pointer: SQLite's own VFS keeps it, so it must be SQLite's and not that of a passing bytes object.
_Open = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_void_p, c.c_int, c.POINTER(c.c_int))
_Delete = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_char_p, c.c_int)
_Close = c.CFUNCTYPE(c.c_int, c.c_void_p)
_Write = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_int, c.c_int64)
_Truncate = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_int64)
_Sync = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_int)


class _Vfs(c.Structure):
    """`struct sqlite3_vfs`, version 3."""

    _fields_ = [
        ("iVersion", c.c_int),
        ("szOsFile", c.c_int),
        ("mxPathname", c.c_int),
        ("pNext", c.c_void_p),
        ("zName", c.c_char_p),
        ("pAppData", c.c_void_p),
        ("xOpen", _Open),
        ("xDelete", _Delete),
        *((name, c.c_void_p) for name in ("xAccess", "xFullPathname", "xDlOpen", "xDlError", "xDlSym", "xDlClose")),
        *((name, c.c_void_p) for name in ("xRandomness", "xSleep", "xCurrentTime", "xGetLastError")),
        *((name, c.c_void_p) for name in ("xCurrentTimeInt64", "xSetSystemCall", "xGetSystemCall", "xNextSystemCall")),
    ]


class _Methods(c.Structure):
    """`struct sqlite3_io_methods`, version 3."""

    _fields_ = [
        ("iVersion", c.c_int),
        ("xClose", _Close),
        ("xRead", c.c_void_p),
        ("xWrite", _Write),
        ("xTruncate", _Truncate),
        ("xSync", _Sync),
        *((name, c.c_void_p) for name in ("xFileSize", "xLock", "xUnlock", "xCheckReservedLock", "xFileControl")),
        *((name, c.c_void_p) for name in ("xSectorSize", "xDeviceCharacteristics")),
        *((name, c.c_void_p) for name in ("xShmMap", "xShmLock", "xShmBarrier", "xShmUnmap", "xFetch", "xUnfetch")),
    ]


class _OpenFile(c.Structure):
    """`struct sqlite3_file`: what follows the pointer is the VFS's own."""

    _fields_ = [("pMethods", c.POINTER(_Methods))]


@dataclass(slots=True)
class _Handle:
    disk: Disk
    node: int
    folder: str
    real: Any  # the methods of SQLite's own VFS
    syncs_folder: bool


def missing() -> str:
    """Why SQLite cannot be watched in this Python; "" when it can."""
    if _library_path() is None:
        return "Python's sqlite3 is not linked with a shared SQLite library, so no VFS can be put before its own"
    return ""


@contextmanager
def recorded(current: Callable[[], Disk], *, real_syncs: bool = False) -> Iterator[None]:
    """Tell `current()` of every change that SQLite makes below its root; files opened meanwhile keep their disk.

    Syncs are told and not done (the model decides what is durable) unless `real_syncs`.
    """
    shim = _shim()
    shim.current, shim.real_syncs = current, real_syncs
    shim.register()
    try:
        yield
    finally:
        shim.unregister()
        shim.current = None


class _Shim:
    def __init__(self, library: c.CDLL) -> None:
        library.sqlite3_vfs_find.restype = c.POINTER(_Vfs)
        library.sqlite3_vfs_find.argtypes = [c.c_char_p]
        library.sqlite3_vfs_register.argtypes = [c.POINTER(_Vfs), c.c_int]
        library.sqlite3_vfs_unregister.argtypes = [c.POINTER(_Vfs)]
        self._library = library
        self._real = library.sqlite3_vfs_find(None)
        self._own = _Vfs.from_buffer_copy(self._real.contents)
        self._own.zName = b"power"
        self._own.xOpen = _Open(_telling(self._open))
        self._own.xDelete = _Delete(_telling(self._delete))
        self._methods: dict[int, _Methods] = {}
        self._handles: dict[int, _Handle] = {}
        self.current: Callable[[], Disk] | None = None
        self.real_syncs = False

    def register(self) -> None:
        self._library.sqlite3_vfs_register(c.byref(self._own), 1)

    def unregister(self) -> None:
        self._library.sqlite3_vfs_unregister(c.byref(self._own))
        self._library.sqlite3_vfs_register(self._real, 1)

    def let_go(self) -> None:
        """Give files that are still open back to SQLite's own VFS: no Python may be called when the process ends."""
        for file, handle in self._handles.items():
            _OpenFile.from_address(file).pMethods = c.pointer(handle.real)
        self._own.xOpen, self._own.xDelete = self._real.contents.xOpen, self._real.contents.xDelete

    def _disk(self, path: str) -> Disk | None:
        disk = self.current() if self.current else None
        return disk if disk is not None and disk.covers(path) else None

    def _open(self, vfs: int, name: int | None, file: int, flags: int, out: Any) -> int:
        rc = int(self._real.contents.xOpen(vfs, name, file, flags, out))
        path = os.fsdecode(c.string_at(name)) if name else ""
        disk = self._disk(path) if name and flags & (_MAIN_DB | _WITH_FOLDER_SYNC) else None
        if rc != _OK or disk is None:
            return rc
        opened = _OpenFile.from_address(file)
        real = opened.pMethods.contents
        creates = bool(flags & _OPEN_CREATE and flags & _WITH_FOLDER_SYNC)
        self._handles[file] = _Handle(disk, disk.make(path), os.path.dirname(path), real, creates)
        opened.pMethods = c.pointer(self._wrapped(real))
        return rc

    def _wrapped(self, real: _Methods) -> _Methods:
        address = c.addressof(real)
        if address not in self._methods:
            own = _Methods.from_buffer_copy(real)
            own.xClose = _Close(_telling(self._close))
            own.xWrite = _Write(_telling(self._write))
            own.xTruncate = _Truncate(_telling(self._truncate))
            own.xSync = _Sync(_telling(self._sync))
            self._methods[address] = own
        return self._methods[address]

    def _delete(self, vfs: int, name: bytes, sync_folder: int) -> int:
        rc = int(self._real.contents.xDelete(vfs, name, sync_folder))
        path = os.fsdecode(name)
        disk = self._disk(path)
        if disk is not None and disk.node(path) is not None and not os.path.exists(path):
            disk.name(path, None)
            if sync_folder:
                disk.sync_path(os.path.dirname(path))
        return rc

    def _close(self, file: int) -> int:
        handle = self._handles.pop(file)
        # SQLite's own VFS may look at its table of methods, and frees what hangs on the file.
        _OpenFile.from_address(file).pMethods = c.pointer(handle.real)
        return int(handle.real.xClose(file))

    def _write(self, file: int, content: int, count: int, offset: int) -> int:
        handle = self._handles[file]
        rc = int(handle.real.xWrite(file, content, count, offset))
        if rc == _OK:
            handle.disk.write(handle.node, offset, c.string_at(content, count))
        return rc

    def _truncate(self, file: int, size: int) -> int:
        handle = self._handles[file]
        rc = int(handle.real.xTruncate(file, size))
        if rc == _OK:
            handle.disk.truncate(handle.node, size)
        return rc

    def _sync(self, file: int, flags: int) -> int:
        handle = self._handles[file]
        rc = int(handle.real.xSync(file, flags)) if self.real_syncs else _OK
        if rc == _OK:
            handle.disk.sync(handle.node)
            if handle.syncs_folder:
                handle.syncs_folder = False
                handle.disk.sync_path(handle.folder)
        return rc


def _telling(method: Callable[..., int]) -> Callable[..., int]:
    """An exception cannot pass through C: it is printed, and SQLite hears of an I/O error."""

    def called(*args: Any) -> int:
        try:
            return method(*args)
        except BaseException:  # noqa: BLE001
            import traceback

            traceback.print_exc()
            return _IOERR

    return called


_SHIMS: list[_Shim] = []


def _shim() -> _Shim:
    """One a process: callbacks that SQLite may still hold must never be freed."""
    if not _SHIMS:
        path = _library_path()
        assert path is not None, missing()
        _SHIMS.append(_Shim(c.CDLL(path)))
        atexit.register(_SHIMS[0].let_go)
    return _SHIMS[0]


def _library_path() -> str | None:
    sqlite3.connect(":memory:").close()
    with open("/proc/self/maps") as maps:
        paths = {line.split()[-1] for line in maps if "libsqlite3.so" in line}
    return next(iter(paths), None)
