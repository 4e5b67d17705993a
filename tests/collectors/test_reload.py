"""SIGHUP: what the file says now is taken over while samples come, and nothing of them is lost."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infomae_stream.topics import parse_topic
from infomae_stream.wire import decode_chunk
from tests.brokers import Broker, end, free_port
from tests.collect_node import NodeProcess, Shake
from tests.collectors.test_collect_process import Hub
from tests.waiting import json_lines, wait_until

OFFLINE = b'{"v": 1, "state": "offline"}'


class CountingHub(Hub):
    """Keeps also the counts of each (node, stream)."""

    def __init__(self, port: int, counts: dict[tuple[str, str], list[int]]) -> None:
        super().__init__(port)
        self._counts, poll = counts, self.session.poll

        def counting(timeout_s: float) -> list[Any]:
            messages = poll(timeout_s)
            for message in messages:
                topic = parse_topic(message.topic)
                if topic.leaf == "chunk":
                    chunk = decode_chunk(message.payload)
                    if (topic.node, chunk.epoch, chunk.seq) not in self.chunks:
                        self._counts.setdefault((topic.node, topic.stream), []).extend(chunk.samples_CN[0].tolist())
            return messages

        self.session.poll = counting  # type: ignore[method-assign]

    def birth(self, node: str) -> dict[str, Any]:
        """The newest."""
        return dict(json.loads(self.told.get(f"{node}/birth", [b"{}"])[-1]))

    def streams(self, node: str) -> set[str]:
        return {stream["stream"] for stream in self.birth(node).get("streams", [])}


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[tuple[Broker, Broker]]:
    made = Broker("mosquitto", tmp_path).start(), Broker("mosquitto", tmp_path).start()
    yield made
    for broker in made:
        broker.stop()


def source(port: int, channel: str = "EHZ", key: str = "station") -> str:
    return (
        f'[[nodes.sources]]\ntype = "raspberry_shake"\n{key} = "R1234"\nport = {port}\n'
        f"channels = {{ {channel} = {{}} }}\n"
    )


def write(node: NodeProcess, broker: Broker, nodes: dict[str, str], metrics_port: int = 0, extra: str = "") -> None:
    tables = "\n".join(f'[[nodes]]\nsite = "s01"\nnode = "{name}"\n{sources}' for name, sources in nodes.items())
    head = f"""
        truth_log_dir = "truth"
        {extra}
        [mqtt]
        port = {broker.port}
        [metrics]
        collect_port = {metrics_port or node.metrics_port}
        [outbox]
        commit_interval_s = 0.2
        [uplink]
        start_jitter_s = 0
    """
    node.config.write_text(textwrap.dedent(head) + tables, encoding="utf-8")


@pytest.mark.slow
def test_nothing_is_lost_while_sources_nodes_and_brokers_change(tmp_path: Path, brokers: tuple[Broker, Broker]) -> None:
    first, second = brokers
    counts: dict[tuple[str, str], list[int]] = {}
    hubs = CountingHub(first.port, counts), CountingHub(second.port, counts)
    hubs[1].chunks = hubs[0].chunks  # one lake behind both
    shakes = [Shake(free_port(), "EHZ"), Shake(free_port(), "EHN")]
    ehz, ehn = (source(shake.port, shake.channel) for shake in shakes)
    node = NodeProcess(tmp_path)

    def work(done: bool) -> bool:
        for hub in hubs:
            hub.work()
        return done

    def more(stream: str, name: str = "s01-a") -> None:
        """Samples that were sent after now have arrived."""
        sent = len(next(s for s in shakes if s.channel.lower() == stream).counts)

        wait_until(lambda: work(max(counts.get((name, stream), [0])) > sent), what=f"samples of {name} {stream}")

    def birth_says(hub: CountingHub, streams: set[str], name: str = "s01-a") -> None:
        wait_until(lambda: work(hub.streams(name) == streams), what=f"a birth with {streams}")

    try:
        for hub in hubs:
            wait_until(lambda hub=hub: hub.session.connected)  # type: ignore[misc]
        write(node, first, {"s01-a": ehz})
        node.start()
        more("ehz")
        birth_says(hubs[0], {"ehz"})

        write(node, first, {"s01-a": source(shakes[0].port, key="statoin")})
        node.hang_up()
        reason = node.wait_for("config_rejected")["reason"]
        assert str(node.config) in reason and "nodes.0.sources.0.statoin: unknown key" in reason
        node.wait_for_metric("infomae_config_last_reload_successful", 0)
        more("ehz")

        write(node, second, {"s01-a": ehz + ehn})  # another sensor and another broker
        node.hang_up()
        node.wait_for("config_reloaded", rebuilt=["s01/s01-a"])
        node.wait_for_metric("infomae_config_last_reload_successful", 1)
        more("ehz")
        more("ehn")
        birth_says(hubs[1], {"ehz", "ehn"})
        wait_until(lambda: work(hubs[0].told["s01-a/status"][-1] == OFFLINE), what="the good-bye of s01-a")

        write(node, second, {"s01-a": ehz, "s01-b": ehn}, metrics_port=free_port())  # a sensor moves to a new node
        node.hang_up()
        assert node.wait_for("config_needs_restart")["keys"] == ["metrics"]
        node.wait_for_metric("infomae_config_last_reload_successful", 0)
        more("ehz")
        more("ehn", "s01-b")
        birth_says(hubs[1], {"ehz"})
        birth_says(hubs[1], {"ehn"}, "s01-b")

        write(node, second, {"s01-a": ehz})
        node.hang_up()
        node.wait_for("config_reloaded", removed=["s01/s01-b"])
        node.wait_for_metric("infomae_config_last_reload_successful", 1)
        assert node.metric("infomae_mqtt_connected", node="s01-b") is None
        wait_until(lambda: work(hubs[1].told["s01-b/status"][-1] == OFFLINE), what="the good-bye of s01-b")
        more("ehz")
    finally:
        for shake in shakes:
            shake.stop()
        code = node.stop()
        for hub in hubs:
            end(hub.session)
    assert code == 0, node.log[-20:]
    # From the first that was heard to the last, each sample once; for "ehz" that spans every reload.
    for name, stream in (("s01-a", "ehz"), ("s01-a", "ehn"), ("s01-b", "ehn")):
        heard = sorted(counts[name, stream])
        assert heard == list(range(heard[0], heard[-1] + 1))
    for name in ("s01-a", "s01-b"):
        logged = {(name, r["epoch"], r["seq"]) for r in json_lines(tmp_path / "truth" / f"{name}.jsonl")}
        assert logged >= {i for i in hubs[0].chunks if i[0] == name}
    assert not [line for line in node.log if line["event"] in ("step_failed", "close_failed", "reload_failed")]
