"""The instants of a node that has no sensors: it subscribes to the chunks of other nodes of its site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from inference.fusion import FusionGatherer
from inference.instants import Instant, Position
from infomae_stream.bundle import ModalityContract
from infomae_stream.clock import NS_PER_S, Clock
from infomae_stream.errors import ConnectionFailed, WireError
from infomae_stream.node_config import FuseSettings, MqttSettings
from infomae_stream.session import Message, MqttSession
from infomae_stream.telemetry import EventLog, Telemetry
from infomae_stream.topics import ROOT, parse_topic
from infomae_stream.types import Chunk
from infomae_stream.wire import decode_chunk

_MAX_INCOMING_BYTES: Final = 8_000_000


class FusionFeed:
    """A `Feed` (inference/outbox_feed.py). What the broker gives us while we are away is lost to the fusion, and only
    to it; what it gives twice counts once. Listed nodes that say nothing for `silent_s` are told of in log and metric.

    mqtt: the settings of this node. stored: the position that was committed last; ValueError when it cannot be read.
    """

    def __init__(
        self,
        site: str,
        node: str,
        fuse: FuseSettings,
        mqtt: MqttSettings,
        base_dir: Path,
        stored: bytes | None,
        clock: Clock,
        telemetry: Telemetry,
        log: EventLog,
    ) -> None:
        self._site, self._node, self._fuse = site, node, fuse
        self._clock, self._telemetry, self._log = clock, telemetry, log
        # A clock that was ahead when this was stored must not make everything late.
        self._done_ns = -1 if stored is None else min(Position.load(stored).done_ns, clock.now_ns())
        self._gatherer: FusionGatherer | None = None
        self._heard_ns = dict.fromkeys(fuse.nodes, clock.monotonic_ns())
        self._up: dict[str, bool] = {}
        self._trouble = ""
        self._session = MqttSession(
            mqtt,
            f"{node}-fuse",
            subscriptions=[(f"{ROOT}/{site}/{name}/+/chunk", 1) for name in fuse.nodes],
            max_incoming_bytes=_MAX_INCOMING_BYTES,
            base_dir=base_dir,
        )
        self._session.start()

    def serve(self, contracts: Mapping[str, ModalityContract] | None) -> None:
        if self._gatherer is not None:
            self._done_ns = self._gatherer.done_ns
        self._gatherer = None
        if contracts is not None:
            fuse = self._fuse
            self._gatherer = FusionGatherer(contracts, self._done_ns, wait_s=fuse.wait_s, nodes=fuse.nodes)

    def read(self) -> tuple[int, list[Instant]]:
        chunks = [chunk for message in self._poll() if (chunk := self._decoded(message)) is not None]
        self._tell_who_is_up()
        if self._gatherer is None:
            return len(chunks), []
        now_ns = self._clock.now_ns()
        for chunk in chunks:
            self._gatherer.push(chunk, now_ns)
        return len(chunks), self._gatherer.ready(now_ns)

    def take_dropped(self) -> Counter[str]:
        return self._gatherer.take_dropped() if self._gatherer is not None else Counter()

    def position(self) -> bytes | None:
        return None if self._gatherer is None else Position(done_ns=self._gatherer.done_ns).dump()

    def close(self) -> None:
        self._session.close()

    def _poll(self) -> list[Message]:
        try:
            messages = self._session.poll(0.0)
        except ConnectionFailed as e:
            if str(e) != self._trouble:
                self._trouble = str(e)
                self._log.warning("broker_trouble", site=self._site, node=self._node, error=str(e))
            return []
        return messages

    def _decoded(self, message: Message) -> Chunk | None:
        try:
            topic = parse_topic(message.topic)
            chunk = decode_chunk(message.payload)
            spec = chunk.spec.id
            if (spec.site, spec.node, spec.stream) != (topic.site, topic.node, topic.stream):
                raise WireError("the chunk belongs to another topic", reason="identity", where=message.topic)
        except WireError as e:
            labels = {"site": self._site, "node": self._node, "reason": e.reason}
            self._telemetry.counter("infomae_messages_refused_total").labels(**labels).inc()
            self._log.warning("message_refused", site=self._site, node=self._node, topic=message.topic, error=str(e))
            return None
        self._heard_ns[topic.node] = self._clock.monotonic_ns()
        return chunk

    def _tell_who_is_up(self) -> None:
        now_ns = self._clock.monotonic_ns()
        for name, heard_ns in self._heard_ns.items():
            up = now_ns - heard_ns < self._fuse.silent_s * NS_PER_S
            if up == self._up.get(name):
                continue
            self._telemetry.gauge("infomae_fusion_node_up").labels(site=self._site, node=name).set(up)
            if not up:
                self._log.warning("fused_node_silent", site=self._site, node=name, effect="it goes on with the others")
            elif name in self._up:
                self._log.info("fused_node_back", site=self._site, node=name)
            self._up[name] = up
