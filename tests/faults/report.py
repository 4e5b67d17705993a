"""What a round came to: sums a row, and how they are shown."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tests.faults.trial import Row, TrialResult

FULL_ROUND: Final = 25  # trials of a row from which on every failpoint of it must have been hit
_PLAIN_S: Final = 15.0


@dataclass
class RowSum:
    """All trials of one row."""

    row: Row
    planned: int
    results: list[TrialResult] = field(default_factory=list)
    failed: int = 0

    def add(self, result: TrialResult) -> None:
        self.results.append(result)
        self.failed += not result.passed

    def total(self, name: str) -> int:
        return sum(getattr(result, name) for result in self.results)

    @property
    def hits(self) -> Counter[str]:
        counted = Counter(dict.fromkeys(self.row.failpoints, 0))
        counted.update(hit for result in self.results for hit in result.hits)
        return counted

    @property
    def never_hit(self) -> list[str]:
        """Failpoints that a full round should have hit, and did not; none for a smaller round."""
        return [name for name, n in self.hits.items() if not n] if len(self.results) >= FULL_ROUND else []

    @property
    def passed(self) -> bool:
        return not self.failed and not self.never_hit and len(self.results) == self.planned

    def as_dict(self) -> dict[str, Any]:
        recovery = [r.recovery_s for r in self.results] or [0.0]
        counts = {n: self.total(n) for n in ("accepted", "lost", "logical_duplicates", "physical_duplicates", "shed")}
        return {
            "row": self.row.number,
            "title": self.row.title,
            "trials": len(self.results),
            "failed": self.failed,
            **counts,
            "peak_memory_bytes": max((r.peak_memory_bytes for r in self.results), default=0),
            "peak_disk_bytes": max((r.peak_disk_bytes for r in self.results), default=0),
            "recovery_s_median": round(statistics.median(recovery), 3),
            "recovery_s_max": round(max(recovery), 3),
            "longest_trial_s": round(max((r.seconds for r in self.results), default=0.0), 1),
            **({"hits": dict(self.hits)} if self.hits else {}),
            **({"never_hit": self.never_hit} if self.never_hit else {}),
        }


class Progress:
    """On stderr: a line that renews itself on a terminal, now and then a plain one elsewhere."""

    def __init__(self, sums: dict[int, RowSum], jobs: int) -> None:
        self._sums, self._jobs = sums, jobs
        self._began = self._told = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def tell(self, number: int) -> None:
        now = time.monotonic()
        done = sum(len(s.results) for s in self._sums.values())
        planned = sum(s.planned for s in self._sums.values())
        if not self._terminal and now - self._told < _PLAIN_S and done < planned:
            return
        self._told = now
        failed = sum(s.failed for s in self._sums.values())
        text = f"{done}/{planned} trials, {failed} failed, row {number}, {_left(self._left_s(now))}"
        print(f"\r\x1b[K{text}" if self._terminal else text, end="" if self._terminal else "\n", file=sys.stderr)
        sys.stderr.flush()

    def end(self) -> None:
        if self._terminal:
            print(file=sys.stderr)

    def _left_s(self, now: float) -> float:
        """Told by what the rows were thought to take, and by how wrong that was so far."""
        done = sum(s.row.seconds * len(s.results) for s in self._sums.values())
        left = sum(s.row.seconds * (s.planned - len(s.results)) for s in self._sums.values())
        return left * (now - self._began) / done if done else left / self._jobs


def show(sums: dict[int, RowSum], *, as_json: bool) -> None:
    """One JSON line a row, or a table where a person watches, or plain lines."""
    rows = [s.as_dict() for _, s in sorted(sums.items())]
    if as_json:
        for row in rows:
            print(json.dumps(row))
    elif sys.stdout.isatty():
        _show_table(rows)
    else:
        for row in rows:
            print(" ".join(f"{key}={value}" for key, value in row.items()))


def _show_table(rows: list[dict[str, Any]]) -> None:
    table = Table()
    heads = "row,fault,trials,failed,accepted,lost,logical dup,physical dup,shed,memory MB,disk MB,recovery s (max)"
    for head in heads.split(","):
        table.add_column(head, justify="left" if head == "fault" else "right")
    for r in rows:
        sizes = (f"{r[name] / 1e6:.0f}" for name in ("peak_memory_bytes", "peak_disk_bytes"))
        counts = (str(r[k]) for k in ("accepted", "lost", "logical_duplicates", "physical_duplicates", "shed"))
        recovery = f"{r['recovery_s_median']:.1f} ({r['recovery_s_max']:.1f})"
        style = "red" if r["failed"] or r.get("never_hit") else None
        table.add_row(
            str(r["row"]), r["title"], str(r["trials"]), str(r["failed"]), *counts, *sizes, recovery, style=style
        )
    console = Console()
    console.print(table)
    for r in rows:
        if "hits" in r:
            hits = ", ".join(f"{name} {n}" for name, n in r["hits"].items())
            console.print(f"row {r['row']}, kills at failpoints: {hits}")


def _left(seconds: float) -> str:
    return f"{seconds / 60:.0f} min left" if seconds > 90 else f"{seconds:.0f} s left"
