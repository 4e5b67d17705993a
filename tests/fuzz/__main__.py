"""`python -m tests.fuzz --runs 10000 [--seed S] [--target NAME] [--atheris]`: a table, and JSON as the last line."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from tests.fuzz.campaign import Tally, run
from tests.fuzz.coverage_guided import missing, run_guided
from tests.fuzz.targets import TARGETS

HEAD: Final = ("bad", "accepted", "crashed", "misread", "over_memory", "over_strict", "harmless", "peak_bytes")


def main() -> int:
    names = [target.name for target in TARGETS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000, help="bad inputs, shared by the targets")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", choices=names, action="append")
    parser.add_argument("--atheris", action="store_true", help="then as many again, led by coverage")
    options = parser.parse_args()
    targets = [target for target in TARGETS if target.name in (options.target or names)]
    each = -(-options.runs // len(targets))
    print(f"{'target':<14}" + "".join(f"{name:>13}" for name in HEAD) + f"{'seconds':>9}")
    blind = [shown(t.name, lambda t=t: run(t, random.Random(f"{options.seed} {t.name}"), each)) for t in targets]
    totals = added(blind)
    if options.atheris and (reason := missing()):
        print(f"atheris: {reason}")
        totals["clean"] = False
    elif options.atheris:
        led = [shown(f"{t.name} +", lambda t=t: run_guided(t, each, options.seed)) for t in targets]
        totals = {**added(blind + led), "by_coverage": added(led)}
    print(json.dumps(totals))
    return 0 if totals["clean"] else 1


def shown(name: str, campaign: Callable[[], Tally]) -> Tally:
    """The result of `campaign`, a line of the table printed; what was found goes to stderr."""
    started = time.monotonic()
    tally = campaign()
    cells = "".join(f"{getattr(tally, column):>13}" for column in HEAD)
    print(f"{name:<14}{cells}{time.monotonic() - started:>9.1f}", flush=True)
    for example in tally.examples:
        print(f"  {example}", file=sys.stderr)
    return tally


def added(tallies: Sequence[Tally]) -> dict[str, Any]:
    """Sums, the highest of the peaks, and whether all are clean."""
    sums = {name: sum(getattr(t, name) for t in tallies) for name in HEAD}
    peak = max(t.peak_bytes for t in tallies)
    return {**sums, "peak_bytes": peak, "clean": all(t.clean for t in tallies)}


if __name__ == "__main__":
    sys.exit(main())
