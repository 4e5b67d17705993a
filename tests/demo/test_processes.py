"""Processes start apart, are watched through /proc and stop in order; a folder of somebody else's is left alone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import processes as module
from demo.deployment import Deployment
from demo.people import REDUCED
from demo.processes import DemoError, Processes, free_ports, wait_for_port
from tests.waiting import wait_until

# Short sleeps: a signal that comes just before a long one would be looked at only after it.
OBEDIENT = (
    "import signal,sys,time\nsignal.signal(15, lambda *_: sys.exit(0))\nprint('up', flush=True)\n"
    "while True: time.sleep(0.1)"
)
DEAF = "import signal,time\nsignal.signal(15, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(600)"
CHILD = "[sys.executable, '-c', 'import time; time.sleep(600)', 'x', 'hub', 'ingest', 'y']"
PARENT = f"import subprocess,sys,time\nsubprocess.Popen({CHILD})\n"
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path / "logs")
    yield made
    for process in made.running.values():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def start(processes: Processes, name: str, code: str) -> None:
    processes.start(name, [sys.executable, "-c", code])
    wait_until(lambda: processes.log_of(name).read_text() == "up\n", what=f"{name} coming up")


def test_stops_in_the_opposite_order_of_starting(processes: Processes) -> None:
    for name in ("broker", "hub", "phones"):
        start(processes, name, OBEDIENT)
    assert list(processes.stop_all().items()) == [("phones", 0), ("hub", 0), ("broker", 0)]
    assert processes.running == {}


def test_a_process_that_does_not_listen_is_killed(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_TIMEOUT_S", 0.2)
    start(processes, "deaf", DEAF)
    assert processes.stop("deaf") == -signal.SIGKILL


def test_a_process_that_ended_by_itself_is_told(processes: Processes) -> None:
    processes.start("short", [sys.executable, "-c", "import sys; print('bad'); sys.exit(3)"])
    wait_until(lambda: processes.ended(), what="its end")
    assert processes.ended() == {"short": 3}
    assert processes.log_of("short").read_text() == "bad\n"


def test_a_child_gets_no_ctrl_c_from_the_terminal(processes: Processes) -> None:
    start(processes, "apart", OBEDIENT)
    assert os.getsid(processes.running["apart"].pid) != os.getsid(0)


@needs_proc
def test_children_are_known_by_their_role_with_their_peak_memory(processes: Processes) -> None:
    processes.start("hub", [sys.executable, "-c", PARENT + "time.sleep(600)"])
    wait_until(lambda: processes.pid("hub", "ingest") > 0, what="the child")
    # Seen between fork and exec, a child has next to no memory yet: the peak grows as it is looked at again.
    wait_until(lambda: processes.pid("hub", "ingest") > 0 and processes.peaks_mb["ingest"] > 1, what="the child's peak")
    assert processes.peaks_mb["ingest"] < 200
    assert processes.pid("hub", "align") == 0


def test_waiting_for_a_port_names_the_log_of_what_died(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    with pytest.raises(DemoError, match="read that log"):
        wait_for_port(free_ports(1)[0], dead, tmp_path / "x.jsonl")


def test_free_ports_are_different_and_free() -> None:
    ports = free_ports(8)
    assert len(set(ports)) == 8
    for port in ports:
        with socket.socket() as s:
            s.bind(("127.0.0.1", port))


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not delete")
    with pytest.raises(DemoError, match="not empty"):
        Deployment(tmp_path, REDUCED, "amqtt")
    assert (tmp_path / "thesis.txt").exists()


def test_what_an_earlier_demonstration_left_is_replaced(tmp_path: Path) -> None:
    Deployment(tmp_path, REDUCED, "amqtt")
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "old").write_text("x")
    (tmp_path / "mine.txt").write_text("kept")
    Deployment(tmp_path, REDUCED, "amqtt")
    assert not (tmp_path / "lake").exists() and (tmp_path / "mine.txt").exists()


def test_an_unknown_broker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="rabbit"):
        Deployment(tmp_path, REDUCED, "rabbit")
