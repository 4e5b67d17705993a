"""A day of one node at speed: memory flat, file descriptors flat, nothing lost.

A real `node collect` plays the synthetic scene (100 Hz seismic and six IMU axes; --kinds for more) at --speed times the
time, through mosquitto into a real `hub ingest`. Every simulated hour the node's file is changed and reloaded (SIGHUP),
every six hours the broker is killed and comes back. Once a second the kernel is asked for resident memory and open
descriptors of both; what counts begins after the first tenth, or the first hour of a day: outbox and lake index come to
rest in it. In the end the node's truth log is compared with the lake. The last line is JSON; exit 1 when it was not so.

The node polls its sensors twenty times a second and a poll gives at most 5 s of the scene: 100 is as fast as it goes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import rig
from benchmarks.rig import memory_mb, say
from infomae_stream.clock import SystemClock
from storage.lake import Lake
from storage.verify import compare

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
GROWTH_MB: Final = 8.0  # more between the first and the last tenth is no noise of the allocator
GROWTH_FDS: Final = 3
HEADINGS: Final = ("hour", "node MB", "node fds", "ingest MB", "ingest fds", "outbox MB")
DRAIN_S: Final = 600.0


class Soaked:
    """The three processes and their files."""

    def __init__(self, folder: Path, hours: float, speed: float, kinds: list[str]) -> None:
        self.folder, self.hours, self._speed, self._kinds = folder, hours, speed, kinds
        self.broker = rig.PinnedMosquitto(folder, None)
        self.metrics_port = rig.free_port()
        self.reloads = self.broker_kills = 0
        self._write(0)
        (folder / "hub.toml").write_text(
            f"[mqtt]\nport = {self.broker.port}\n[lake]\npath = 'lake'\n"
            "[metrics]\ningest_port = 0\nalign_port = 0\nmaintain_port = 0\n"
            "[matcher]\nmodalities = ['seismic']\n[align]\nclasses = ['quiet', 'vehicle']\nvalidation_sites = ['s01']\n"
            "[release]\nsigning_key = 'none.pem'\n"
        )
        self.ingest = self._start("hub", "ingest", "hub.toml")
        self.node = self._start("node", "collect", "node.toml")

    def reload(self) -> None:
        self.reloads += 1
        self._write(self.reloads)
        self.node.send_signal(signal.SIGHUP)

    def shorten(self, hours: float) -> None:
        """The scene ends at `hours`: a changed source is opened anew and goes on where it was."""
        self.hours = hours
        self.reload()

    def restart_broker(self) -> None:
        self.broker_kills += 1
        self.broker.stop()
        self.broker.restart()

    def hour(self) -> float:
        """Simulated hours that the slowest stream has come to; 0 while the node says nothing."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return 0.0
        name = "infomae_stream_last_sample_timestamp_seconds{"
        ends = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)]
        return (min(ends) - START.timestamp()) / 3600 if ends else 0.0

    def sample(self) -> list[float]:
        outbox = sum(f.stat().st_size for f in (self.folder / "state" / "soak" / "n1").glob("outbox.sqlite*"))
        both = [(memory_mb(p.pid, "VmRSS"), len(os.listdir(f"/proc/{p.pid}/fd"))) for p in (self.node, self.ingest)]
        return [value for pair in both for value in pair] + [outbox / 1e6]

    def said(self, event: str) -> int:
        return (self.folder / "node.log").read_text(encoding="utf-8").count(f'"event": "{event}"')

    def last_words(self, role: str) -> str:
        return (self.folder / f"{role}.log").read_text(encoding="utf-8")[-1000:]

    def stop(self) -> None:
        for process in (self.node, self.ingest):
            if process.poll() is None:
                process.terminate()
                process.wait(60)
        self.broker.stop()

    def _write(self, change: int) -> None:
        # Each time another value, so that the node is built anew around its source.
        new = self.folder / "node.toml.new"
        new.write_text(
            f"truth_log_dir = 'truth'\n[mqtt]\nport = {self.broker.port}\n"
            f"[metrics]\ncollect_port = {self.metrics_port}\n"
            f"[uplink]\nmax_bytes_per_s = 0\nresend_after_s = {10 + change % 2}\n"
            "[[nodes]]\nsite = 'soak'\nnode = 'n1'\n[[nodes.sources]]\ntype = 'synthetic'\n"
            f"kinds = {json.dumps(self._kinds)}\nstart = {START.isoformat()}\n"
            f"duration_s = {self.hours * 3600:.0f}\nspeed = {self._speed}\n"
        )
        new.replace(self.folder / "node.toml")

    def _start(self, role: str, command: str, config: str) -> subprocess.Popen[bytes]:
        program = [sys.executable, "-m", "infomae_stream.cli", role, command, "--config", str(self.folder / config)]
        with (self.folder / f"{role}.log").open("wb") as log:
            return subprocess.Popen(program, stderr=log, cwd=Path(__file__).resolve().parents[1])


def soak(
    soaked: Soaked, sample_s: float, wall_s: float, reload_h: float, broker_h: float
) -> list[tuple[float, list[float]]]:
    """(hour, sample) from the first sample of the node until all is acknowledged.

    After `wall_s` the day is cut short, so that what was done is told in time.
    """
    samples: list[tuple[float, list[float]]] = []
    told = -1
    began = drained_since = time.monotonic()
    say("  ".join(f"{heading:>10}" for heading in HEADINGS))
    while not soaked.said("outbox_drained") or soaked.hour() < soaked.hours * 0.999:
        time.sleep(sample_s)
        hours = soaked.hours
        for process, name in ((soaked.node, "node"), (soaked.ingest, "hub")):
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended with {process.returncode}: {soaked.last_words(name)}")
        hour = soaked.hour()
        if hour < hours * 0.999:
            drained_since = time.monotonic()
        elif time.monotonic() - drained_since > DRAIN_S:
            break
        if not hour:
            continue
        if time.monotonic() - began > wall_s and hour + 0.5 < hours:
            soaked.shorten(round(hour + 0.25, 2))
            say(f"no time for more: it ends at hour {soaked.hours}")
        sample = soaked.sample()
        samples.append((hour, sample))
        if int(hour) > told or (hours < 2 and len(samples) % 10 == 0):
            told = int(hour)
            say("  ".join(f"{value:10.1f}" for value in (hour, *sample)))
        if hour < hours and hour >= (soaked.reloads + 1) * reload_h:
            soaked.reload()
        if hour < hours and hour >= (soaked.broker_kills + 1) * broker_h:
            soaked.restart_broker()
    say(f"{time.monotonic() - began:.0f} s")
    return samples


def flatness(samples: list[tuple[float, list[float]]], hours: float) -> dict[str, float]:
    """First and last: medians of the first and the last tenth after the warm-up."""
    warm = [values for hour, values in samples if hour >= min(hours / 10, 1.0)]
    tenth = max(len(warm) // 10, 1)
    result: dict[str, float] = {}
    for at, name in enumerate(("rss_mb", "fds", "ingest_rss_mb", "ingest_fds", "outbox_mb")):
        column = [values[at] for values in warm]
        result[f"{name}_first"] = statistics.median(column[:tenth])
        result[f"{name}_last"] = statistics.median(column[-tenth:])
        result[f"{name}_peak"] = max(column)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--speed", type=float, default=100.0)
    parser.add_argument("--kinds", nargs="+", default=["seismic", "imu"], choices=["seismic", "acoustic", "imu"])
    parser.add_argument("--reload-every", type=float, default=1.0, help="simulated hours between two reloads")
    parser.add_argument("--broker-every", type=float, default=6.0, help="simulated hours between two broker kills")
    parser.add_argument("--sample", type=float, default=1.0, help="seconds between two looks")
    parser.add_argument("--wall", type=float, default=86_400.0, help="seconds after which the day is cut short")
    parser.add_argument("--folder", type=Path, default=None, help="where the files lie meanwhile; default: TMPDIR")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of the stack, so that the processes end, too
    say(str(rig.machine()))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=args.folder)))
        soaked = Soaked(folder, args.hours, args.speed, args.kinds)
        stack.callback(soaked.stop)
        began = time.monotonic()
        samples = soak(soaked, args.sample, args.wall, args.reload_every, args.broker_every)
        wall_s = time.monotonic() - began
        faults = {event: soaked.said(event) for event in ("step_failed", "reload_failed", "config_rejected")}
        soaked.stop()
        found = compare(folder / "truth", Lake(folder / "lake", SystemClock()))
    flat = flatness(samples, soaked.hours)
    grown_mb, grown_fds = flat["rss_mb_last"] - flat["rss_mb_first"], flat["fds_last"] - flat["fds_first"]
    result: dict[str, Any] = {
        "hours": soaked.hours,
        "speed": args.speed,
        "wall_s": wall_s,
        **flat,
        "accepted": found.accepted,
        "lost": found.lost,
        "logical_duplicates": found.logical_duplicates,
        "physical_duplicates": found.physical_duplicates,
        "reloads": soaked.reloads,
        "broker_kills": soaked.broker_kills,
        **faults,
        "flat": grown_mb <= GROWTH_MB and grown_fds <= GROWTH_FDS,
        "looks": len(samples),
    }
    print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in result.items()}))
    sys.exit(0 if result["flat"] and found.accepted and found.passed and not any(faults.values()) else 1)


if __name__ == "__main__":
    main()
