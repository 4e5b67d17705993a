"""`node collect` as a real process against real brokers: delivery, kill -9, imports, memory."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from infomae_stream.clock import SystemClock
from infomae_stream.node_config import MqttSettings
from infomae_stream.outbox import Outbox
from infomae_stream.session import MqttSession
from infomae_stream.topics import node_topic, parse_topic
from infomae_stream.wire import Ack, decode_chunk, encode_ack, seq_ranges
from tests.brokers import Broker, end, free_port
from tests.recording_files import T0_MS, write_csv, write_excerpt
from tests.waiting import PATIENCE_S, json_lines, metrics_of, sample, wait_until

HEAVY = ("torch", "duckdb", "pyarrow", "deltalake", "pandas", "amqtt", "onnxruntime", "obspy", "soundfile")


class Hub:
    """Decodes, keeps by identity, acknowledges: what ingest does, without a lake."""

    def __init__(self, port: int) -> None:
        self.session = MqttSession(MqttSettings(port=port), "hub", subscriptions=[("infomae/v1/#", 1)])
        self.session.start()
        self.chunks: dict[tuple[str, str, int], int] = {}  # (node, epoch, seq) -> samples
        self.times: dict[str, set[int]] = {}
        self.doubled = 0
        self.told: dict[str, list[bytes]] = {}

    def work(self) -> None:
        for message in self.session.poll(0.05):
            topic = parse_topic(message.topic)
            if topic.leaf != "chunk":
                self.told.setdefault(f"{topic.node}/{topic.leaf}", []).append(message.payload)
                continue
            chunk = decode_chunk(message.payload)
            identity = (topic.node, chunk.epoch, chunk.seq)
            if identity not in self.chunks:
                times = self.times.setdefault(topic.node, set())
                new = {int(t) for t in chunk.sample_times_ns()}
                self.doubled += len(times & new)
                times |= new
            self.chunks[identity] = chunk.n_samples
            ack = encode_ack(Ack(chunk.epoch, seq_ranges([chunk.seq])))
            self.session.publish(node_topic(topic.site, topic.node, "ack"), ack)


class Collect:
    """The process; `events` are those of the last start."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self._log: IO[bytes] = (config.parent / "collect.log").open("ab")
        self._began = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "infomae_stream.cli", "node", "collect", "--config", str(self._config)]
        self._began = (self._config.parent / "collect.log").stat().st_size
        self.process = subprocess.Popen(command, stderr=self._log)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def events(self) -> list[str]:
        return [line["event"] for line in json_lines(self._config.parent / "collect.log", self._began)]

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self._log.close()


def write_config(folder: Path, broker_port: int, speed: float) -> tuple[Path, int]:
    metrics_port = free_port()
    config = folder / "node.toml"
    config.write_text(
        textwrap.dedent(f"""
        truth_log_dir = "truth"
        [mqtt]
        port = {broker_port}
        [metrics]
        collect_port = {metrics_port}
        [outbox]
        commit_interval_s = 0.2
        [uplink]
        resend_after_s = 2
        [[nodes]]
        site = "s01"
        node = "s01-phone"
        sources = [{{ type = "replay", path = "phone.parquet", speed = {speed} }}]
        [[nodes]]
        site = "s01"
        node = "s01-watch"
        sources = [{{ type = "replay", path = "watch.csv", speed = {speed} }}]
        """),
        encoding="utf-8",
    )
    return config, metrics_port


@pytest.fixture(params=["mosquitto", "amqtt"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    made = Broker(request.param, tmp_path).start()
    yield made
    made.stop()


@pytest.fixture
def hub(broker: Broker) -> Iterator[Hub]:
    made = Hub(broker.port)
    wait_until(lambda: made.session.connected)
    yield made
    end(made.session)


def truth(folder: Path, node: str) -> list[dict[str, object]]:
    path = folder / "truth" / f"{node}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_when_node_and_broker_are_killed(tmp_path: Path, broker: Broker, hub: Hub) -> None:
    times = list(range(0, 60_000, 10))
    write_excerpt(tmp_path / "phone.parquet", {"r1": times[:3000], "r2": times[3000:]})
    write_csv(tmp_path / "watch.csv", times)
    config, metrics_port = write_config(tmp_path, broker.port, speed=8)
    node = Collect(config)
    try:
        for seconds in (10, 25, 40):
            node.start()
            enough = seconds * 100

            def arrived(enough: int = enough) -> bool:
                hub.work()
                return len(hub.times.get("s01-watch", ())) >= enough

            wait_until(arrived, what=f"{seconds} s of data at the hub")
            if seconds == 25:
                broker.kill()
                broker.start()
            node.kill()
        node.start()

        def drained() -> bool:
            hub.work()
            return "outbox_drained" in node.events()

        wait_until(drained, what="everything acknowledged")
        empty = 'infomae_outbox_bytes{node="s01-phone",site="s01"} 0.0\n'
        wait_until(lambda: empty in metrics_of(metrics_port), what="an empty outbox in the metrics")
        assert 10e6 < sample(metrics_port, "infomae_process_resident_bytes") < 100e6
        assert node.stop() == 0
        offline = b'{"v": 1, "state": "offline"}'
        wait_until(lambda: hub.work() or hub.told["s01-watch/status"][-1] == offline, what="the good-bye")
    finally:
        node.close()
    expected = {(T0_MS + t) * 1_000_000 for t in times}
    for name in ("s01-phone", "s01-watch"):
        assert hub.times[name] == expected
        logged = truth(tmp_path, name)
        assert {(name, r["epoch"], r["seq"]) for r in logged} == {i for i in hub.chunks if i[0] == name}
        assert len({r["seq"] for r in logged}) == len(logged)
        birth = json.loads(hub.told[f"{name}/birth"][0])
        assert birth["streams"][0]["node"] == name
    assert hub.doubled == 0
    assert "sources_finished" in node.events()


@pytest.mark.slow
def test_the_wanted_bundle_reaches_the_outbox_and_the_observed_one_the_hub(tmp_path: Path) -> None:
    broker = Broker("mosquitto", tmp_path).start()
    write_excerpt(tmp_path / "phone.parquet", {"r1": [0]})
    write_csv(tmp_path / "watch.csv", [0])
    config, _ = write_config(tmp_path, broker.port, speed=1)
    node, hub = Collect(config), Hub(broker.port)
    try:
        wait_until(lambda: hub.session.connected)
        wanted = b'{"v": 1, "version": 3, "sha256": "ab", "url": "http://127.0.0.1/b"}'
        # Retained, and there before the node is: it learns of it all the same.
        hub.session.publish(node_topic("s01", "s01-phone", "bundle/desired"), wanted, retain=True)
        hub.session.publish(node_topic("s01", "s01-watch", "bundle/desired"), b"no json", retain=True)
        node.start()
        path = tmp_path / "state" / "s01" / "s01-phone" / "outbox.sqlite"
        wait_until(lambda: hub.work() or "s01-phone/status" in hub.told, what="the node")
        detector = Outbox.open(path, SystemClock(), max_bytes=10**9, reserve_bytes=0)
        wait_until(lambda: detector.get_state("bundle_desired") == wanted, what="the wanted bundle")
        observed = b'{"v": 1, "version": 3, "sha256": "ab", "state": "serving", "reason": "", "verified": true}'
        detector.set_state("bundle_observed", observed)
        wait_until(lambda: hub.work() or hub.told.get("s01-phone/bundle/observed") == [observed], what="observed")
        detector.close()
        wait_until(lambda: "message_refused" in node.events(), what="the garbage refused")
        assert node.process is not None and node.process.poll() is None
    finally:
        node.close()
        end(hub.session)
        broker.stop()


def test_a_typo_in_a_source_ends_with_78_and_the_dotted_key(tmp_path: Path) -> None:
    config, _ = write_config(tmp_path, free_port(), speed=1)
    config.write_text(
        config.read_text(encoding="utf-8").replace("watch.csv", 'watch.csv", sped = "1'), encoding="utf-8"
    )
    command = [sys.executable, "-m", "infomae_stream.cli", "node", "collect", "--config", str(config)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 78
    assert "nodes.1.sources.0.sped: unknown key; did you mean 'speed'?" in ended.stderr


def test_the_collecting_process_imports_nothing_heavy(tmp_path: Path) -> None:
    """Runs until its recordings are in the outbox (no broker there), then tells its modules."""
    write_excerpt(tmp_path / "phone.parquet", {"r1": [0, 10, 20]})
    write_csv(tmp_path / "watch.csv", [0, 10, 20])
    config, _ = write_config(tmp_path, free_port(), speed=0)
    program = f"""
        import sys, threading
        from pathlib import Path
        from collectors.service import Collector
        from infomae_stream.clock import SystemClock
        from infomae_stream.config import load_config
        from infomae_stream.node_config import NodeConfig
        import infomae_stream.cli
        collector = Collector(load_config(Path({str(config)!r}), NodeConfig), "node.toml", SystemClock())
        stop = threading.Event()
        thread = threading.Thread(target=collector.run, args=(stop,))
        thread.start()
        while not all((Path({str(tmp_path)!r}) / "truth" / f"s01-{{n}}.jsonl").exists()
                      and (Path({str(tmp_path)!r}) / "truth" / f"s01-{{n}}.jsonl").stat().st_size
                      for n in ("phone", "watch")):
            assert thread.is_alive()
            stop.wait(0.05)
        stop.set()
        thread.join()
        print(" ".join(m for m in {HEAVY!r} if m in sys.modules) or "none")
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "none"
    assert len(truth(tmp_path, "s01-phone")) == 1
