"""The audit: what the nodes say that they accepted, against what the lake holds. Reads no counter of the pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from storage.duck import open_tables
from storage.lake import Lake
from storage.query import logical_identities, read_gaps

KINDS: Final = {"chunks": "chunk", "gaps": "gap", "detections": "detection"}
_EXAMPLES: Final = 10
_TRUTH: Final = pa.schema(
    [
        *((name, pa.string()) for name in ("kind", "site", "node", "stream", "epoch")),
        *((name, pa.int64()) for name in ("seq", "start_ns", "crc32")),
    ]
)
_TEXTS: Final = [(name, pa.string()) for name in ("site", "node", "stream", "epoch")]
_TIMES: Final = [(name, pa.int64()) for name in ("start_ns", "end_ns")]
_SHED: Final = pa.schema([*_TEXTS, ("seq", pa.int64()), *_TIMES])
_GAPS: Final = pa.schema([*_TEXTS, *_TIMES])
_IDENTITY: Final = "kind, site, node, stream, epoch, seq"
# What must agree between truth and lake; the checksum is that of samples, so only chunks have one.
_COMPARED: Final = f"{_IDENTITY}, start_ns, if(kind = 'chunk', crc32, 0) AS crc32"


@dataclass(frozen=True, slots=True)
class Verification:
    """Counts of records (chunks, gaps, detections together).

    accepted: in the truth logs. in_lake: identities that readers see. lost: accepted, and not there as accepted.
    logical_duplicates: identities that readers see with two contents, and the same samples (stream, start, checksum)
    under a second identity. physical_duplicates: extra copies on disk, which readers leave out. unexpected: in the
    lake, and in no truth log. quarantined: accepted, and hidden because its identity came with two contents; not lost.
    shed: accepted, not in the lake, given up by the node as its truth log says, and inside a gap record of that stream
    in the lake; without the gap record it is lost. What was on its way when it was given up may be in the lake as well
    as inside a gap, and counts as in the lake.
    retired: accepted, and taken out by retention since; not lost. unreadable_lines: of the truth logs (a node killed in
    the middle of a line).
    """

    accepted: int
    in_lake: int
    lost: int
    logical_duplicates: int
    physical_duplicates: int
    unexpected: int
    quarantined: int
    unreadable_lines: int
    examples: tuple[str, ...]
    retired: int = 0
    shed: int = 0

    @property
    def passed(self) -> bool:
        return not (self.lost or self.logical_duplicates or self.unexpected)


def compare(truth_dir: Path, lake: Lake) -> Verification:
    """Compare every `<truth_dir>/<node>.jsonl` with the newest version of the lake. Raises LakeError or OSError.

    Run it when nothing is under way: what a node accepted a moment ago counts as lost until it has arrived.
    """
    truth, shed, unreadable = _read_truth(truth_dir)
    stored = pa.concat_tables([_identities(lake, table, kind) for table, kind in KINDS.items()])
    with open_tables(lake, {"retired": None, "quarantine": None}) as db:
        db.register("truth_lines", truth)
        db.register("stored", stored)
        db.register("shed_lines", shed)
        db.register("gap_rows", _gap_rows(lake))
        db.execute(
            "CREATE TABLE covered AS SELECT DISTINCT l.* FROM shed_lines l JOIN gap_rows g ON g.site = l.site"
            " AND g.node = l.node AND g.stream = l.stream AND g.epoch = l.epoch"
            " AND g.start_ns <= l.start_ns AND g.end_ns >= l.end_ns"
        )
        db.execute(f"CREATE VIEW truth AS SELECT DISTINCT {_COMPARED} FROM truth_lines")
        db.execute(f"CREATE VIEW held AS SELECT DISTINCT {_COMPARED} FROM stored WHERE NOT quarantined")
        db.execute(
            # Of two contents that came in one batch neither has a row; both are dead letters.
            "CREATE VIEW missing AS SELECT t.*, EXISTS (SELECT 1 FROM quarantine q WHERE q.site = t.site"
            " AND q.node = t.node AND q.epoch = t.epoch AND q.seq = t.seq) AS quarantined,"
            # A record that is there with other content is no retired one.
            " EXISTS (SELECT 1 FROM retired r WHERE r.site = t.site AND r.node = t.node AND r.epoch = t.epoch"
            " AND t.seq BETWEEN r.seq_first AND r.seq_last) AND NOT EXISTS (SELECT 1 FROM stored s WHERE"
            " s.site = t.site AND s.node = t.node AND s.epoch = t.epoch AND s.seq = t.seq) AS retired,"
            " EXISTS (SELECT 1 FROM covered c WHERE c.site = t.site AND c.node = t.node AND c.epoch = t.epoch"
            " AND c.seq = t.seq AND c.start_ns = t.start_ns) AND NOT EXISTS (SELECT 1 FROM stored s WHERE"
            " s.site = t.site AND s.node = t.node AND s.epoch = t.epoch AND s.seq = t.seq) AS shed"
            " FROM (SELECT * FROM truth EXCEPT SELECT * FROM held) t"
        )
        db.execute("CREATE VIEW surplus AS SELECT * FROM held EXCEPT SELECT * FROM truth")
        db.execute(
            f"CREATE VIEW twice AS SELECT {_IDENTITY}, count(*) - 1 AS extra FROM held GROUP BY ALL HAVING extra > 0"
        )
        db.execute(
            "CREATE VIEW same_samples AS SELECT site, node, stream, start_ns, crc32, count(DISTINCT (epoch, seq)) - 1"
            " AS extra FROM held WHERE kind = 'chunk' GROUP BY ALL HAVING extra > 0"
        )
        return Verification(
            accepted=_number(db, "SELECT count(*) FROM truth"),
            in_lake=_number(db, f"SELECT count(*) FROM (SELECT DISTINCT {_IDENTITY} FROM held)"),
            lost=_number(db, "SELECT count(*) FROM missing WHERE NOT (quarantined OR retired OR shed)"),
            logical_duplicates=_number(
                db,
                "SELECT (SELECT coalesce(sum(extra), 0) FROM twice)"
                " + (SELECT coalesce(sum(extra), 0) FROM same_samples)",
            ),
            physical_duplicates=_number(db, "SELECT coalesce(sum(copies - 1), 0) FROM stored"),
            unexpected=_number(db, "SELECT count(*) FROM surplus"),
            quarantined=_number(db, "SELECT count(*) FROM missing WHERE quarantined"),
            unreadable_lines=unreadable,
            examples=tuple(_examples(db)),
            retired=_number(db, "SELECT count(*) FROM missing WHERE retired AND NOT quarantined"),
            shed=_number(db, "SELECT count(*) FROM missing WHERE shed AND NOT (quarantined OR retired)"),
        )


def _identities(lake: Lake, table: str, kind: str) -> pa.Table:
    found = logical_identities(lake, table, quarantined=True)
    return found.append_column("kind", pa.array([kind] * found.num_rows, pa.string()))


def _gap_rows(lake: Lake) -> pa.Table:
    rows = [
        {
            "site": gap.stream.site,
            "node": gap.stream.node,
            "stream": gap.stream.stream,
            "epoch": gap.epoch,
            "start_ns": gap.start_ns,
            "end_ns": gap.end_ns,
        }
        for gap in read_gaps(lake)
    ]
    return pa.Table.from_pylist(rows, schema=_GAPS)


def _read_truth(truth_dir: Path) -> tuple[pa.Table, pa.Table, int]:
    """(accepted, shed, unreadable lines)."""
    accepted: list[dict[str, Any]] = []
    shed: list[dict[str, Any]] = []
    unreadable = 0
    for path in sorted(truth_dir.glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
                rows, schema = (shed, _SHED) if row["kind"] == "shed" else (accepted, _TRUTH)
                rows.append({name: row[name] for name in schema.names})
            except (ValueError, KeyError, TypeError):
                unreadable += 1
    return pa.Table.from_pylist(accepted, schema=_TRUTH), pa.Table.from_pylist(shed, schema=_SHED), unreadable


def _number(db: Any, sql: str) -> int:
    return int(db.execute(sql).fetchone()[0])


def _examples(db: Any) -> Iterator[str]:
    views = {
        "lost": "missing WHERE NOT (quarantined OR retired OR shed)",
        "duplicate": "twice",
        "samples twice": "same_samples",
        "unexpected": "surplus",
        "quarantined": "missing WHERE quarantined",
    }
    for what, view in views.items():
        for row in db.execute(f"SELECT * FROM {view} ORDER BY ALL LIMIT {_EXAMPLES}").fetchall():
            yield f"{what}: {' '.join(str(part) for part in row)}"
