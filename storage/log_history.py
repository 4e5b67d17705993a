"""How far back a table's log reaches, and which of its commits and checkpoints no kept version needs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from infomae_stream.folders import sync_path
from infomae_stream.telemetry import EventLog
from storage.delta_log import DeltaLog

_CHECKPOINT: Final = ".checkpoint.parquet"
_log = EventLog("infomae.lake")


def version_at(log: DeltaLog, at_ns: int) -> int:
    """The version that was the newest at `at_ns`; the oldest that the log still has when it does not reach back.

    A commit counts as old only when its own time stamp and its file's both say so: either clock may have jumped.
    """
    version = log.version()
    while version > 0:
        file = log.commit_file(version)
        try:
            stamp_ns = json.loads(file.read_bytes().split(b"\n", 1)[0])["commitInfo"]["timestamp"] * 1_000_000
            if max(stamp_ns, file.stat().st_mtime_ns) <= at_ns:
                return version
        except FileNotFoundError:
            return version + 1
        except (ValueError, KeyError, TypeError):
            pass  # another writer's commit without a time stamp: looked at as if it were new
        version -= 1
    return 0


def checkpoint_durably(log: DeltaLog, version: int) -> None:
    """Sum up `version` in a file of its own. Raises OSError or DeltaError."""
    DeltaTable(log.table, version=version).create_checkpoint()
    written = log.folder.glob(f"{version:020d}.checkpoint*")
    for path in (*written, log.folder / "_last_checkpoint", log.folder):
        sync_path(path)


def keep_readable(log: DeltaLog, versions: Iterable[int]) -> None:
    """Give each version a checkpoint, so that it needs no commit before it. What fails is logged and left out."""
    for version in versions:
        if 0 < version <= log.version() and not _is_whole(_checkpoint(log, version)):
            try:
                checkpoint_durably(log, version)
            except (OSError, DeltaError) as e:
                _log.warning("version_not_kept", table=str(log.table), version=version, error=str(e)[:200])


def unneeded_files(log: DeltaLog, start: int, pins: Iterable[int]) -> Iterator[Path]:
    """Commits and checkpoints that neither versions from `start` on nor `pins` need."""
    pinned = {pin for pin in pins if 0 <= pin <= log.version()}
    names = [path.name for path in log.folder.iterdir()]
    summed_up = sorted(
        _version_of(n) for n in names if n.endswith(_CHECKPOINT) and _is_whole(log.folder / n) and len(n) == 39
    )
    needed = [start, *(pin for pin in pinned if pin not in summed_up and pin > 0)]
    base = min(max((v for v in summed_up if v <= version), default=0) for version in needed)
    for name in sorted(names):
        version = _version_of(name)
        if 0 <= version < base and version not in pinned:
            yield log.folder / name


def _version_of(name: str) -> int:
    number = name.partition(".")[0]
    return int(number) if len(number) == 20 and number.isdecimal() else -1


def _checkpoint(log: DeltaLog, version: int) -> Path:
    return log.folder / f"{version:020d}{_CHECKPOINT}"


def _is_whole(path: Path) -> bool:
    try:
        pq.read_metadata(path)
    except (OSError, ValueError):
        return False
    return True
