"""What systemd hears of a node: on real sockets, of real processes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from infomae_stream.sd_notify import Notifier
from infomae_stream.telemetry import EventLog
from tests.brokers import free_port
from tests.collect_node import NodeProcess, Shake, Systemd
from tests.waiting import wait_until


@pytest.mark.parametrize("abstract", [False, True])
def test_each_word_is_one_datagram(tmp_path: Path, abstract: bool) -> None:
    systemd = Systemd(f"@infomae-{free_port()}-{time.time_ns()}" if abstract else str(tmp_path / "notify"))
    notifier = Notifier(EventLog("test"), {"NOTIFY_SOCKET": systemd.variable})
    notifier.ready("up")
    notifier.alive()
    notifier.status("two\nlines")
    notifier.reloading()
    notifier.stopping()
    heard = systemd.listen()
    systemd.close()
    assert heard[:4] == ["READY=1", "STATUS=up", "WATCHDOG=1", "STATUS=two lines"]
    assert heard[4] == "RELOADING=1" and heard[5].startswith("MONOTONIC_USEC=")
    assert heard[6:] == ["STOPPING=1"]


def test_a_socket_that_is_gone_is_told_once_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier(EventLog("test"), {"NOTIFY_SOCKET": str(tmp_path / "gone")})
    notifier.alive()
    notifier.alive()
    assert [record.getMessage() for record in caplog.records] == ["notify_failed"]
    Notifier(EventLog("test"), {}).alive()  # not under systemd


@pytest.mark.slow
def test_the_watchdog_is_petted_while_samples_move_and_not_when_the_sensor_is_silent(tmp_path: Path) -> None:
    """`node run`: the child tells, the parent says good-bye; a detector that cannot start stops nothing."""
    systemd = Systemd(str(tmp_path / "notify"))
    udp, broker = free_port(), free_port()
    node = NodeProcess(tmp_path, "run", NOTIFY_SOCKET=systemd.variable)
    node.config.write_text(
        f"""
        mqtt = {{ port = {broker} }}
        metrics = {{ collect_port = {node.metrics_port}, detect_port = 0 }}
        outbox = {{ commit_interval_s = 0.2 }}
        detect = {{ trusted_keys = ["no-such-key.pem"] }}
        [[nodes]]
        site = "s01"
        node = "s01-node"
        sources = [{{ type = "raspberry_shake", station = "R1234", port = {udp} }}]
        """,
        encoding="utf-8",
    )
    shake = Shake(udp)

    def silent() -> int:
        return sum(line.startswith("STATUS=0 samples/s") for line in systemd.listen())

    try:
        node.start()
        wait_until(lambda: systemd.count("READY=1") == 1, what="READY=1")
        wait_until(lambda: systemd.count("WATCHDOG=1") >= 2, what="petting")
        node.wait_for("child_given_up", child="detect")
        wait_until(
            lambda: any("1 of 1 streams alive, 0 of 1 nodes at the broker" in line for line in systemd.listen()),
            what="a status line",
        )
        shake.play(False)
        # The process lives and says so, but no more that samples move.
        seen = silent()
        wait_until(lambda: silent() > seen, what="a status of a silent sensor")
        petted, seen = systemd.count("WATCHDOG=1"), silent()
        wait_until(lambda: silent() > seen, what="another status")
        assert systemd.count("WATCHDOG=1") == petted
        shake.play(True)
        wait_until(lambda: systemd.count("WATCHDOG=1") > petted, what="petting again")
        assert systemd.count("STOPPING=1") == 0
    finally:
        shake.stop()
        code = node.stop()
        stopped = systemd.count("STOPPING=1")
        systemd.close()
    assert code == 0
    assert stopped == 1
