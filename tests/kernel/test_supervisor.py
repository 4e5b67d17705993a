from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import sys
from infomae_stream.clock import SystemClock
from infomae_stream.supervisor import Supervisor
from infomae_stream.telemetry import EventLog, configure_logging
configure_logging()
program = [sys.executable, "-c", sys.argv[1]]
sys.exit(Supervisor({"one": []}, SystemClock(), EventLog("test"), program).run())
"""


def start(child: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, child], stderr=subprocess.PIPE)


def wait_for_lines(path: Path, n: int, deadline_s: float = 30) -> list[str]:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        lines = path.read_text().splitlines() if path.exists() else []
        if len(lines) >= n:
            return lines
        time.sleep(0.02)
    raise AssertionError(f"{path} never had {n} lines")


def test_a_killed_child_is_started_again_and_ends_with_its_parent(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    child = f"import os, time; open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n'); time.sleep(600)"
    parent = start(child)
    try:
        first = int(wait_for_lines(pids, 1)[0])
        os.kill(first, signal.SIGKILL)
        second = int(wait_for_lines(pids, 2)[1])
        assert second != first
    finally:
        parent.send_signal(signal.SIGTERM)
        parent.communicate(timeout=30)
    assert parent.returncode == 0
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)


def test_a_bad_configuration_is_not_tried_again() -> None:
    parent = start("import sys; sys.exit(78)")
    _, log = parent.communicate(timeout=30)
    assert parent.returncode == 78
    assert log.count(b"child_started") == 1
