"""Is the lake whole? Files against the log, checksums against the samples, sequence numbers against each other.

It reads only, and may run beside ingest: what a writer is about to commit is younger than the grace period. What the
nodes say that they accepted is another question; `verify.compare` answers it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from infomae_stream.errors import DataError, LakeError
from infomae_stream.shedding import REASON as SHED
from infomae_stream.types import Chunk, Detection, Gap
from storage.delta_log import DeltaLog
from storage.identities import OutboxKey, SeqRanges
from storage.lake import Lake
from storage.plain_text import Advance, no_progress
from storage.rows import chunk_from, detection_from, gap_from, record_crc32
from storage.schemas import TABLES
from storage.segments import live_files

GRACE_S: Final = 3600.0
_BATCH_ROWS: Final = 64
_FROM_ROW: Final[dict[str, Callable[[Mapping[str, Any]], Chunk | Gap | Detection]]] = {
    "chunks": chunk_from,
    "gaps": gap_from,
    "detections": detection_from,
}
_OUTBOX: Final = ("site", "node", "epoch")
_NUMBERS: Final = {
    "chunks": (*_OUTBOX, "seq"),
    "gaps": (*_OUTBOX, "seq", "reason"),
    "detections": (*_OUTBOX, "seq"),
    "quarantine": (*_OUTBOX, "seq"),
    "retired": (*_OUTBOX, "seq_first", "seq_last"),
}
_FIX: Final = {
    "missing_table": "restore its folder from a backup; the empty one that stands there now holds nothing",
    "torn_file": "restore this file from a backup; its records are lost to readers until then",
    "missing_file": "restore this file from a backup; reads of its range fail until then",
    "bad_checksum": "restore the file from a backup; these samples are not those that the node sent",
    "missing_numbers": "if the node runs, wait until it has sent; else compare with its outbox or truth log (--truth)",
    "unreadable_log": "restore _delta_log from a backup",
    "orphan": "no version names it, so no reader sees it; it may be deleted",
    "temporary": "left by a writer that was killed; it may be deleted",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong: `kind` is a key of a closed set, `fix` says what to do."""

    kind: str
    where: str
    what: str
    fix: str


@dataclass(slots=True)
class Audit:
    """`explained`: numbers that refused messages account for. `young`: files that no version names yet and that are
    younger than the grace period: a writer may be about to commit them.

    maybe_shed: numbers that never came from an outbox (`shedders`) which has told, by gap records, that it shed records
    for lack of room. A gap record tells a time and no numbers, so which of them it covers only the truth logs say.
    """

    files: int = 0
    records: int = 0
    outboxes: int = 0
    missing_numbers: int = 0
    explained: int = 0
    maybe_shed: int = 0
    young: int = 0
    checksums: bool = True
    findings: list[Finding] = field(default_factory=list)
    shedders: set[OutboxKey] = field(default_factory=set)

    @property
    def passed(self) -> bool:
        return not self.findings

    def counts(self) -> dict[str, int]:
        return dict(Counter(finding.kind for finding in self.findings))

    def add(self, kind: str, where: object, what: str) -> None:
        self.findings.append(Finding(kind, str(where), what, _FIX[kind]))


def audit(
    lake: Lake,
    *,
    checksums: bool = True,
    refused: Iterable[tuple[str, str, str, int]] = (),
    grace_s: float = GRACE_S,
    now_s: float | None = None,
    advance: Advance = no_progress,
) -> Audit:
    """Look at everything. `refused`: (site, node, epoch, seq) of dead letters, which explain holes.

    `checksums` False skips reading the samples. `now_s`: the time that files' ages are told by. Memory: one batch of
    rows and the ranges of sequence numbers. What is damaged becomes a finding; raises LakeError only when the folder
    itself cannot be read.
    """
    found = Audit(checksums=checksums)
    live = {table: _live(lake, table, found) for table in TABLES}
    total = sum(_size(path) for paths in live.values() for path in paths) or 1
    done = 0
    seqs: dict[OutboxKey, SeqRanges] = {}
    for table, paths in live.items():
        for path in paths:
            _look_into(path, table, found, seqs, checksums)
            done += _size(path)
            advance(done, total)
    _holes(seqs, refused, found)
    try:
        for table in TABLES:
            _strays(lake, table, found, grace_s, time.time() if now_s is None else now_s)
    except OSError as e:
        raise LakeError(f"cannot read the folder: {e.strerror or e}", where=str(lake.path)) from e
    return found


def _live(lake: Lake, table: str, found: Audit) -> list[Path]:
    """Files of the newest version that are there; those that are not become findings."""
    try:
        paths = live_files(lake.table_path(table), lake.version(table))
    except LakeError as e:
        found.add("unreadable_log", lake.table_path(table) / "_delta_log", e.what)
        return []
    for path in paths:
        if not path.exists():
            found.add("missing_file", path, "the log names this file, and it is not there")
    return [path for path in paths if path.exists()]


def _look_into(path: Path, table: str, found: Audit, seqs: dict[OutboxKey, SeqRanges], checksums: bool) -> None:
    found.files += 1
    want = set(TABLES[table].file_schema.names) - set(TABLES[table].added)
    try:
        with pq.ParquetFile(path) as file:
            missing = want - set(file.schema_arrow.names)
            if missing:
                found.add("torn_file", path, f"columns are missing: {', '.join(sorted(missing))}")
                return
            every = checksums and table in _FROM_ROW
            columns = None if every else _NUMBERS.get(table)
            for batch in file.iter_batches(_BATCH_ROWS if every else 4096, columns=columns):
                _look_at(batch, path, table, found, seqs, every)
    except (OSError, ValueError, pa.ArrowException) as e:
        found.add("torn_file", path, f"cannot be read as Parquet: {str(e).splitlines()[0] if str(e) else e!r}")


def _look_at(
    batch: Any, path: Path, table: str, found: Audit, seqs: dict[OutboxKey, SeqRanges], checksums: bool
) -> None:
    found.records += batch.num_rows
    if table in _NUMBERS:
        for site, node, epoch, *numbers in zip(*(batch.column(n).to_pylist() for n in _NUMBERS[table]), strict=True):
            # (seq), (seq, reason) of gaps, (first, last) of retired
            last = numbers[1] if table == "retired" else numbers[0]
            seqs.setdefault((site, node, epoch), SeqRanges()).add(numbers[0], last)
            if table == "gaps" and numbers[1] == SHED:
                found.shedders.add((site, node, epoch))
    if checksums:
        for row in batch.to_pylist():
            wrong = _wrong(row, table, path)
            if wrong:
                found.add(
                    "bad_checksum", path, f"{row['site']}/{row['node']} epoch {row['epoch']} seq {row['seq']}: {wrong}"
                )


def _wrong(row: Mapping[str, Any], table: str, path: Path) -> str:
    """What is wrong with a row's content; "" when nothing is."""
    try:
        values = {**row, **dict(part.split("=", 1) for part in path.parent.parts[-2:] if "=" in part)}
        crc32 = record_crc32(_FROM_ROW[table](values))
    except (LakeError, DataError, ValueError, TypeError, KeyError) as e:
        return str(e)
    return "" if crc32 == row["crc32"] else f"checksum {crc32}, stored with {row['crc32']}"


def _holes(seqs: Mapping[OutboxKey, SeqRanges], refused: Iterable[tuple[str, str, str, int]], found: Audit) -> None:
    """Numbers between the least and the greatest of an outbox that nothing in the lake has."""
    found.outboxes = len(seqs)
    letters: dict[OutboxKey, set[int]] = {}
    for site, node, epoch, seq in refused:
        letters.setdefault((site, node, epoch), set()).add(seq)
    for key, ranges in sorted(seqs.items()):
        for first, last in _between(ranges):
            told = sorted(seq for seq in letters.get(key, ()) if first <= seq <= last)
            found.explained += len(told)
            rest = SeqRanges()
            for a, b in _without(first, last, told):
                rest.add(a, b)
            for a, b in rest:
                if key in found.shedders:
                    found.maybe_shed += b - a + 1
                    continue
                found.missing_numbers += b - a + 1
                numbers = f"seq {a}" if a == b else f"seq {a} to {b} ({b - a + 1})"
                found.add("missing_numbers", "/".join(key[:2]), f"epoch {key[2]}: {numbers} never arrived")


def _between(ranges: SeqRanges) -> Iterator[tuple[int, int]]:
    last: int | None = None
    for first, end in ranges:
        if last is not None:
            yield last + 1, first - 1
        last = end


def _without(first: int, last: int, told: list[int]) -> Iterator[tuple[int, int]]:
    for seq in told:
        if first < seq:
            yield first, seq - 1
        first = seq + 1
    if first <= last:
        yield first, last


def _strays(lake: Lake, table: str, found: Audit, grace_s: float, now_s: float) -> None:
    """Files that no version names. A file of an old version is none: time travel needs it."""
    folder = lake.table_path(table)
    try:
        log = DeltaLog(folder)
        first = min((int(path.stem) for path in log.folder.glob("[0-9]*.json")), default=0)
        actions = log.actions(first, log.version())
        named = {folder / action["add"]["path"] for action in actions if "add" in action}
    except LakeError as e:
        found.add("unreadable_log", folder / "_delta_log", e.what)
        return
    named |= set(_live(lake, table, Audit()))  # of commits that a checkpoint has summed up
    for path in folder.rglob("*"):
        temporary = path.name.endswith(".tmp") or ".json#" in path.name
        if not temporary and (path.suffix != ".parquet" or path in named or path.parent.name == "_delta_log"):
            continue
        try:
            age_s = now_s - path.stat().st_mtime
        except FileNotFoundError:  # its writer has just put it in place, or removed it
            continue
        if age_s < grace_s:
            found.young += 1
        else:
            text = f"{_size(path)} bytes, {age_s / 3600:.0f} h old"
            found.add("temporary" if temporary else "orphan", path, text)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
