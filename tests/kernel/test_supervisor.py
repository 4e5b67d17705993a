from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import PATIENCE_S, json_lines, wait_until

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


def wait_for_lines(path: Path, n: int) -> list[str]:
    wait_until(lambda: path.exists() and path.read_text().count("\n") >= n, what=f"{n} lines in {path}")
    return path.read_text().splitlines()


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
        parent.communicate(timeout=PATIENCE_S)
    assert parent.returncode == 0
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)


def test_a_bad_configuration_is_not_tried_again() -> None:
    parent = start("import sys; sys.exit(78)")
    _, log = parent.communicate(timeout=PATIENCE_S)
    assert parent.returncode == 78
    assert log.count(b"child_started") == 1


def events(log: bytes, name: str) -> list[dict[str, object]]:
    return [e for e in map(json.loads, log.splitlines()) if e["event"] == name]


CRASHING = """
import json
import os
from infomae_stream.telemetry import Telemetry
restarts = Telemetry().registry.get_sample_value("infomae_process_restarts_total")
open({path!r}, "a").write(f"{{restarts:.0f}}\\n")
{then}
os._exit(3)
"""


def test_a_child_that_crashes_is_started_after_ever_longer_pauses_and_knows_how_often(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    parent = start(CRASHING.format(path=str(starts), then=""))
    try:
        assert wait_for_lines(starts, 3)[:3] == ["0", "1", "2"]
    finally:
        parent.send_signal(signal.SIGTERM)
        _, log = parent.communicate(timeout=PATIENCE_S)
    ended = events(log, "child_ended")
    assert [e["again_in_s"] for e in ended][:2] == [0.5, 1.0]
    assert ended[0]["exit"] == 3


def test_a_child_that_ran_well_for_long_is_started_again_soon(tmp_path: Path) -> None:
    """By a clock that goes a hundred times as fast: half a second is more than the half minute that counts as well."""
    starts = tmp_path / "starts"
    fast = "SystemClock.monotonic_ns = lambda self: time.monotonic_ns() * 100\n"
    program = PROGRAM.replace("configure_logging()\nprogram", f"import time\n{fast}configure_logging()\nprogram")
    child = CRASHING.format(path=str(starts), then="import time; time.sleep(0.5)")
    parent = subprocess.Popen([sys.executable, "-c", program, child], stderr=subprocess.PIPE)
    try:
        wait_for_lines(starts, 3)
    finally:
        parent.send_signal(signal.SIGTERM)
        _, log = parent.communicate(timeout=PATIENCE_S)
    assert [e["again_in_s"] for e in events(log, "child_ended")][:2] == [0.5, 0.5]


# Children write their name when they can take a signal, and "name hup" for each SIGHUP; "poor" has a bad configuration.
RELOADING = """
import os, sys
from pathlib import Path
from infomae_stream.clock import SystemClock
from infomae_stream.errors import ConfigError
from infomae_stream.supervisor import Supervisor
from infomae_stream.telemetry import EventLog, configure_logging
configure_logging()
child = '''
import os, signal, sys, time
def say(text):
    with open("said", "a") as f:
        f.write(text + "\\\\n")
name = sys.argv[1]
if name == "poor":
    say("poor"), sys.exit(78)
signal.signal(signal.SIGHUP, lambda *_: say(name + " hup"))
say(name + (" notifies" if "NOTIFY_SOCKET" in os.environ else ""))
while True:
    time.sleep(0.1)  # a signal that comes just before a long sleep would wait for its end
'''
def wanted():
    names = Path("wanted").read_text().split()
    if "typo" in names:
        raise ConfigError("typo: unknown")
    return {name: [name] for name in names}
sys.exit(Supervisor(wanted(), SystemClock(), EventLog("test"), [sys.executable, "-c", child],
    spare={"poor"}, notifying="good", reload=wanted).run())
"""


def test_a_reload_reaches_those_who_stay_and_a_child_with_a_bad_configuration_ends_nobody_else(tmp_path: Path) -> None:
    said, wanted = tmp_path / "said", tmp_path / "wanted"
    wanted.write_text("good poor")
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "nobody")}
    with (tmp_path / "log").open("wb") as log:
        parent = subprocess.Popen([sys.executable, "-c", RELOADING], stderr=log, cwd=tmp_path, env=environment)

    def told(name: str) -> list[dict[str, Any]]:
        return [e for e in json_lines(tmp_path / "log") if e["event"] == name]

    def said_so_far() -> list[str]:
        return said.read_text().splitlines() if said.exists() else []

    try:
        wait_until(lambda: {"good notifies", "poor"} <= set(said_so_far()), what="both started")
        wait_until(lambda: told("child_given_up"), what="one given up")
        wanted.write_text("typo")
        parent.send_signal(signal.SIGHUP)
        wait_until(lambda: "good hup" in said_so_far(), what="the signal passed on although the file is bad")
        wanted.write_text("good other")
        parent.send_signal(signal.SIGHUP)
        wait_until(lambda: "other" in said_so_far(), what="the new child")
        wait_until(lambda: said_so_far().count("good hup") == 2, what="the second signal")
        wanted.write_text("other")
        parent.send_signal(signal.SIGHUP)
        wait_until(lambda: "other hup" in said_so_far(), what="the third signal")
    finally:
        parent.send_signal(signal.SIGTERM)
        parent.wait(PATIENCE_S)
    assert parent.returncode == 0
    assert said_so_far().count("good hup") == 2  # it was gone by then
    assert {e["child"] for e in told("child_given_up")} == {"poor"}
    assert "typo: unknown" in told("config_rejected")[0]["reason"]
    assert told("reload_passed_on")[1]["stopped"] == ["poor"]
