"""The audit: what the nodes say that they accepted, against what the lake holds. Reads no counter of the pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from storage.duck import connect
from storage.lake import Lake
from storage.query import logical_identities

KINDS: Final = {"chunks": "chunk", "gaps": "gap", "detections": "detection"}
_EXAMPLES: Final = 10
_TRUTH: Final = pa.schema(
    [
        *((name, pa.string()) for name in ("kind", "site", "node", "stream", "epoch")),
        *((name, pa.int64()) for name in ("seq", "start_ns", "crc32")),
    ]
)
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
    unreadable_lines: of the truth logs (a node killed in the middle of a line).
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

    @property
    def passed(self) -> bool:
        return not (self.lost or self.logical_duplicates or self.unexpected)


def compare(truth_dir: Path, lake: Lake) -> Verification:
    """Compare every `<truth_dir>/<node>.jsonl` with the newest version of the lake. Raises LakeError or OSError.

    Run it when nothing is under way: what a node accepted a moment ago counts as lost until it has arrived.
    """
    truth, unreadable = _read_truth(truth_dir)
    stored = pa.concat_tables([_identities(lake, table, kind) for table, kind in KINDS.items()])
    with connect() as db:
        db.register("truth_lines", truth)
        db.register("stored", stored)
        db.execute(f"CREATE VIEW truth AS SELECT DISTINCT {_COMPARED} FROM truth_lines")
        db.execute(f"CREATE VIEW held AS SELECT DISTINCT {_COMPARED} FROM stored WHERE NOT quarantined")
        db.execute(
            "CREATE VIEW missing AS SELECT t.*, EXISTS (SELECT 1 FROM stored s WHERE s.quarantined AND s.kind = t.kind"
            " AND s.site = t.site AND s.node = t.node AND s.epoch = t.epoch AND s.seq = t.seq) AS quarantined"
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
            lost=_number(db, "SELECT count(*) FROM missing WHERE NOT quarantined"),
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
        )


def _identities(lake: Lake, table: str, kind: str) -> pa.Table:
    found = logical_identities(lake, table, quarantined=True)
    return found.append_column("kind", pa.array([kind] * found.num_rows, pa.string()))


def _read_truth(truth_dir: Path) -> tuple[pa.Table, int]:
    rows: list[dict[str, Any]] = []
    unreadable = 0
    for path in sorted(truth_dir.glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
                rows.append({name: row[name] for name in _TRUTH.names})
            except (ValueError, KeyError, TypeError):
                unreadable += 1
    return pa.Table.from_pylist(rows, schema=_TRUTH), unreadable


def _number(db: Any, sql: str) -> int:
    return int(db.execute(sql).fetchone()[0])


def _examples(db: Any) -> Iterator[str]:
    views = {
        "lost": "missing WHERE NOT quarantined",
        "duplicate": "twice",
        "samples twice": "same_samples",
        "unexpected": "surplus",
        "quarantined": "missing WHERE quarantined",
    }
    for what, view in views.items():
        for row in db.execute(f"SELECT * FROM {view} ORDER BY ALL LIMIT {_EXAMPLES}").fetchall():
            yield f"{what}: {' '.join(str(part) for part in row)}"
