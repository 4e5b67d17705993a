"""What a lake of 1, 10 and 100 hours of one node costs: append, range reads, opening, `lake status`, before and after
compaction, ingest's start, `lake verify`.

The node is of the paper's size: 8 kHz int16, 100 Hz int32 and six axes of 100 Hz int16, one chunk a second each,
17.6 kB/s of synthetic samples. Peers in the same run: a plain pyarrow.dataset scan over the same files, and deltalake's
own `optimize.compact` on a copy of the same table, read by the same reader. `--thin N` divides the samples of each
chunk by N (rows, files and commits stay as many), where time or disk are short; the result says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from infomae_stream.clock import NS_PER_S
from infomae_stream.types import Chunk, ClockQuality, StreamId, StreamSpec
from storage import query
from storage.audit import audit
from storage.compaction import DEFAULT_TARGET_BYTES, compact
from storage.lake import Lake
from storage.lake_status import lake_figures
from storage.segments import live_files

START_NS = 1_600_041_600 * NS_PER_S  # midnight
CLOCK = ClockQuality("chrony", 1_000, 2_000_000, True, "boot", 5)
REPEATS = 7


def specs() -> list[tuple[StreamSpec, np.dtype[Any], int]]:
    """The three streams with the type and count of samples a second and channel."""

    def spec(name: str, kind: str, rate_hz: float, channels: int) -> StreamSpec:
        names = tuple(f"c{i}" for i in range(channels))
        stream = StreamId("orchard", "orchard-1", name)
        return StreamSpec(stream, kind, rate_hz, names, ("{count}",) * channels, (1.0,) * channels)

    return [
        (spec("mic", "acoustic", 8000.0, 1), np.dtype(np.int16), 8000),
        (spec("geo", "seismic", 100.0, 1), np.dtype(np.int32), 100),
        (spec("imu", "imu", 100.0, 6), np.dtype(np.int16), 100),
    ]


def second_of(number: int, thin: int, rng: np.random.Generator) -> list[Chunk]:
    """Fresh noise every second: what repeats would compress away once it lies in one file."""
    chunks = []
    for i, (spec, dtype, n) in enumerate(specs()):
        samples = rng.normal(0, 300, (len(spec.channels), max(1, n // thin))).astype(dtype)
        start_ns = START_NS + number * NS_PER_S
        chunks.append(Chunk(spec, "e1", 3 * number + i, start_ns, samples, CLOCK, accepted_ns=start_ns + NS_PER_S))
    return chunks


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def cost(name: str, work: Callable[[], int], expected: int) -> dict[str, float]:
    """Medians of wall and of processor time (all threads), which says more on a machine that others use too."""
    wall, cpu = [], []
    for _ in range(REPEATS):
        began = time.process_time()
        seconds, rows = timed(work)
        assert rows == expected, (rows, expected)
        wall.append(seconds)
        cpu.append(time.process_time() - began)
    return {
        f"{name}_ms": round(1000 * statistics.median(wall), 1),
        f"{name}_cpu_ms": round(1000 * statistics.median(cpu), 1),
    }


def scan(lake: Lake, stream: StreamId, from_ns: int, to_ns: int) -> int:
    """The peer: the same rows with their samples, by pyarrow alone, over the same files."""
    files = [str(file) for file in live_files(lake.table_path("chunks"), lake.version("chunks"))]
    dataset = ds.dataset(files, format="parquet")
    wanted = (
        (pc.field("site") == stream.site)
        & (pc.field("node") == stream.node)
        & (pc.field("stream") == stream.stream)
        & (pc.field("end_ns") > from_ns)
        & (pc.field("start_ns") < to_ns)
    )
    return int(dataset.to_table(filter=wanted).num_rows)


def reads(lake: Lake, hours: float) -> dict[str, float]:
    """Medians in milliseconds, in the middle of what is stored."""
    stream = specs()[0][0].id
    middle_ns = START_NS + round(hours * 1800) * NS_PER_S
    told: dict[str, float] = {}
    for seconds in (60, 600):
        until_ns = middle_ns + seconds * NS_PER_S

        def ours(until_ns: int = until_ns) -> int:
            return len(query.read_chunks(lake, streams=[stream], from_ns=middle_ns, to_ns=until_ns))

        def peer(until_ns: int = until_ns) -> int:
            return scan(lake, stream, middle_ns, until_ns)

        told |= cost(f"read_{seconds}s", ours, seconds) | cost(f"pyarrow_{seconds}s", peer, seconds)
    told |= cost("open", lambda: Lake(lake.path).version("chunks"), lake.version("chunks"))
    told |= cost("ingest_start", lambda: len(Lake(lake.path).known_identities().outboxes()), 1)
    told["status_s"] = round(timed(lambda: lake_figures(lake, START_NS))[0], 2)
    told["files"] = len(live_files(lake.table_path("chunks"), lake.version("chunks")))
    return told


def fill(lake: Lake, hours: float, commit_s: int, thin: int) -> dict[str, float]:
    rng, seconds, spent = np.random.default_rng(1), round(hours * 3600), []
    for start in range(0, seconds, commit_s):
        batch = [c for n in range(start, min(start + commit_s, seconds)) for c in second_of(n, thin, rng)]
        spent.append(timed(lambda batch=batch: lake.append_chunks(batch, START_NS))[0])
        if start % (600 * commit_s) == 0:
            print(f"  {hours:g} h: {start / 3600:.1f} h appended", file=sys.stderr, flush=True)
    tenth = max(1, len(spent) // 10)
    return {
        "append_ms_a_commit": round(1000 * statistics.median(spent), 1),
        "append_ms_first_tenth": round(1000 * statistics.median(spent[:tenth]), 1),
        "append_ms_last_tenth": round(1000 * statistics.median(spent[-tenth:]), 1),
        "append_s": round(sum(spent), 1),
        "commits": len(spent),
    }


def measure(hours: float, commit_s: int, thin: int, folder: Path) -> dict[str, Any]:
    lake = Lake(folder / "lake")
    told: dict[str, Any] = {"hours": hours, **fill(lake, hours, commit_s, thin)}
    told["mb"] = round(sum(f.stat().st_size for f in live_files(lake.table_path("chunks"), told["commits"])) / 1e6, 1)
    print(f"  {hours:g} h: {told['mb']} MB in the lake; reading", file=sys.stderr, flush=True)
    told["before"] = reads(lake, hours)
    verify_s, found = timed(lambda: audit(lake))
    assert not found.findings, found.findings[:3]
    told["verify_s"], told["verify_mb_per_s"] = round(verify_s, 1), round(told["mb"] / verify_s, 1)
    # Parquet files are never changed, so links will do.
    shutil.copytree(folder / "lake", folder / "peer", copy_function=lambda a, b: os.link(a, b))
    report_s, report = timed(lambda: compact(lake, tables=["chunks"]))
    told["compaction"] = {
        "s": round(report_s, 2),
        "mb_written": round(report.bytes_written / 1e6, 1),
        "written_per_byte": round(report.bytes_written / 1e6 / told["mb"], 2),
        "merges": report.merges,
    }
    told["after"] = reads(lake, hours)
    print(f"  {hours:g} h: compacted in {report_s:.1f} s; now the peer", file=sys.stderr, flush=True)
    peer_s, _ = timed(lambda: DeltaTable(folder / "peer" / "chunks").optimize.compact(target_size=DEFAULT_TARGET_BYTES))
    told["deltalake_optimize"] = {"s": round(peer_s, 2), **reads(Lake(folder / "peer"), hours)}
    return told


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratios of processor time, the last size over the first, and ours over its peers at each size."""
    first, last = results[0], results[-1]

    def over(a: str, b: str, name: str) -> list[float]:
        return [round(r[a][f"{name}_cpu_ms"] / r[b][f"{name}_cpu_ms"], 2) for r in results]

    return {
        "stored_ratio": round(last["mb"] / first["mb"], 1),
        "read_60s_grew": round(last["after"]["read_60s_cpu_ms"] / first["after"]["read_60s_cpu_ms"], 2),
        "read_600s_grew": round(last["after"]["read_600s_cpu_ms"] / first["after"]["read_600s_cpu_ms"], 2),
        "append_grew": round(last["append_ms_a_commit"] / first["append_ms_a_commit"], 2),
        "after_over_before": {
            name: over("after", "before", name) for name in ("read_60s", "read_600s", "ingest_start")
        },
        "after_over_deltalake": {name: over("after", "deltalake_optimize", name) for name in ("read_60s", "read_600s")},
        "compaction_s_over_deltalake": [round(r["compaction"]["s"] / r["deltalake_optimize"]["s"], 2) for r in results],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", default="1,10,100", help="comma-separated")
    parser.add_argument("--commit-s", type=int, default=60, help="seconds of data in a commit")
    parser.add_argument("--thin", type=int, default=1, help="divide the samples of each chunk")
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: the temporary folder)")
    options = parser.parse_args()
    results = []
    for hours in [float(h) for h in options.hours.split(",")]:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            results.append(measure(hours, options.commit_s, options.thin, Path(folder)))
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    machine = (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    told = {"machine": machine, "synthetic": True, "commit_s": options.commit_s, "thin": options.thin}
    print(json.dumps({**told, **summary(results), "results": results}))


if __name__ == "__main__":
    main()
