"""Processes of the compaction row: one that writes, one that merges and vacuums, one that reads.

`python -m tests.faults.upkeep_programs ROLE LAKE ...`; each goes on from where a killed one stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from infomae_stream.errors import LakeError
from infomae_stream.types import Chunk
from infomae_stream.wire import chunk_crc32
from storage import query
from storage.compaction import compact
from storage.lake import Lake
from storage.vacuum import vacuum
from tests.hub_records import make_chunk

GRACE_S = 600.0
TARGET_BYTES = 60_000
ROWS = 3  # of one commit


def chunks_of(node: str, batch: int) -> list[Chunk]:
    return [make_chunk(ROWS * batch + i, site="s01", node=node, n=10) for i in range(ROWS)]


def write_truth(truth_dir: Path, node: str, chunks: list[Chunk]) -> None:
    truth_dir.mkdir(exist_ok=True)
    with (truth_dir / f"{node}.jsonl").open("a") as f:
        for chunk in chunks:
            line = {"kind": "chunk", "site": "s01", "node": node, "stream": "imu", "epoch": chunk.epoch}
            line |= {"seq": chunk.seq, "start_ns": chunk.start_ns, "crc32": chunk_crc32(chunk)}
            f.write(json.dumps(line) + "\n")


def writer(lake_path: Path, truth_dir: Path, node: str, first: int, batches: int) -> None:
    """Commit after commit; a restarted one sends everything again, as a node does that got no acknowledgement."""
    lake = Lake(lake_path)
    for batch in range(first, first + batches):
        chunks = chunks_of(node, batch)
        write_truth(truth_dir, node, chunks)
        lake.append_chunks(chunks, 7)


def upkeep(lake_path: Path, stop: Path) -> None:
    lake = Lake(lake_path)
    done = False
    while not done:
        done = stop.exists()  # one whole round after the last commit
        compact(lake, target_bytes=TARGET_BYTES, fan_in=3)
        vacuum(lake, grace_s=GRACE_S)


def reader(lake_path: Path, stop: Path) -> None:
    """Every read gives one version: the same twice, and never less than an older version held."""
    lake = Lake(lake_path)
    held: set[tuple[str, int]] = set()
    reads, failures = 0, []
    while not stop.exists() or not reads:
        version = lake.version("chunks")
        try:
            now, again = (_identities(lake, version) for _ in range(2))
        except LakeError as e:
            failures.append(f"version {version}: {e}")
            break
        if now != again:
            failures.append(f"version {version} changed: {len(now)} records, then {len(again)}")
        if held - now:
            failures.append(f"version {version} lacks {len(held - now)} records that an older one had")
        held = now
        reads += 1
    print(json.dumps({"reads": reads, "failures": failures[:5]}))


def _identities(lake: Lake, version: int) -> set[tuple[str, int]]:
    found = [(c.spec.id.node, c.seq) for c in query.read_chunks(lake, version=version)]
    if len(found) != len(set(found)):
        raise LakeError("a record came twice")
    return set(found)


if __name__ == "__main__":
    roles: dict[str, Callable[..., None]] = {"writer": writer, "upkeep": upkeep, "reader": reader}
    role, *rest = sys.argv[1:]
    roles[role](*[int(a) if a.isdecimal() else (a if a.startswith("s01") else Path(a)) for a in rest])
