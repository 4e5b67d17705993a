"""Nothing listens beyond loopback unless told: each program that listens, with its default addresses."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.brokers import free_port
from tests.security.sites import HAS_MOSQUITTO, TlsSite
from tests.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.slow
LISTEN = "0A"
# program -> (arguments, how many ports it opens)
PROGRAMS = {
    "collect": (["node", "collect", "--config", "node.toml"], 1),
    "detect": (["node", "detect", "--config", "node.toml"], 1),
    "ingest": (["hub", "ingest", "--config", "hub.toml"], 1),
    "align": (["hub", "align", "--config", "hub.toml"], 2),
    "broker": (["broker", "run", "--port", "0"], 1),
}


def listening(pid: int) -> list[str]:
    """Addresses on which a process listens, as the kernel writes them (hexadecimal, IPv4 little-endian)."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            inodes.add(os.readlink(fd).removeprefix("socket:[").removesuffix("]"))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            parts = line.split()
            if parts[3] == LISTEN and parts[9] in inodes:
                found.append(parts[1].split(":")[0])
    return found


def is_loopback(address: str) -> bool:
    return address[-2:] == "7F" if len(address) == 8 else address == "0" * 24 + "01000000"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # Ports are given, so that tests do not meet; addresses are not.
    (tmp_path / "node.toml").write_text(
        f"[mqtt]\nport = {free_port()}\n[metrics]\ncollect_port = 0\ndetect_port = 0\n"
        '[[nodes]]\nsite = "s"\nnode = "n"\nsources = [{ type = "replay", path = "none.csv" }]\n'
    )
    (tmp_path / "hub.toml").write_text(
        f"[mqtt]\nport = {free_port()}\n[metrics]\ningest_port = 0\nalign_port = 0\n[release]\nport = 0\n"
        "[matcher]\nmodalities = ['a', 'b']\n[align]\nclasses = ['x', 'y']\nvalidation_sites = ['s1']\n"
    )
    subprocess.run([sys.executable, "-m", "infomae_stream.cli", "bundle", "keygen", str(tmp_path / "keys")], check=True)
    return tmp_path


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_listens_on_loopback_only(folder: Path, name: str) -> None:
    arguments, ports = PROGRAMS[name]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "infomae_stream.cli", *arguments], cwd=folder, stderr=log, stdout=log
        )
    try:
        wait_until(lambda: process.poll() is not None or len(listening(process.pid)) >= ports, what=f"{name} listening")
        assert process.poll() is None, (folder / "log").read_text()
        assert all(is_loopback(address) for address in listening(process.pid)), listening(process.pid)
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.mark.skipif(not HAS_MOSQUITTO, reason="mosquitto is not installed")
def test_the_broker_of_hub_init_listens_on_loopback_only(tmp_path: Path) -> None:
    site = TlsSite(tmp_path).start()
    try:
        assert site.pid and {is_loopback(address) for address in listening(site.pid)} == {True}
    finally:
        site.stop()


def test_what_is_open_to_the_network_is_seen_as_such() -> None:
    assert is_loopback("0100007F") and not is_loopback("00000000") and not is_loopback("0" * 32)
    assert is_loopback("0" * 24 + "01000000")
