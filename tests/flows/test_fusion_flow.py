"""Two nodes, each with another modality, publish through a real broker; a third one fuses them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from collectors.uplink import Uplink
from inference.service import make_loop
from infomae_stream.bundle import save_keys
from infomae_stream.clock import SystemClock
from infomae_stream.golden import Golden
from infomae_stream.node_config import FuseSettings, MqttSettings, NodeConfig, NodeSettings
from infomae_stream.outbox import Outbox
from infomae_stream.session import MqttSession
from infomae_stream.telemetry import EventLog, Telemetry
from infomae_stream.topics import stream_topic
from infomae_stream.types import ClockQuality, Detection, StreamId, StreamSpec
from infomae_stream.wire import decode_detection
from tests.brokers import HAS_MOSQUITTO, Broker, wait_until
from tests.tiny_bundle import IMU_CHANNELS, IMU_UNITS, PRIVATE_KEY, TinyBundle

S = 10**9
START_NS = 1_500_000_000 * S
WAIT_S = 60.0


class Publisher:
    """A node as `node collect` has it: outbox, uplink, session. Its sensor gives what the test says."""

    def __init__(self, node: str, broker: Broker, folder: Path) -> None:
        self.node = node
        clock = SystemClock()
        self.outbox = Outbox.open(folder / node / "outbox.sqlite", clock, max_bytes=10**8, reserve_bytes=0)
        self._uplink = Uplink(self.outbox, clock, max_inflight_bytes=10**7, resend_after_s=3600)
        self._session = MqttSession(MqttSettings(port=broker.port), node)
        self._session.start()
        self._spec = StreamSpec(StreamId("s01", node, "imu"), "imu", 100.0, IMU_CHANNELS, IMU_UNITS, (100.0,) * 6,
                                f"{node}_imu")  # fmt: skip

    def send(self, first_s: int, n_s: int) -> None:
        """Seconds of the sensor into the outbox, and from there to the broker, which has them all when this returns."""
        for second in range(first_s, first_s + n_s):
            counts = np.random.default_rng(second).integers(-900, 900, size=(6, 100)).astype(np.int16)
            self.outbox.put_chunk(self._spec, START_NS + second * S, counts, ClockQuality("test"))
        self.outbox.commit()
        for record in self._uplink.due():
            assert self._session.publish(record.topic, record.payload)
            self._uplink.sent(record)
        wait_until(lambda: not self._session.inflight_bytes, 60, "the broker takes what the node publishes")

    def send_again(self) -> None:
        """As after a reconnect: all that no hub has acknowledged."""
        for record in self.outbox.pending(10**9):
            assert self._session.publish(record.topic, record.payload)
        wait_until(lambda: not self._session.inflight_bytes, 60, "the broker takes what the node publishes again")

    def close(self) -> None:
        self._session.close()
        self.outbox.close()


class Site:
    """A broker, a phone, a watch, and the node "both" that listens to them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.broker = Broker("mosquitto" if HAS_MOSQUITTO else "amqtt", folder).start()
        save_keys(folder, PRIVATE_KEY)
        self.config = NodeConfig(
            base_dir=folder,
            mqtt=MqttSettings(port=self.broker.port),
            detect={
                "trusted_keys": ["release.pub"],
                "events": {"merge_gap_s": 0.0, "max_s": 0.001, "idle_s": 0.001},  # each window a record
            },
            nodes=[
                NodeSettings(
                    site="s01", node="both", fuse=FuseSettings(nodes=["phone", "watch"], wait_s=WAIT_S, silent_s=2.0)
                )
            ],
        )
        self.outbox = Outbox.open(
            self.config.outbox_path(self.config.nodes[0]), SystemClock(), max_bytes=10**8, reserve_bytes=0
        )
        self.publishers = {name: Publisher(name, self.broker, folder) for name in ("phone", "watch")}
        self.start()

    def start(self) -> None:
        self.telemetry = Telemetry()
        self.loop = make_loop(self.config, SystemClock(), self.telemetry, EventLog("test"))
        # What is published before it has subscribed it never hears of.
        self.until(lambda: self._hears("phone") and self._hears("watch"), "the fusing node has subscribed")

    def stop(self) -> None:
        self.loop.close()

    def _hears(self, name: str) -> bool:
        """Whether a message to its subscription reaches it: one that it refuses, and counts."""
        before = self.metric("infomae_messages_refused_total", node="both", reason="cbor")
        with closing(MqttSession(MqttSettings(port=self.broker.port), f"probe-{name}")) as probe:
            probe.start()
            probe.publish(stream_topic("s01", name, "imu", "chunk"), b"\xff")
            wait_until(lambda: not probe.inflight_bytes, 60, "the probe is with the broker")
        for _ in range(20):
            self.loop.step()
            if self.metric("infomae_messages_refused_total", node="both", reason="cbor") > before:
                return True
        return False

    def until(self, done: object, what: str) -> None:
        def turn() -> bool:
            self.loop.step()
            self.loop.commit()
            return bool(done())  # type: ignore[operator]

        wait_until(turn, 60, what)

    def install(self) -> None:
        tiny = TinyBundle()
        for weights in tiny.weights.values():
            weights[:] = 0.0  # every window shows the first class
        tiny.golden = Golden(tiny.golden.windows, tiny._golden_scores())
        info = tiny.write(self._folder / "1.zip")
        desired = {"v": 1, "version": 1, "sha256": info.sha256, "url": info.path.as_uri()}
        self.outbox.set_state("bundle_desired", json.dumps(desired).encode())
        self.until(lambda: b'"serving"' in (self.outbox.get_state("bundle_observed") or b""), "the bundle serves")

    def detections(self) -> list[Detection]:
        records = [r for r in self.outbox.pending(10**9) if r.topic == "infomae/v1/s01/both/detections"]
        return [decode_detection(r.payload) for r in records]

    def seen(self) -> dict[float, tuple[str, ...]]:
        """Start of each window that was detected on -> modalities that took part. Fails when one is there twice."""
        starts = [(d.end_ns - START_NS) / S - 2.0 for d in self.detections()]
        assert len(starts) == len(set(starts))
        return dict(zip(starts, (d.modalities for d in self.detections()), strict=True))

    def metric(self, name: str, **labels: str) -> float:
        return self.telemetry.registry.get_sample_value(name, {"site": "s01", **labels}) or 0.0

    def close(self) -> None:
        self.stop()
        for publisher in self.publishers.values():
            publisher.close()
        self.outbox.close()
        self.broker.stop()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with closing(Site(tmp_path)) as made:
        made.install()
        yield made


BOTH = ("phone_imu", "watch_imu")


@pytest.mark.slow
def test_nodes_are_fused_and_when_one_dies_it_goes_on_with_the_rest_and_says_so(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    phone, watch = site.publishers["phone"], site.publishers["watch"]
    phone.send(0, 10)
    watch.send(0, 5)  # late, and waited for
    site.until(lambda: 3.0 in site.seen(), "what both have is detected")
    assert site.seen() == {i / 2: BOTH for i in range(7)}
    watch.send(5, 5)
    site.until(lambda: 8.0 in site.seen(), "what came late is detected")
    assert set(site.seen().values()) == {BOTH} and len(site.seen()) == 17
    watch.close()
    del site.publishers["watch"]
    phone.send(10, 80)
    site.until(lambda: 88.0 in site.seen(), "it goes on with the phone")
    alone = {start: modalities for start, modalities in site.seen().items() if start > 8.5}
    assert set(alone.values()) <= {BOTH, ("phone_imu",)} and list(alone.values()).count(("phone_imu",)) > 150
    last = site.detections()[-1]
    assert (last.site, last.node, last.event is not None and last.event.missing) == ("s01", "both", ("watch_imu",))
    site.until(lambda: not site.metric("infomae_fusion_node_up", node="watch"), "the watch is told to be silent")
    assert [r.fields["node"] for r in caplog.records if r.message == "fused_node_silent"].count("watch") >= 1  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_fusing_node_that_starts_again_doubles_nothing_and_counts_what_is_late(site: Site) -> None:
    phone, watch = site.publishers["phone"], site.publishers["watch"]
    phone.send(0, 6)
    watch.send(0, 6)
    site.until(lambda: 4.0 in site.seen(), "the first seconds are detected")
    site.stop()  # what is published now the broker gives to nobody
    site.start()
    phone.send_again()  # windows up to 4.0 have been decided: 9 of each are late
    watch.send_again()
    late = {"node": "both", "reason": "late"}
    site.until(lambda: site.metric("infomae_windows_dropped_total", **late) == 2 * 9, "what comes again is late")
    phone.send(6, 90)  # the watch's part of this is more than WAIT_S away when it comes
    site.until(lambda: 94.0 in site.seen(), "the phone's are detected")
    watch.send(6, 4)
    site.until(lambda: site.metric("infomae_windows_dropped_total", **late) == 2 * 9 + 8, "the watch's are late")
    seen = site.seen()
    assert sorted(start for start in seen if start <= 4.0) == [i / 2 for i in range(9)]
    assert 94.0 in seen
