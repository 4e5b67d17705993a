"""Deletes files that no kept version of a table names, once nobody can be reading or committing them any more.

Kept are the versions that were the newest at some time in the last `grace_s`, and those that a model's lineage names.
A file is deleted when no kept version has it and it was last written before the grace period: so readers of a version
that compaction has replaced go on reading, and a writer has that long from its file to its commit. Stray temporaries
go by the same rule. The log is cut too: commits before the oldest checkpoint that a kept version needs are deleted;
versions in lineage get a checkpoint of their own, so that they cost one file and not the log since.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from infomae_stream.clock import NS_PER_S
from infomae_stream.errors import LakeError
from infomae_stream.failpoints import reached
from infomae_stream.folders import sync_path
from infomae_stream.telemetry import EventLog
from storage.delta_log import DeltaLog
from storage.lake import Lake
from storage.lineage import joined, pinned_versions
from storage.log_files import live_adds
from storage.log_history import keep_readable, unneeded_files, version_at
from storage.schemas import TABLES

DEFAULT_GRACE_S: Final = 86_400.0
_log = EventLog("infomae.vacuum")


@dataclass(slots=True)
class VacuumReport:
    """What was deleted (with `dry_run`: what would be), and the versions that lineage keeps.

    files, bytes: Parquet files that no kept version names; orphans: those of them that no commit in the log ever
    named, left by a writer that died. log_files: commits and checkpoints. pinned: versions by table.
    """

    files: int = 0
    bytes: int = 0
    orphans: int = 0
    temporaries: int = 0
    log_files: int = 0
    pinned: dict[str, tuple[int, ...]] = field(default_factory=dict)


def vacuum(
    lake: Lake,
    *,
    grace_s: float = DEFAULT_GRACE_S,
    pins: Mapping[str, Iterable[int]] | None = None,
    work_dir: Path | None = None,
    dry_run: bool = False,
) -> VacuumReport:
    """Delete what nobody needs; with `dry_run` only count it.

    pins: versions to keep beside those of lineage (`pinned_versions`); with None those are looked up here, in the
    lake and in the aligner's `work_dir`. grace_s must be longer than the longest read and the longest merge.
    Raises LakeError.
    """
    found = pinned_versions(lake, work_dir=work_dir) if pins is None else {}
    kept = joined([found, {table: tuple(versions) for table, versions in (pins or {}).items()}])
    report = VacuumReport(pinned=kept)
    before_ns = lake.now_ns() - round(grace_s * NS_PER_S)
    for name in TABLES:
        try:
            _vacuum_table(lake, name, kept.get(name, ()), before_ns, dry_run, report)
        except OSError as e:
            raise LakeError(f"cannot vacuum: {e.strerror or e}", where=str(lake.table_path(name))) from e
    return report


def _vacuum_table(
    lake: Lake, name: str, pins: tuple[int, ...], before_ns: int, dry_run: bool, report: VacuumReport
) -> None:
    log = lake.log(name)
    # The folder first, the log second: what is committed between the two is then kept.
    candidates = [path for path in log.table.rglob("*") if path.is_file() and _older(path, before_ns)]
    start = version_at(log, before_ns)
    named = _named_files(lake, name, start, pins)
    data = [p for p in candidates if p.suffix == ".parquet" and log.folder not in p.parents]
    unnamed = [p for p in data if str(p.relative_to(log.table)) not in named]
    temporaries = [p for p in candidates if p.name.startswith(".") and p.name.endswith(".tmp")]
    if not dry_run:
        keep_readable(log, pins)
    old_log = list(unneeded_files(log, start, pins))
    report.files += len(unnamed)
    report.bytes += sum(_size(path) for path in unnamed)
    report.orphans += len(_orphans(log, unnamed))
    report.temporaries += len(temporaries)
    report.log_files += len(old_log)
    if dry_run:
        return
    # What makes these files unneeded must survive a power cut better than they do.
    log.sync()
    reached("vacuum.before_unlink")
    for path in (*unnamed, *temporaries, *old_log):
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in (*unnamed, *temporaries, *old_log)}:
        sync_path(folder)
    if unnamed or old_log:
        _log.info("vacuumed", table=name, files=len(unnamed), temporaries=len(temporaries), log_files=len(old_log))


def _named_files(lake: Lake, name: str, start: int, pins: Iterable[int]) -> set[str]:
    """Paths that were live at version `start` or at any time since, and at the pinned versions."""
    log = lake.log(name)
    newest = log.version()
    named = {action["add"]["path"] for action in log.actions(start + 1, newest) if "add" in action}
    for version in {start, newest, *(pin for pin in pins if pin <= newest)}:
        named |= {file.path for file in live_adds(log, TABLES[name], version)}
    # Another Delta writer may have percent-encoded a path.
    return named | {unquote(path) for path in named}


def _orphans(log: DeltaLog, unnamed: Sequence[Path]) -> set[str]:
    """Those that appear in no commit which is still there, neither added nor removed."""
    left = {str(path.relative_to(log.table)) for path in unnamed}
    version = log.version()
    while left and version >= 0 and log.has(version, version):
        for action in log.actions(version, version):
            file = action.get("add") or action.get("remove")
            if file is not None:
                left -= {file["path"], unquote(file["path"])}
        version -= 1
    return left


def _older(path: Path, before_ns: int) -> bool:
    try:
        return path.stat().st_mtime_ns < before_ns
    except FileNotFoundError:
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
