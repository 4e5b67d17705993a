"""`scripts/faults`: trials of the fault matrix. Exit 0 all passed, 1 a trial failed or a row is missing, 2 usage."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.faults import runner
from tests.faults.report import Progress, RowSum, show
from tests.faults.rows import ROWS
from tests.faults.trial import TrialResult


def main(arguments: Sequence[str] | None = None, table: Mapping[int, str] = ROWS) -> int:
    """Run a round; the last line of stdout is its totals as JSON."""
    options = _parse(arguments, table)
    numbers = options.rows or list(table)
    rows, missing = runner.available(numbers, table)
    for number, why in missing.items():
        print(f"row {number} is not available: {why}", file=sys.stderr)
    share = {options.rows[0]: 1} if options.only is not None else runner.shares(options.trials, rows)
    sums = {number: RowSum(row, share[number]) for number, row in rows.items()}
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=options.folder))
    progress = Progress(sums, options.jobs)

    def done(task: runner.Task, result: TrialResult) -> None:
        sums[task.number].add(result)
        if not result.passed:
            _tell_failure(task, result)
        progress.tell(task.number)

    tasks = [
        runner.Task(number, table[number], options.seed, index, folder / f"{number}-{index}")
        for number, count in share.items()
        if number in rows
        for index in (range(count) if options.only is None else [options.only])
    ]
    # Mixed, so that the estimate of the time left soon knows every row.
    random.Random(options.seed).shuffle(tasks)
    try:
        runner.run_round(tasks, options.jobs, done)
    finally:
        progress.end()
        if not any(folder.iterdir()):
            folder.rmdir()
    show(sums, as_json=options.json)
    mutants, found = (0, 0) if options.rows else _mutants()
    names = ("accepted", "lost", "logical_duplicates", "physical_duplicates", "shed")
    totals = {"trials": sum(len(s.results) for s in sums.values())}
    totals |= {name: sum(s.total(name) for s in sums.values()) for name in names}
    for s in sums.values():
        for name in s.never_hit:
            print(f"row {s.row.number}: no process was ever killed at failpoint {name}", file=sys.stderr)
    print(json.dumps(totals | {"mutants": mutants, "mutants_found": found}))
    passed = all(s.passed for s in sums.values()) and not missing and found == mutants
    return 0 if passed and (options.rows or mutants) else 1


def _parse(arguments: Sequence[str] | None, table: Mapping[int, str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/faults", description=__doc__)
    parser.add_argument("--trials", type=_positive, default=100, help="in total, shared out among the rows")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", type=_numbers, default=[], help=f"of {','.join(map(str, table))}; all when left out")
    parser.add_argument("--only", type=int, help="repeat this one trial of the one row")
    parser.add_argument("--jobs", type=_positive, default=2, help="trials at once")
    parser.add_argument("--json", action="store_true", help="one JSON line a row")
    parser.add_argument("--folder", help="where the trials' folders are made; those of failed trials stay")
    options = parser.parse_args(arguments)
    if options.only is not None and len(options.rows) != 1:
        parser.error("--only repeats a trial of one row: name it with --rows")
    if unknown := [n for n in options.rows if n not in table]:
        parser.error(f"--rows: the matrix has no row {unknown[0]}; it has {','.join(map(str, table))}")
    return options


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _tell_failure(task: runner.Task, result: TrialResult) -> None:
    print(f"\nrow {task.number}, trial {task.index} failed: lost {result.lost},", end=" ", file=sys.stderr)
    print(f"logical duplicates {result.logical_duplicates}; its folder: {task.folder}", file=sys.stderr)
    for text in result.failures:
        print(f"    {text[:500]}", file=sys.stderr)
    print(f"    again: scripts/faults --rows {task.number} --seed {task.seed} --only {task.index}", file=sys.stderr)


def _mutants() -> tuple[int, int]:
    """How many deliberately broken builds there are, and how many of them the suite finds."""
    try:
        from tests.faults.mutants import run_mutants
    except ImportError as e:
        print(f"the mutants are not available: {e}", file=sys.stderr)
        return 0, 0
    results = run_mutants()
    for name, found in results:
        if not found:
            print(f"mutant {name!r} was NOT found by the suite", file=sys.stderr)
    return len(results), sum(found for _, found in results)


if __name__ == "__main__":
    sys.exit(main())
