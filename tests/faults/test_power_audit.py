"""The model of a disk sees every write, name and sync that the kernel sees, in the same order."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import power_sqlite

CALLS = "openat,write,pwrite64,ftruncate,fsync,fdatasync,mkdir,rename,link,unlink"
STORY = """
import json, sys
from pathlib import Path
from tests.faults.power_lake import LakeUnderPower
from tests.faults.power_outbox import OutboxUnderPower

folder = Path(sys.argv[1])
node = OutboxUnderPower(folder / "node", real_syncs=True)
node.commit(2, 1)
node.stop_and_start()
node.commit(1, 0, 50_000)
node.acknowledge(1, 2)
node.purge()
hub = LakeUnderPower(folder / "hub", real_syncs=True)
hub.write(chunks=3, gaps=1, detections=1, days=2)
hub.quarantine(1)
hub.write(chunks=1, writer=1)
(folder / "told.json").write_text(json.dumps([node.disk.told(), hub.disk.told()]))
node.close()
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
    pytest.mark.skipif(bool(power_sqlite.missing()), reason=power_sqlite.missing() or "-"),
]


def test_the_model_sees_what_the_kernel_sees(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-y", "-s", "0", "-e", f"trace={CALLS}", "-o", str(trace)]
    subprocess.run([*strace, sys.executable, "-c", STORY, str(tmp_path)], check=True, timeout=120)
    seen = list(_calls(trace.read_text().splitlines()))
    for told, root in zip(
        json.loads((tmp_path / "told.json").read_text()), (tmp_path / "node/disk1", tmp_path / "hub/disk1"), strict=True
    ):
        told = [tuple(event) for event in told]
        kernel = list(_events(seen, root))[: len(told)]  # then the outbox is closed, which is not part of the story
        assert len(told) > 50 and sum(what == "sync" for what, _, _ in told) > 10
        assert told == kernel


def _calls(lines: list[str]) -> Iterator[str]:
    """Whole calls that succeeded, also those that strace wrote down in two pieces."""
    begun: dict[str, str] = {}
    for line in lines:
        pid, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            begun[pid] = call.removesuffix("<unfinished ...>")
            continue
        if call.startswith("<..."):
            call = begun.pop(pid) + call.partition("resumed>")[2]
        if re.search(r"= \d+(<.*>)?$", call):
            yield call


def _events(calls: list[str], root: Path) -> Iterator[tuple[str, str, int]]:
    """What the calls did below `root`, in the words of `Disk.told`."""
    names: set[str] = set()
    for call in calls:
        name = call.partition("(")[0]
        paths = [path for path in re.findall(rf'[<"]{re.escape(str(root))}/?([^>"]*)[>"]', call)]
        if not paths or paths[0].endswith("-shm"):
            continue
        path, result = paths[0] or ".", int(re.search(r"= (\d+)", call)[1])  # type: ignore[index]
        if name in ("write", "pwrite64"):
            yield "write", path, result
        elif name == "ftruncate":
            yield "truncate", path, int(re.search(r", (\d+)\)", call)[1])  # type: ignore[index]
        elif name in ("fsync", "fdatasync"):
            yield "sync", path, 0
        elif name == "unlink":
            names.discard(path)
            yield "gone", path, 0
        elif name == "mkdir" and paths[0]:
            yield "name", path, 0
        elif name == "link":
            names.add(paths[1])
            yield "name", paths[1], 0
        elif name == "rename":
            names.add(paths[1])
            yield "name", paths[1], 0
            yield "gone", path, 0
        elif name == "openat" and "O_CREAT" in call and path not in names:
            names.add(path)
            yield "name", path, 0
