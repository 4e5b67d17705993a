"""Segments that the log names and that are not whole: cut short, empty. They are left out, loudly.

Our own writes cannot leave one (a segment is synced before a commit names it); a failing disk, an unfinished copy or a
restore can. One such file must not make the rest of the lake unreadable: readers and the identity index skip it, it is
logged as an error once, counted (`torn_seen`, infomae_lake_torn_files), and `lake verify` names it. Its records are
lost to readers until it is restored; a node that still has them may send them again, their identities being unknown.

The quarantine and the retired identities are not skipped: without them, records that must stay hidden would show.
What is cut is told by a Parquet file's frame, which costs two small reads a file. Damage inside it is not: there the
checksums of `lake verify` and DuckDB's own errors have to tell.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from infomae_stream.errors import LakeError
from infomae_stream.telemetry import EventLog

_MAGIC: Final = b"PAR1"
_SMALLEST: Final = 12  # magic, footer's length, magic
_NEVER_SKIPPED: Final = ("quarantine", "retired")
_log = EventLog("infomae.lake")
_seen: set[str] = set()
_lock = threading.Lock()


def whole_files(table: str, files: Iterable[Path]) -> list[Path]:
    """`files` without those that are torn. A file that is missing stays, so that its reader fails and says so.

    Raises LakeError for a torn file of a table that hides records.
    """
    found = []
    for file in files:
        torn = _torn(file)
        if not torn:
            found.append(file)
        elif table in _NEVER_SKIPPED:
            raise LakeError(
                f"{torn}; without it records that must stay hidden would show",
                where=str(file),
                fix="restore the file from a backup",
            )
        else:
            _tell(file, torn)
    return found


def torn_seen() -> int:
    """How many different torn files this process has left out."""
    return len(_seen)


def _tell(file: Path, torn: str) -> None:
    with _lock:
        new = str(file) not in _seen
        _seen.add(str(file))
    if new:
        _log.error("torn_file_skipped", path=str(file), reason=torn, fix="restore it; `lake verify` lists all")


def _torn(file: Path) -> str:
    """What is wrong with the frame of a Parquet file; "" when nothing is, or when it is not there."""
    try:
        with file.open("rb") as f:
            size = os.fstat(f.fileno()).st_size
            if size < _SMALLEST:
                return f"{size} bytes are no Parquet file"
            head = f.read(4)
            f.seek(size - 8)
            footer, tail = int.from_bytes(f.read(4), "little"), f.read(4)
    except FileNotFoundError:
        return ""
    except OSError as e:
        raise LakeError(f"cannot be read: {e.strerror or e}", where=str(file)) from e
    if head != _MAGIC or tail != _MAGIC or footer > size - _SMALLEST:
        return "the Parquet file is cut short"
    return ""
