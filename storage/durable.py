"""Files that survive a power cut: written, fsynced, put in place in one step, and the folder fsynced."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from infomae_stream.failpoints import reached


def sync_path(path: Path) -> None:
    """fsync a file or a folder through a descriptor of its own. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folders(folder: Path, root: Path) -> None:
    """Make `folder` below the existing `root`; every folder that got a new entry is fsynced."""
    missing = [folder]
    while missing[-1] != root and not missing[-1].exists():
        missing.append(missing[-1].parent)
    for parent, child in zip(reversed(missing), reversed(missing[:-1]), strict=False):
        child.mkdir(exist_ok=True)
        sync_path(parent)


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that readers of the lake do not look at."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


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
