"""Files that survive a power cut: written, fsynced, put in place in one step, and the folder fsynced."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from infomae_stream.failpoints import reached
from infomae_stream.folders import sync_path


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that readers of the lake do not look at."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the name `path` when the block ends without an error. Raises OSError.

    Synced before the rename, the folder after it; an error leaves nothing behind.
    """
    temporary = temporary_beside(path)
    try:
        with temporary.open("xb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        reached("compaction.before_rename")
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_path(path.parent)


def create_exclusively(path: Path, content: bytes) -> bool:
    """Put a whole, synced file at `path`, or return False when somebody else has. Raises OSError.

    The name appears (link) only after the bytes are on disk (fsync), so a power cut leaves all of the file or none.
    When the folder's fsync fails after the link, the OSError goes up although the file is there: the caller looks.
    """
    temporary = temporary_beside(path)
    try:
        with temporary.open("xb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    reached("lake.before_folder_sync")
    sync_path(path.parent)
    return True
