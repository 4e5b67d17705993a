"""Takes the oldest data out of the lake, by age and by bytes; pairs and labelled stretches go last.

What goes is first written down in the table `retired` (identities as ranges, why, when) and then removed by a commit:
whoever is killed in between leaves records that are both stored and called retired, which the next round mends. A
retired identity stays known: when a node sends it again it is acknowledged and not stored. `verify` tells it from a
lost one. Files of which only a part goes are written anew.
Old versions, and so the files on disk, stay until vacuum; files that a model's lineage pins stay for good. So bytes
are counted over the newest version and the pinned files, and what is pinned is no help against too many bytes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infomae_stream.clock import NS_PER_S
from infomae_stream.errors import LakeError
from infomae_stream.failpoints import reached
from infomae_stream.telemetry import EventLog
from storage.delta_log import Action
from storage.identities import OutboxKey, SeqRanges
from storage.lake import Lake
from storage.lineage import pinned_versions
from storage.log_files import LiveFile, live_adds, replace_files
from storage.merge import key_columns, merge_files
from storage.protected import Spans, labelled_spans, paired_spans
from storage.schemas import RECORD_TABLES, TABLES

_DAY_NS: Final = 86_400 * NS_PER_S
_SLICE_FILES: Final = 64
_SLICE_ROWS: Final = 500_000
_log = EventLog("infomae.retention")

Rule = Callable[[pa.Table], NDArray[np.bool_]]  # of a key table: which rows go


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """0 means no limit.

    max_bytes: of all record tables together. max_age_days: from a record's end, for what is neither paired nor
    labelled. keep_paired_days, keep_labelled_days: the same for what is; a record that is both has the longer one.
    margin_s: what is kept on both sides of a paired window or a label.
    """

    max_bytes: int = 0
    max_age_days: float = 0.0
    keep_paired_days: float = 0.0
    keep_labelled_days: float = 0.0
    margin_s: float = 5.0


@dataclass(slots=True)
class RetentionReport:
    """Records and bytes of files taken out of the newest version, by reason ("age", "bytes").

    live_bytes, pinned_bytes: what is left in the newest version, and files that only lineage keeps. conflicts:
    rewrites that another writer's merge undid; the next round does them.
    """

    records: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    commits: int = 0
    conflicts: int = 0
    live_bytes: int = 0
    pinned_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Doomed:
    """Rows of one file that go; `keys` has them, `whole` when nothing else is in the file."""

    table: str
    file: LiveFile
    keys: pa.Table
    whole: bool

    @property
    def bytes(self) -> int:
        return int(self.file.size * self.keys.num_rows / max(1, self.file.rows))


def retire(
    lake: Lake,
    policy: RetentionPolicy,
    *,
    window_ns: int = 2 * NS_PER_S,
    pins: Mapping[str, Iterable[int]] | None = None,
    work_dir: Path | None = None,
) -> RetentionReport:
    """Bring the newest version within `policy`, oldest first; `window_ns` is how long a paired window is.

    pins: versions kept beside the newest; None looks them up (`pinned_versions`). Raises LakeError.
    """
    round_ = _Round(lake, policy, window_ns, pinned_versions(lake, work_dir=work_dir) if pins is None else pins)
    if policy.max_age_days or policy.keep_paired_days or policy.keep_labelled_days:
        round_.by_age()
    if policy.max_bytes:
        round_.by_bytes()
    round_.measure()
    return round_.report


class _Round:
    def __init__(self, lake: Lake, policy: RetentionPolicy, window_ns: int, pins: Mapping[str, Iterable[int]]) -> None:
        self._lake, self._policy = lake, policy
        self._pins = {table: tuple(versions) for table, versions in pins.items()}
        self._now_ns = lake.now_ns()
        margin_ns = round(policy.margin_s * NS_PER_S)
        self._paired: Spans = paired_spans(lake, window_ns, margin_ns)
        self._labelled: Spans = labelled_spans(lake, margin_ns)
        self._pinned: dict[str, dict[str, int]] = {name: self._pinned_files(name) for name in RECORD_TABLES}
        self.report = RetentionReport()

    def by_age(self) -> None:
        limits = (self._policy.max_age_days, self._policy.keep_paired_days, self._policy.keep_labelled_days)
        if not any(limits):
            return
        newest_ns = max(self._before_ns(days) for days in limits)

        def may_hold(file: LiveFile) -> bool:
            end_ns = file.least.get("end_ns")
            return end_ns is None or end_ns <= newest_ns

        self._retire(self._doomed(self._expired, may_hold), "age", None)

    def by_bytes(self) -> None:
        """Unprotected first, then what is protected too; files that are pinned free nothing and stay."""
        for rule in (self._unprotected, lambda keys: np.ones(keys.num_rows, dtype=bool)):
            commits = -1
            # Again while it helps: how much smaller a file gets is known only when it is written.
            while commits < self.report.commits and (excess := self._excess()) > 0:
                commits = self.report.commits
                self._retire(self._doomed(rule, lambda _: True, pinned=False), "bytes", excess)

    def _excess(self) -> int:
        self.measure()
        return self.report.live_bytes + self.report.pinned_bytes - self._policy.max_bytes

    def measure(self) -> None:
        live = {name: self._live(name) for name in RECORD_TABLES}
        self.report.live_bytes = sum(file.size for files in live.values() for file in files)
        self.report.pinned_bytes = sum(
            sum(self._pinned[name].values()) - sum(self._pinned[name].get(file.path, 0) for file in files)
            for name, files in live.items()
        )

    def _live(self, name: str) -> list[LiveFile]:
        return live_adds(self._lake.log(name), TABLES[name], self._lake.version(name))

    def _pinned_files(self, name: str) -> dict[str, int]:
        log, newest = self._lake.log(name), self._lake.version(name)
        versions = [version for version in self._pins.get(name, ()) if version <= newest]
        return {file.path: file.size for version in versions for file in live_adds(log, TABLES[name], version)}

    def _before_ns(self, days: float) -> int:
        """The end up to which records are too old; none is when there is no limit."""
        return self._now_ns - round(days * _DAY_NS) if days else -1

    def _expired(self, keys: pa.Table) -> NDArray[np.bool_]:
        """Rows whose every reason to be kept has run out."""
        policy, end = self._policy, keys["end_ns"].to_numpy()
        paired, labelled = self._paired.touch(keys, by_stream=True), self._labelled.touch(keys, by_stream=False)
        out = paired | labelled | (end <= self._before_ns(policy.max_age_days))
        out &= ~paired | (end <= self._before_ns(policy.keep_paired_days))
        out &= ~labelled | (end <= self._before_ns(policy.keep_labelled_days))
        return np.asarray(out, dtype=bool)

    def _unprotected(self, keys: pa.Table) -> NDArray[np.bool_]:
        return ~(self._paired.touch(keys, by_stream=True) | self._labelled.touch(keys, by_stream=False))

    def _doomed(
        self, rule: Rule, may_hold: Callable[[LiveFile], bool], *, pinned: bool = True
    ) -> Iterator[tuple[Rule, int, _Doomed]]:
        """What `rule` takes, oldest file first, with the version that the file was seen in."""
        found = [(name, self._lake.version(name), file) for name in RECORD_TABLES for file in self._live(name)]
        for name, version, file in sorted(found, key=lambda f: (f[2].least.get("start_ns") or 0, f[2].path)):
            if not may_hold(file) or (not pinned and file.path in self._pinned[name]):
                continue
            columns = [n for n in key_columns(name, TABLES[name]) if n != "crc32"]
            try:
                keys = pq.ParquetFile(self._lake.table_path(name) / file.path).read(columns)
            except FileNotFoundError:
                continue  # merged, and vacuumed since
            except (OSError, ValueError) as e:
                raise LakeError(f"a file cannot be read: {e}", where=file.path) from e
            goes = rule(keys)
            if goes.any():
                yield rule, version, _Doomed(name, file, keys.filter(pa.array(goes)), bool(goes.all()))

    def _retire(self, doomed: Iterator[tuple[Rule, int, _Doomed]], reason: str, enough_bytes: int | None) -> None:
        """Slice by slice, until `enough_bytes` are freed; a slice is what is in memory at once."""
        part: list[tuple[Rule, int, _Doomed]] = []
        freed = 0
        for item in doomed:
            part.append(item)
            freed += item[2].bytes
            full = len(part) >= _SLICE_FILES or sum(d.keys.num_rows for _, _, d in part) >= _SLICE_ROWS
            done = enough_bytes is not None and freed >= enough_bytes
            if full or done:
                self._retire_slice(part, reason)
                part = []
            if done:
                break
        if part:
            self._retire_slice(part, reason)

    def _retire_slice(self, part: Sequence[tuple[Rule, int, _Doomed]], reason: str) -> None:
        rows = _retired_rows([d.keys for _, _, d in part], reason, self._now_ns)
        self._lake.append("retired", lambda _: rows)
        reached("retention.before_commit")
        by_table: dict[str, list[tuple[Rule, int, _Doomed]]] = defaultdict(list)
        for item in part:
            by_table[item[2].table].append(item)
        for name, items in by_table.items():
            self._remove(name, items, reason)

    def _remove(self, name: str, items: Sequence[tuple[Rule, int, _Doomed]], reason: str) -> None:
        log, files = self._lake.log(name), [d.file for _, _, d in items]
        changes: list[Action] = [file.remove_action(self._now_ns, data_change=True) for file in files]
        for rule, _, doomed in items:
            if not doomed.whole:
                changes += self._rest(name, doomed.file, rule)
        version = replace_files(log, min(v for _, v, _ in items), files, changes, self._now_ns, "DELETE")
        if version is None:
            self.report.conflicts += 1
            return
        log.checkpoint_quietly(version)
        records = sum(d.keys.num_rows for _, _, d in items)
        kept = sum(action["add"]["size"] for action in changes if "add" in action)
        freed = sum(file.size for file in files) - kept
        self.report.records[reason] += records
        self.report.bytes[reason] += freed
        self.report.commits += 1
        first_ns = min(d.keys["start_ns"].to_numpy().min() for _, _, d in items)
        last_ns = max(d.keys["end_ns"].to_numpy().max() for _, _, d in items)
        _log.info("retired", table=name, reason=reason, records=records, bytes=freed, from_ns=first_ns, to_ns=last_ns)

    def _rest(self, name: str, file: LiveFile, rule: Rule) -> list[Action]:
        """Write what stays of a file; its actions."""
        log, layout = self._lake.log(name), TABLES[name]
        try:
            return merge_files(
                log.table,
                layout,
                [file],
                keys=key_columns(name, layout),
                choose=lambda keys: keys.filter(pa.array(~rule(keys))),
                target_bytes=2 * file.size,
                now_ns=self._now_ns,
            ).adds
        except (OSError, ValueError) as e:
            raise LakeError(f"a file cannot be written anew: {e}", where=str(log.table)) from e


def _retired_rows(parts: Sequence[pa.Table], reason: str, now_ns: int) -> pa.Table:
    """Identities as ranges; each with the time that all of its outbox's records here span."""
    ranges: dict[OutboxKey, SeqRanges] = defaultdict(SeqRanges)
    spans: dict[OutboxKey, tuple[int, int]] = {}
    for keys in parts:
        columns = [keys[name].to_pylist() for name in ("site", "node", "epoch", "seq", "start_ns", "end_ns")]
        for site, node, epoch, seq, start_ns, end_ns in zip(*columns, strict=True):
            key = (site, node, epoch)
            ranges[key].add(seq, seq)
            first, last = spans.get(key, (start_ns, end_ns))
            spans[key] = min(first, start_ns), max(last, end_ns)
    schema = TABLES["retired"].schema
    rows: list[dict[str, Any]] = [
        dict(zip(schema.names, (*key, first, last, *spans[key], reason, now_ns), strict=True))
        for key, seqs in sorted(ranges.items())
        for first, last in seqs
    ]
    return pa.Table.from_pylist(rows, schema=schema)
