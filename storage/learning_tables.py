"""The tables that the aligner writes: pairs, labels, runs. Each write looks first: repeating it changes nothing.

Apart from `lake.py`, because looking needs DuckDB, and ingest shall not carry its memory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from infomae_stream.types import Pair
from storage.lake import Lake
from storage.query import read_judgements, read_labels, read_runs
from storage.rows import LabelInterval, label_rows, pair_rows
from storage.schemas import TABLES


def upsert_pairs(lake: Lake, pairs: Sequence[Pair]) -> int:
    """Write pairs that are new or judged differently than before; return how many. Key: site, start_ns, streams.

    Readers see the newest judgement of a key, and not a narrower key (a lone window's "no_partner") once a wider
    one of the same site and start holds all its streams. Raises LakeError.
    """

    def build(version: int) -> pa.Table:
        given = {(p.site, p.start_ns, p.streams): p for p in pairs}
        known = read_judgements(lake, sorted({(p.site, p.start_ns) for p in given.values()}), version=version)
        return pair_rows([p for key, p in given.items() if known.get(key) != p], version + 1)

    return lake.append("pairs", build) if pairs else 0


def append_labels(lake: Lake, labels: Sequence[LabelInterval]) -> int:
    """Write labels that are not there yet, letter by letter; return how many. Raises LakeError."""

    def build(version: int) -> pa.Table:
        known = set(read_labels(lake, version=version))
        return label_rows([label for label in dict.fromkeys(labels) if label not in known])

    return lake.append("labels", build) if labels else 0


def append_run(lake: Lake, run: dict[str, Any]) -> int:
    """Write a training run: `run_id`, `ended_ns`, `outcome` and anything that JSON takes; the same id once only."""

    def build(version: int) -> pa.Table:
        new = run["run_id"] not in {r["run_id"] for r in read_runs(lake, version=version)}
        row = {**{n: run[n] for n in ("run_id", "ended_ns", "outcome")}, "body": json.dumps(run, default=str)}
        return pa.Table.from_pylist([row] if new else [], schema=TABLES["runs"].schema)

    return lake.append("runs", build)
