"""A thousand nodes of the paper's size on one hub core, then a broker outage and its catch-up.

Hub on one core; broker and simulated nodes (`fleet_nodes.py`, a connection a node) on the other. Chunks: microphone
1 s, IMU 4 s, seismometer 8 s, so 1,375 chunks and 17.6 MB a second for 1,000 nodes. Lag is from a node's acceptance
to its receipt of the hub's acknowledgement, so to durability and back. Needs mosquitto. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow.parquet as pq
from deltalake import DeltaTable

from benchmarks import rig
from benchmarks.rig import FIRST_SEQ, PinnedMosquitto, cpu_seconds, memory_mb, pinned, say

HERE = Path(__file__).resolve().parent
STEADY_FROM_S = 20.0  # connecting and the hub's first files are over


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--outage-s", type=float, default=60.0, help="0: none")
    parser.add_argument("--catch-up-s", type=float, default=90.0, help="how long to look on after it")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--hub-core", type=int, default=1)
    parser.add_argument("--other-core", type=int, default=0)
    return parser.parse_args()


class Nodes:
    """The process of simulated nodes, and what it reports."""

    def __init__(self, port: int, count: int, seconds: float, core: int) -> None:
        command = [sys.executable, str(HERE / "fleet_nodes.py"), str(port), str(count), "0", str(seconds)]
        self.process = subprocess.Popen(
            pinned(core, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE.parent
        )
        self.reports: list[dict[str, Any]] = []
        self.done: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            report = json.loads(line)
            if "done" in report:
                self.done = report
            else:
                say(line.strip())
                self.reports.append(report)

    def join(self) -> None:
        self.process.wait()
        self._thread.join()


def start_hub(folder: Path, port: int, core: int) -> subprocess.Popen[bytes]:
    config = folder / "hub.toml"
    config.write_text(
        f"[mqtt]\nport = {port}\n[lake]\npath = '{folder / 'lake'}'\n[metrics]\ningest_port = 0\n"
        "[matcher]\nmodalities = ['acoustic', 'imu']\n[align]\nclasses = ['a', 'b']\n"
    )
    command = [sys.executable, "-m", "infomae_stream.cli", "hub", "ingest", "--config", str(config)]
    with (folder / "hub.log").open("wb") as log:
        return subprocess.Popen(pinned(core, command), stderr=log, cwd=HERE.parent)


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    broker = PinnedMosquitto(folder, args.other_core)
    hub = start_hub(folder, broker.port, args.hub_core)
    time.sleep(3.0)
    steady_s = args.minutes * 60
    total_s = steady_s + (args.outage_s + args.catch_up_s if args.outage_s else 0)
    nodes = Nodes(broker.port, args.nodes, total_s, args.other_core)
    try:
        time.sleep(STEADY_FROM_S)
        first_s, cpu = time.time(), cpu_seconds(hub.pid)
        time.sleep(max(10.0, steady_s - STEADY_FROM_S + 5))
        last_s, cpu = time.time(), cpu_seconds(hub.pid) - cpu
        steady = [r for r in nodes.reports if first_s < r["at"] <= last_s]
        result = {
            "machine": rig.machine(),
            "nodes": args.nodes,
            "lag_p50_s": max(r["lag_p50_s"] for r in steady),
            "lag_p99_s": max(r["lag_p99_s"] for r in steady),
            "lag_max_s": max(r["lag_max_s"] for r in steady),
            "cpu_share": round(cpu / (last_s - first_s), 3),
            "chunks_per_s": round(sum(r["acknowledged"] for r in steady) / (last_s - first_s), 1),
            "rss_steady_mb": round(memory_mb(hub.pid), 1),
        }
        if args.outage_s:
            result |= outage(args, broker, hub, nodes)
        nodes.join()
        result["rss_mb"] = round(memory_mb(hub.pid), 1)
        hub.send_signal(signal.SIGTERM)
        hub.wait(60)
    finally:
        nodes.process.kill()
        hub.kill()
        hub.wait()
        broker.stop()
    return result | verify(folder / "lake", nodes.done["accepted"]) | {"resent": nodes.reports[-1]["resent"]}


def outage(
    args: argparse.Namespace, broker: PinnedMosquitto, hub: subprocess.Popen[bytes], nodes: Nodes
) -> dict[str, Any]:
    """Kill the broker, start it again, and look until no node has an old record left."""
    say("the broker is gone")
    broker.stop()
    time.sleep(args.outage_s)
    waiting = nodes.reports[-1]["waiting"]
    broker.restart()
    back_s, cpu = time.time(), cpu_seconds(hub.pid)
    say("the broker is back")
    caught_up_s = None
    while caught_up_s is None and time.time() - back_s < args.catch_up_s + 100 and nodes.process.poll() is None:
        time.sleep(1.0)
        since = [r for r in nodes.reports if r["at"] > back_s + 5]
        caught_up_s = next((r["at"] - back_s for r in since if r["oldest_s"] < 10), None)
    seconds = time.time() - back_s
    return {
        "outage_s": args.outage_s,
        "backlog_records": waiting,
        "catch_up_s": None if caught_up_s is None else round(caught_up_s, 1),
        "catch_up_cpu_share": round((cpu_seconds(hub.pid) - cpu) / seconds, 3),
    }


def verify(lake: Path, accepted: dict[str, int]) -> dict[str, int]:
    """What nodes accepted against what the table's live files hold."""
    seen: Counter[tuple[str, int]] = Counter()
    for uri in DeltaTable(lake / "chunks").file_uris():
        table = pq.ParquetFile(uri.removeprefix("file://")).read(["node", "seq"])
        seen.update(zip(table["node"].to_pylist(), table["seq"].to_pylist(), strict=True))
    expected = {(node, FIRST_SEQ + k) for node, count in accepted.items() for k in range(count)}
    return {
        "accepted": len(expected),
        "lost": len(expected - seen.keys()),
        "logical_duplicates": sum(n - 1 for n in seen.values()),
    }


def main() -> None:
    args = arguments()
    say(rig.machine())
    folder = Path(tempfile.mkdtemp(prefix="fleet-bench-", dir=args.folder))
    try:
        result = run(args, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
