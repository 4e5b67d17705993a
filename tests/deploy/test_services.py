"""systemd takes the units, mosquitto takes its file, and both fit what the program expects."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from collectors.deploying.node_toml import NodeFile, check_text
from collectors.deploying.source_lines import source_lines
from collectors.deploying.unit import ServicePaths, unit_text
from infomae_stream.supervisor import BAD_CONFIG_EXIT, STOP_TIMEOUT_S
from infomae_stream.wire import MAX_MESSAGE_BYTES

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
needs_mosquitto = pytest.mark.skipif(shutil.which("mosquitto") is None, reason="mosquitto is not here")


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda u: u.stem)
def test_systemd_finds_nothing_wrong_with_the_unit(unit: Path, tmp_path: Path) -> None:
    program = tmp_path / "infomae-stream"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    installed = tmp_path / unit.name
    installed.write_text(unit.read_text().replace("/opt/infomae/bin/infomae-stream", str(program)))
    verified = subprocess.run(["systemd-analyze", "verify", str(installed)], capture_output=True, text=True)
    assert (verified.returncode, verified.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda u: u.stem)
def test_unit_is_hardened(unit: Path) -> None:
    told = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(unit)], capture_output=True, text=True
    )
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", told.stdout)
    assert found, told.stdout + told.stderr
    assert float(found[1]) < 3


@pytest.mark.parametrize("unit", UNITS, ids=lambda u: u.stem)
def test_unit_fits_the_supervisor(unit: Path) -> None:
    text = unit.read_text()
    assert f"RestartPreventExitStatus={BAD_CONFIG_EXIT}\n" in text
    stop_s = re.search(r"TimeoutStopSec=(\d+)", text)
    assert stop_s and int(stop_s[1]) > STOP_TIMEOUT_S, (
        "systemd would kill before the supervisor has stopped its children"
    )


def test_the_shown_unit_of_a_node_is_the_one_that_is_installed() -> None:
    path = Path("/etc/infomae/node.toml")
    file = NodeFile("orchard", "orchard-1", "127.0.0.1", 1883, False, "system", [source_lines("synthetic", {})])
    made = unit_text(check_text(file.text(path), path), ServicePaths(Path("/opt/infomae/bin/infomae-stream"), path))
    shown = (DEPLOY / "systemd" / "infomae-node.service").read_text()
    assert shown.partition("[Unit]\n")[2] == made.partition("[Unit]\n")[2]


@needs_mosquitto
def test_mosquitto_starts_with_the_file(tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    text = (DEPLOY / "mosquitto.conf").read_text()
    taken = re.search(r"^max_packet_size (\d+)$", text, flags=re.M)
    assert taken and int(taken[1]) > MAX_MESSAGE_BYTES, "the broker would refuse what the program takes"
    (tmp_path / "mosquitto.conf").write_text(text.replace("listener 1883 127.0.0.1", f"listener {port} 127.0.0.1"))
    broker = subprocess.Popen(["mosquitto", "-c", str(tmp_path / "mosquitto.conf")], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while broker.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "mosquitto does not listen"
        assert broker.poll() is None, broker.communicate()[1]
    finally:
        broker.terminate()
        broker.communicate(timeout=60)
