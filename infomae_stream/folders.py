"""Folders that survive a power cut: a folder's name is durable only when the folder around it has been fsynced."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def sync_path(path: Path) -> None:
    """fsync a file or a folder through a descriptor of its own. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folders(folder: Path) -> None:
    """Make `folder` and what is missing above it; all their names are durable when this returns. Raises OSError.

    Top down, each name synced before the next folder is made. So only the deepest folder that is there already can be
    one that somebody made and did not sync yet (another process, or one that was killed in between): its name is
    synced here, unless the folder around it is not ours to read.
    """
    folder = Path(os.path.abspath(folder))
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    with suppress(PermissionError):
        sync_path(folder.parent)
    for child in reversed(missing):
        child.mkdir(exist_ok=True)
        sync_path(child.parent)
