"""A node that loses its sensor, its clock, its broker or its disk says so within a minute, in metrics and in the log.

Real losses of a real process: datagrams that stop, a chronyd that is not synchronised or does not answer, a broker that
is killed, writes that the kernel refuses (RLIMIT_FSIZE), a disk with less free than its reserve.
"""

from __future__ import annotations

import resource
import textwrap
from pathlib import Path
from typing import Any

import pytest

from collectors.clock_quality import ASK_EVERY_S
from collectors.health import LONGEST_SILENT_S, OFFLINE_S
from infomae_stream.outbox_file import BUSY_TIMEOUT_S
from tests.brokers import Broker, free_port
from tests.collect_node import NodeProcess, Shake
from tests.waiting import wait_until

SYNCHRONISED = "C0A80101,192.168.1.1,2,1763690000.1,0.000001,0,0.00001,-1.2,0,0.01,0.002,0.0005,64.0,Normal"
UNSYNCHRONISED = ",,0,0.0,0.0,0,0,0,0,0,1,1,0.0,Not synchronised"
# Each loss, what tells it in the metrics, and what in the log; and the word when it is over.
SAID = {
    "clock": ("infomae_clock_synchronized", {}, 0, "clock_unsynchronised", "clock_synchronised"),
    "sensor": ("infomae_stream_alive", {"stream": "ehz"}, 0, "stream_silent", "stream_moves_again"),
    "broker": ("infomae_mqtt_connected", {}, 0, "broker_lost", "broker_back"),
    "disk": ("infomae_outbox_writable", {}, 0, "outbox_failed", "outbox_works_again"),
}


def write(node: NodeProcess, broker: Broker, ports: list[int], reserve_bytes: int = 0) -> None:
    channels = ("EHZ", "EHN")
    sources = "".join(
        f'[[nodes.sources]]\ntype = "raspberry_shake"\nstation = "R1234"\nport = {port}\n'
        f"channels = {{ {channel} = {{}} }}\n"
        for port, channel in zip(ports, channels, strict=True)
    )
    head = f"""
        [mqtt]
        port = {broker.port}
        [metrics]
        collect_port = {node.metrics_port}
        [outbox]
        commit_interval_s = 0.2
        reserve_bytes = {reserve_bytes}
        [[nodes]]
        site = "s01"
        node = "s01-node"
        clock = {{ source = "chrony" }}
    """
    absent = f'[[nodes.sources]]\ntype = "iio"\ndevice = "none"\nrate_hz = 100\nsysfs_dir = "{node.folder}"\n'
    node.config.write_text(textwrap.dedent(head) + sources + absent, encoding="utf-8")


class Chrony:
    """`chronyc` on the node's PATH: gives what the file says, and fails while there is none."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._says = folder / "bin", folder / "tracking"
        self.folder.mkdir()
        program = self.folder / "chronyc"
        program.write_text(f"#!/bin/sh\nexec cat {self._says}\n", encoding="utf-8")
        program.chmod(0o755)

    def say(self, line: str) -> None:
        new = self._says.with_suffix(".new")
        new.write_text(line + "\n", encoding="utf-8")
        new.replace(self._says)

    def fail(self) -> None:
        self._says.unlink()


@pytest.mark.slow
def test_every_loss_is_told_in_metrics_and_log_within_a_minute_and_so_is_its_end(tmp_path: Path) -> None:
    chrony = Chrony(tmp_path)
    chrony.say(SYNCHRONISED)
    broker = Broker("mosquitto", tmp_path).start()
    shakes = [Shake(free_port(), "EHZ"), Shake(free_port(), "EHN")]
    node = NodeProcess(tmp_path, PATH=f"{chrony.folder}:/usr/bin:/bin:/usr/sbin:/sbin")
    ports = [shake.port for shake in shakes]

    def value(loss: str) -> float | None:
        name, labels, _, _, _ = SAID[loss]
        return node.metric(name, node="s01-node", **labels)

    try:
        write(node, broker, ports)
        node.start()
        for loss, (_, _, bad, _, _) in SAID.items():
            wait_until(lambda loss=loss, bad=bad: value(loss) == 1 - bad, what=f"all well with the {loss}")  # type: ignore[misc]
        node.wait_for("source_failed", type="iio")  # a sensor that is not there at the start
        node.wait_for_metric("infomae_sources_missing", 1)
        assert not [e for _, _, _, e, _ in SAID.values() if node.events(e)], node.log

        shakes[0].play(False)
        chrony.say(UNSYNCHRONISED)
        broker.kill()
        assert node.process is not None
        resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        told: dict[str, Any] = {}
        for loss, (name, labels, bad, event, _) in SAID.items():
            told[loss] = node.wait_for(event)
            node.wait_for_metric(name, bad, node="s01-node", **labels)
            if loss == "clock":
                chrony.fail()  # what the kernel says of this machine's clock in its place is not this test's matter
        assert told["sensor"]["stream"] == "ehz" and told["disk"]["reason"]
        assert node.metric("infomae_stream_alive", stream="ehn") == 1
        assert (node.metric("infomae_outbox_failures_total") or 0) >= 1
        assert node.wait_for("clock_source_lost")["wanted"] == "chrony"
        node.wait_for_metric("infomae_clock_source_answers", 0)

        shakes[0].play(True)
        chrony.say(SYNCHRONISED)
        broker.start()
        resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for name, labels, bad, _, event in SAID.values():
            node.wait_for(event)
            node.wait_for_metric(name, 1 - bad, node="s01-node", **labels)
        node.wait_for("clock_source_back")

        write(node, broker, ports, reserve_bytes=10**15)  # more than any disk has free
        node.hang_up()
        node.wait_for("outbox_full")
        node.wait_for_metric("infomae_outbox_writable", 0)
        wait_until(lambda: (node.metric("infomae_chunks_dropped_total", reason="outbox_full") or 0) > 0, what="losses")
    finally:
        for shake in shakes:
            shake.stop()
        code = node.stop()
        broker.stop()
    assert code == 0
    # How long a loaded machine takes is no matter of this test; what the node waits for on purpose is.
    assert max(LONGEST_SILENT_S, OFFLINE_S, ASK_EVERY_S, BUSY_TIMEOUT_S) < 60
    assert not node.events("step_failed"), node.events("step_failed")[:1]
