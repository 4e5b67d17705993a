"""The file below an outbox: how it is opened, brought up to the newest format, and what its errors mean."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from typing import Final

from infomae_stream import outbox_schema as sql
from infomae_stream.errors import OutboxError, OutboxFull

BUSY_TIMEOUT_S: Final = 10.0
WAL_LIMIT_BYTES: Final = 4_000_000
# A commit touches about ten pages beside the payload (tree, index, sums, position); small ones wear a flash card less.
PAGE_BYTES: Final = 1024
CACHE_KB: Final = 512  # a process may have twenty of these files open


def connect(path: Path) -> sqlite3.Connection:
    """Open or make the file, durable at each commit. Raises sqlite3.Error."""
    db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
    try:
        db.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # of a new file; an old one keeps its own
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
        page_bytes = db.execute("PRAGMA page_size").fetchone()[0]
        db.execute(f"PRAGMA wal_autocheckpoint = {WAL_LIMIT_BYTES // page_bytes}")
        # On in some builds: it would write zeros over all that is deleted, half as much again as the data.
        db.execute("PRAGMA secure_delete = OFF")
        db.execute(f"PRAGMA cache_size = -{CACHE_KB}")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version in (0, 1):
            steps = sql.UPGRADE if version else sql.SCHEMA
            db.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {sql.VERSION}; COMMIT;")
    except BaseException:
        db.close()
        raise
    return db


def free_bytes(path: Path) -> int:
    """What an ordinary program may still write to the disk of `path`. Raises OSError."""
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize


def reusable_bytes(db: sqlite3.Connection) -> int:
    """Pages of the file that hold nothing: new rows go there before the file grows."""
    pages = db.execute("PRAGMA freelist_count").fetchone()[0]
    return int(pages * db.execute("PRAGMA page_size").fetchone()[0])


def translated(error: Exception, path: Path) -> OutboxError:
    """What SQLite or the disk said, in this project's words."""
    if isinstance(error, sqlite3.Error):
        full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
    else:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if full:
        return OutboxFull(f"the disk is full ({error})", where=str(path), fix="free some; nothing half was written")
    return OutboxError(f"the outbox cannot be used ({error})", where=str(path), fix="is it a disk's fault, or a lock?")
