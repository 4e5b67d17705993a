"""Merges the many small files of a partition into few larger ones; the rows, and every old version, stay as they are.

Files grow by levels: a file of level k holds fan_in^k to fan_in^(k+1) bytes, and a merge takes at least `fan_in` files
of one level. So every byte is written again at most log_fan_in(target_bytes / bytes of one commit) times, however large
the lake is; and once more when its partition has been quiet for a day and its rest is merged whatever its levels.
Nothing is locked. The commit removes the old files and adds the new ones in one step (dataChange = false), behind
whatever others appended meanwhile; when another compactor was quicker with one of the files, this merge is given up.
Killed at any point it leaves a whole table, and perhaps a file that no commit names, which vacuum finds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from infomae_stream.errors import LakeError
from infomae_stream.failpoints import reached
from infomae_stream.telemetry import EventLog
from storage.delta_log import DeltaLog
from storage.lake import Lake
from storage.log_files import LiveFile, live_adds, replace_files
from storage.merge import Merged, decoded_group_bytes, key_columns, merge_files, without_copies
from storage.schemas import RECORD_TABLES, TABLES

DEFAULT_TARGET_BYTES: Final = 128_000_000
DEFAULT_FAN_IN: Final = 8
QUIET_S: Final = 86_400.0
_MOST_INPUTS: Final = 256  # open files of one merge
_MOST_ROWS: Final = 1_000_000  # of one merge: their keys are in memory
_log = EventLog("infomae.compaction")


@dataclass(slots=True)
class CompactionReport:
    """`files_*`: live files of the tables looked at. `conflicts`: merges given up because another took their files."""

    files_before: int = 0
    files_after: int = 0
    merges: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    duplicates_dropped: int = 0
    conflicts: int = 0


@dataclass(frozen=True, slots=True)
class _Levels:
    target_bytes: int
    fan_in: int
    quiet_before_ms: int

    def ready(self, files: Sequence[LiveFile]) -> Iterator[list[LiveFile]]:
        """Groups of neighbours in time within one partition, each worth a merge now."""
        small = [file for file in files if file.size < self.target_bytes // 2]
        if small and max(file.modified_ms for file in files) <= self.quiet_before_ms:
            yield from self._groups(small, 2)
            return
        levels: dict[int, list[LiveFile]] = defaultdict(list)
        for file in small:
            levels[int(math.log(max(1, file.size), self.fan_in))].append(file)
        for _, level in sorted(levels.items()):
            yield from self._groups(level, self.fan_in)

    def _groups(self, files: Sequence[LiveFile], at_least: int) -> Iterator[list[LiveFile]]:
        group: list[LiveFile] = []
        for file in sorted(files, key=_place_in_time):
            if group and not self._takes(group, file):
                if self._is_ready(group, at_least):
                    yield group
                group = []
            group.append(file)
        if self._is_ready(group, at_least):
            yield group

    def _takes(self, group: Sequence[LiveFile], file: LiveFile) -> bool:
        return (
            len(group) < _MOST_INPUTS
            and sum(f.size for f in group) + file.size <= self.target_bytes
            and sum(f.rows for f in group) + file.rows <= _MOST_ROWS
        )

    def _is_ready(self, group: Sequence[LiveFile], at_least: int) -> bool:
        full = sum(f.size for f in group) >= self.target_bytes // 2
        return len(group) >= at_least or (len(group) > 1 and full)


def compact(
    lake: Lake,
    *,
    tables: Sequence[str] | None = None,
    target_bytes: int = DEFAULT_TARGET_BYTES,
    fan_in: int = DEFAULT_FAN_IN,
    everything: bool = False,
    memory_bytes: int = 64_000_000,
    should_stop: Callable[[], bool] = lambda: False,
) -> CompactionReport:
    """Merge what is small (`tables` None: in all tables), oldest first, until nothing more is worth a merge.

    everything: treat every partition as quiet, so that no small file waits for others of its level. memory_bytes:
    bound of the decoded row groups that a merge holds at once. should_stop is asked between merges.
    Raises LakeError.
    """
    report = CompactionReport()
    now_ms = lake.now_ns() // 1_000_000
    quiet_before_ms = now_ms + 1 if everything else now_ms - round(QUIET_S * 1000)
    levels = _Levels(target_bytes, max(2, fan_in), quiet_before_ms)
    for name in tables or TABLES:
        report.files_before += len(live_adds(lake.log(name), TABLES[name], lake.version(name)))
        while _one_pass(lake, name, levels, memory_bytes, should_stop, report):
            pass
        report.files_after += len(live_adds(lake.log(name), TABLES[name], lake.version(name)))
    return report


def _one_pass(
    lake: Lake,
    name: str,
    levels: _Levels,
    memory_bytes: int,
    should_stop: Callable[[], bool],
    report: CompactionReport,
) -> bool:
    """Every merge that the newest version asks for; False when none of them made files fewer."""
    log, version = lake.log(name), lake.version(name)
    partitions: dict[tuple[tuple[str, str], ...], list[LiveFile]] = defaultdict(list)
    for file in live_adds(log, TABLES[name], version):
        partitions[file.partition].append(file)
    progress = False
    for _, files in sorted(partitions.items()):
        for group in levels.ready(files):
            if should_stop():
                return False
            progress |= _merge(lake, name, version, group, levels.target_bytes, memory_bytes, report)
    return progress


def _merge(
    lake: Lake,
    name: str,
    version: int,
    group: list[LiveFile],
    target_bytes: int,
    memory_bytes: int,
    report: CompactionReport,
) -> bool:
    log, layout = lake.log(name), TABLES[name]
    try:
        group = _within_memory(log, group, memory_bytes)
        merged = merge_files(
            log.table,
            layout,
            group,
            keys=key_columns(name, layout),
            choose=without_copies if name in RECORD_TABLES else lambda keys: keys,
            target_bytes=target_bytes,
            now_ns=lake.now_ns(),
        )
    except FileNotFoundError:
        report.conflicts += 1  # another compactor's merge, and a vacuum since
        return False
    except (OSError, ValueError) as e:
        raise LakeError(f"files cannot be merged: {e}", where=str(log.table)) from e
    reached("compaction.before_commit")
    removes = [file.remove_action(lake.now_ns(), data_change=False) for file in group]
    committed = replace_files(log, version, group, [*removes, *merged.adds], lake.now_ns(), "OPTIMIZE")
    reached("compaction.after_commit")
    if committed is None:
        report.conflicts += 1
        return False
    log.checkpoint_quietly(committed)
    _count(report, group, merged)
    if merged.dropped:
        _log.warning("copies_dropped", table=name, rows=merged.dropped)
    return len(merged.adds) < len(group)


def _within_memory(log: DeltaLog, group: list[LiveFile], memory_bytes: int) -> list[LiveFile]:
    """As many of the group's first files (two at least) as may each hold a row group in memory."""
    total = 0
    for i, file in enumerate(group):
        total += decoded_group_bytes(log.table / file.path)
        if total > memory_bytes and i >= 2:
            return group[:i]
    return group


def _count(report: CompactionReport, group: Sequence[LiveFile], merged: Merged) -> None:
    report.merges += 1
    report.bytes_read += sum(file.size for file in group)
    report.bytes_written += merged.bytes_written
    report.duplicates_dropped += merged.dropped


def _place_in_time(file: LiveFile) -> tuple[int, str]:
    start_ns = file.least.get("start_ns")
    return (start_ns if start_ns is not None else file.modified_ms * 1_000_000), file.path
