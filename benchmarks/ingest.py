"""`hub ingest` against Pathway and a plain paho + pyarrow loop: samples a second that are stored, on one core.

Each system runs alone: consumer on its own core, broker and publisher on the other; 16 KB chunks (8,000 int16 samples)
of eight nodes, QoS 1. Ours acknowledges after fsync and commit, and only those chunks count; the peers store payloads
as they come and count as soon as their file is there. Several repetitions, medians. Needs mosquitto and iproute2's ss;
Pathway from the extra `bench`, or in an environment of its own (--pathway-python).

Rates are of the window after --warmup seconds. "*_per_core_s" divide by the consumer's CPU time instead of by the
clock: what a core would do if broker and publisher had as many as they want. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow.parquet as pq

from benchmarks import rig
from benchmarks.rig import N_SAMPLES, PinnedMosquitto, cpu_seconds, memory_mb, pinned, say

HERE = Path(__file__).resolve().parent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--warmup", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--window-mb", type=float, default=64.0, help="at most this much is on the way")
    parser.add_argument("--skip-pathway", action="store_true")
    parser.add_argument("--peers-keep-cached", action="store_true", help="peers neither sync nor drop what they wrote")
    parser.add_argument("--only", default="", help="ours, paho or pathway")
    parser.add_argument("--pathway-python", default=sys.executable)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to be measured; default: TMPDIR")
    parser.add_argument("--consumer-core", type=int, default=1)
    parser.add_argument("--broker-core", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="leave the lakes")
    parser.add_argument("--profile", default="", help="py-spy's output for ours (a file)")
    return parser.parse_args()


def consumer_command(system: str, port: int, folder: Path, args: argparse.Namespace) -> list[str]:
    if system == "ours":
        config = folder / "hub.toml"
        config.write_text(
            f"[mqtt]\nport = {port}\n[lake]\npath = '{folder / 'lake'}'\n[metrics]\ningest_port = 0\n"
            "[matcher]\nmodalities = ['acoustic', 'imu']\n[align]\nclasses = ['a', 'b']\n"
        )
        command = [sys.executable, "-m", "infomae_stream.cli", "hub", "ingest", "--config", str(config)]
    else:
        python = args.pathway_python if system == "pathway" else sys.executable
        command = [python, str(HERE / "ingest_peers.py"), system, str(port), str(folder)]
    return pinned(args.consumer_core, command)


def stored_rows(folder: Path, first_s: float, last_s: float) -> int:
    """Rows in files that were finished in [first_s, last_s]."""
    files = [path for changed, path in rig.segments_since(folder, first_s) if changed <= last_s]
    return sum(pq.read_metadata(path).num_rows for path in files)


def one_run(system: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    broker = PinnedMosquitto(folder, args.broker_core)
    with (folder / "consumer.log").open("wb") as log:
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "PATHWAY_THREADS": "1"}
        if args.peers_keep_cached:
            environment["PEERS_KEEP_CACHED"] = "1"
        consumer = subprocess.Popen(
            consumer_command(system, broker.port, folder, args),
            stdout=log,
            stderr=log,
            env=environment,
            cwd=HERE.parent,
        )
    try:
        wait_for_subscription(broker.port, consumer)
        pace = "acks" if system == "ours" else "tcp"
        command = [sys.executable, str(HERE / "ingest_publisher.py"), str(broker.port)]
        command += [str(args.warmup + args.seconds), str(args.window_mb), pace]
        publisher = subprocess.Popen(pinned(args.broker_core, command), stdout=subprocess.PIPE)
        time.sleep(args.warmup)
        if args.profile and system == "ours":
            subprocess.Popen(["py-spy", "record", "-d", str(int(args.seconds)), "-f", "raw", "-o", args.profile,
                              "--threads", "--gil", "-p", str(consumer.pid)])  # fmt: skip
        first_s, cpu, kernel = time.time(), cpu_seconds(consumer.pid), cpu_seconds(consumer.pid, kernel_only=True)
        broker_cpu, publisher_cpu = cpu_seconds(broker.process.pid), cpu_seconds(publisher.pid)
        time.sleep(args.seconds)
        last_s, cpu = time.time(), cpu_seconds(consumer.pid) - cpu
        kernel = cpu_seconds(consumer.pid, kernel_only=True) - kernel
        broker_cpu = cpu_seconds(broker.process.pid) - broker_cpu
        publisher_cpu = cpu_seconds(publisher.pid) - publisher_cpu
        output, _ = publisher.communicate(timeout=120)
        sent = json.loads(output.splitlines()[-1])
        rss_mb = memory_mb(consumer.pid)
        if system == "ours":
            consumer.send_signal(signal.SIGTERM)
            consumer.wait(30)
    finally:
        consumer.kill()
        consumer.wait()
        broker.stop()
    rows = stored_rows(folder, first_s, last_s)
    result = {
        "msamples_per_s": rows * N_SAMPLES / (last_s - first_s) / 1e6,
        "msamples_per_core_s": rows * N_SAMPLES / cpu / 1e6 if rows else 0.0,
        "cpu_us_per_chunk": cpu / rows * 1e6 if rows else float("nan"),
        "kernel_us_per_chunk": kernel / rows * 1e6 if rows else 0.0,
        "consumer_core": cpu / (last_s - first_s),
        "broker_core": broker_cpu / (last_s - first_s),
        "publisher_core": publisher_cpu / (last_s - first_s),
        "rss_mb": rss_mb,
        "sent": sent["sent"],
    }
    if system == "ours":
        result |= verify(folder / "lake", sent)
    say(system, {k: round(v, 2) for k, v in result.items()})
    return result


def wait_for_subscription(port: int, consumer: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if consumer.poll() is not None:
            raise RuntimeError("the consumer has ended; see its log")
        if rig.received_bytes(port, 0) > 0:  # the broker has answered its CONNECT
            time.sleep(1.0)
            return
        time.sleep(0.1)
    raise RuntimeError("the consumer does not connect")


def verify(lake: Path, sent: dict[str, Any]) -> dict[str, Any]:
    """Without the lake's own code: every acknowledged identity is in the live files, once, its samples whole."""
    import zlib

    from deltalake import DeltaTable

    seen: Counter[tuple[str, int]] = Counter()
    wrong = 0
    for i, uri in enumerate(DeltaTable(lake / "chunks").file_uris()):
        columns = ["node", "seq", "crc32", "samples"] if i % 20 == 0 else ["node", "seq"]
        table = pq.ParquetFile(uri.removeprefix("file://")).read(columns)
        seen.update(zip(table["node"].to_pylist(), table["seq"].to_pylist(), strict=True))
        if "samples" in columns:
            pairs = zip(table["samples"], table["crc32"].to_pylist(), strict=True)
            wrong += sum(zlib.crc32(samples.as_buffer()) != crc for samples, crc in pairs)
    expected = {(f"node-{i % sent['nodes']}", sent["first_seq"] + i // sent["nodes"]) for i in range(sent["sent"])}
    return {
        "acked": sent["acked"],
        "lost": len(expected - seen.keys()),
        "logical_duplicates": sum(n - 1 for n in seen.values()),
        "foreign": len(seen.keys() - expected),
        "wrong_samples": wrong,
    }


def main() -> None:
    args = arguments()
    systems = [s for s in ("ours", "paho", "pathway") if not (s == "pathway" and args.skip_pathway)]
    systems = [args.only] if args.only else systems
    say(rig.machine())
    top = Path(tempfile.mkdtemp(prefix="ingest-bench-", dir=args.folder))
    runs: dict[str, list[dict[str, Any]]] = {system: [] for system in systems}
    try:
        for repeat in range(args.repeats):
            for system in systems:
                folder = top / f"{system}-{repeat}"
                runs[system].append(one_run(system, args, folder))
                if not args.keep:
                    shutil.rmtree(folder)
    finally:
        if not args.keep:
            shutil.rmtree(top, ignore_errors=True)
    print(json.dumps(summary(runs)))


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    def median(system: str, name: str) -> float | None:
        return statistics.median(run[name] for run in runs[system]) if runs.get(system) else None

    def ratio(a: float | None, b: float | None) -> float | None:
        return None if not a or not b else round(a / b, 3)

    result: dict[str, Any] = {"machine": rig.machine(), "repeats": max(len(r) for r in runs.values())}
    for system in runs:
        names = ("msamples_per_s", "msamples_per_core_s", "consumer_core", "broker_core", "publisher_core")
        for name in (*names, "kernel_us_per_chunk"):
            result[f"{system}_{name}"] = round(median(system, name) or 0.0, 3)
    for other in ("pathway", "paho"):
        for name in ("msamples_per_s", "msamples_per_core_s"):
            suffix = "" if name == "msamples_per_s" else "_per_core_s"
            result[f"ratio_to_{other}{suffix}"] = ratio(median("ours", name), median(other, name))
    if runs.get("ours"):
        result["cpu_us_per_chunk"] = round(median("ours", "cpu_us_per_chunk") or 0.0, 1)
        result["rss_mb"] = round(max(run["rss_mb"] for run in runs["ours"]), 1)
        for name in ("lost", "logical_duplicates", "foreign", "wrong_samples"):
            result[name] = sum(run[name] for run in runs["ours"])
    return result


if __name__ == "__main__":
    main()
