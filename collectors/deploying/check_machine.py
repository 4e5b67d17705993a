"""The machine a node stands on: what is installed, how well its clock is kept, what its disk has left."""

from __future__ import annotations

import errno
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from collectors.clock_quality import ClockReader
from collectors.deploying.finding import Finding, bad, good, warn
from infomae_stream import __version__
from infomae_stream.clock import NS_PER_S, SystemClock
from infomae_stream.node_config import ClockSettings, NodeConfig

EXTRAS: Final = {"sounddevice": "audio", "smbus2": "imu", "obspy": "seismo"}
GPSD_S: Final = 3.0  # it tells once a second
PAIRED_S: Final = 0.05  # matcher.max_clock_uncertainty_s, as it is by default
SLOW_FSYNC_S: Final = 0.25
SYNCS: Final = 5
ANSWER_FIX: Final = {
    "chrony": "apt install chrony",
    "gpsd": "apt install gpsd; `cgps` shows whether the receiver has a fix",
}


def check_program() -> Iterator[Finding]:
    extras = ", ".join(name for module, name in EXTRAS.items() if find_spec(module)) or "none"
    python = f"Python {platform.python_version()} on {platform.machine()}"
    yield good("program", f"infomae-stream {__version__}, {python}, extras: {extras}")


def check_clock(settings: ClockSettings) -> Iterator[Finding]:
    """What the node's own reader says of this machine's clock."""
    reader = ClockReader(settings, SystemClock())
    try:
        quality = reader.read()
        deadline = time.monotonic() + GPSD_S
        while settings.source == "gpsd" and not reader.answers and time.monotonic() < deadline:
            time.sleep(0.25)
            quality = reader.read()
    finally:
        reader.close()
    uncertainty_s = quality.uncertainty_ns / NS_PER_S
    if settings.source == "declared":
        yield good("clock", f"declared, +-{uncertainty_s * 1e3:g} ms: for recordings")
    elif not reader.answers:
        yield bad("clock", f"{settings.source} does not answer", ANSWER_FIX[settings.source])
    elif not quality.synchronised:
        fix = (
            "`chronyc sources` shows why; after a boot it takes some minutes"
            if settings.source == "chrony"
            else 'apt install chrony, and set source = "chrony" in [nodes.clock]'
        )
        yield bad("clock", f"{quality.source}: not synchronised", fix)
    elif uncertainty_s > PAIRED_S:
        fix = "a nearer time server, or a GPS: the hub pairs no windows that are less certain than 0.05 s"
        yield warn("clock", f"{quality.source}: synchronised, +-{uncertainty_s * 1e3:.0f} ms", fix)
    else:
        yield good("clock", f"{quality.source}: synchronised, +-{uncertainty_s * 1e3:.2g} ms")


def check_disk(config: NodeConfig) -> Iterator[Finding]:
    """Room for the outboxes, and how long a commit takes to be safe."""
    state = config.path(config.state_dir)
    there = next(folder for folder in (state, *state.parents) if folder.exists())
    disk = os.statvfs(there)
    free = disk.f_bavail * disk.f_frsize
    o = config.outbox
    if free <= o.reserve_bytes:
        fix = "free some; `du -xh / | sort -h | tail` shows what takes it"
        yield bad(
            "disk", f"{_mb(free)} free, and outbox.reserve_bytes keeps {_mb(o.reserve_bytes)}: data are given up", fix
        )
        return
    if state.exists() and not os.access(state, os.W_OK | os.X_OK):
        yield bad("disk", f"this user may not write to {state}", "run the doctor with sudo")
        return
    try:
        took_s = _fsync_s(there) if state.exists() else None
    except OSError as e:
        what = "is full to the last byte" if e.errno == errno.ENOSPC else f"fails: {e.strerror}"
        yield bad("disk", f"{state} {what}", "see `dmesg`: a card that fails becomes read-only")
        return
    held = sum(p.stat().st_size for node in config.nodes for p in [config.outbox_path(node)] if p.exists())
    may_grow = max(len(config.nodes) * o.max_bytes - held, 0) + o.reserve_bytes
    if free < may_grow:
        fits = max((free + held - o.reserve_bytes) * 9 // 10 // len(config.nodes) // 1_000_000 * 1_000_000, 1_000_000)
        what = f"{_mb(free)} free, and the outbox may grow by {_mb(may_grow)}"
        yield warn("disk", what, f"set outbox.max_bytes = {fits:_}")
    elif took_s is not None and took_s > SLOW_FSYNC_S:
        fix = "a card that is slow or worn: replace it, or raise outbox.commit_interval_s"
        yield warn("disk", f"a commit takes {took_s * 1e3:.0f} ms to reach it", fix)
    else:
        timed = "" if took_s is None else f"; a commit reaches it in {took_s * 1e3:.1f} ms"
        yield good("disk", f"{_mb(free)} free for outboxes of {_mb(o.max_bytes)} each at {state}{timed}")


def _fsync_s(folder: Path) -> float:
    """Median time of a small write that has to be on the disk. Raises OSError."""
    times = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as f:
        for _ in range(SYNCS):
            begun = time.monotonic()
            f.write(bytes(4096))
            os.fsync(f.fileno())
            times.append(time.monotonic() - begun)
    return statistics.median(times)


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB"
