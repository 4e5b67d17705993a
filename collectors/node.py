"""One node: sources -> outbox -> uplink, and what the hub says to it. Steps are short; the service calls them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

from collectors.clock_quality import ClockReader
from collectors.health import NodeHealth, missing_sources
from collectors.home_assistant import HomeAssistant
from collectors.intake import Intake
from collectors.shedding_report import SheddingReport
from collectors.sources import Source
from collectors.truth_log import TruthLog
from collectors.uplink import Uplink
from infomae_stream import __version__
from infomae_stream.certificate_expiry import watch_own_certificate
from infomae_stream.clock import NS_PER_S, Clock
from infomae_stream.errors import ConnectionFailed, OutboxError, WireError
from infomae_stream.failpoints import reached
from infomae_stream.node_config import NodeConfig, NodeSettings
from infomae_stream.outbox import Accepted, Outbox
from infomae_stream.session import Message, MqttSession
from infomae_stream.telemetry import EventLog, Telemetry
from infomae_stream.topics import node_topic, parse_topic
from infomae_stream.wire import REASONS, load_json

DESIRED: Final = "bundle_desired"
OBSERVED: Final = "bundle_observed"
PURGE_EVERY_NS: Final = 5 * NS_PER_S


def make_session(config: NodeConfig, node: NodeSettings) -> MqttSession:
    """The node's connection: acks and bundles come in, and the broker tells of its death."""
    return MqttSession(
        config.mqtt.for_node(node.node),
        node.node,
        subscriptions=[
            (node_topic(node.site, node.node, "ack"), 1),
            (node_topic(node.site, node.node, "bundle/desired"), 1),
        ],
        will=(node_topic(node.site, node.node, "status"), _status("offline"), True),
        base_dir=config.base_dir,
    )


class Node:
    """`step` moves everything that can move at once; `tick` does what is due once a commit interval."""

    def __init__(
        self,
        config: NodeConfig,
        settings: NodeSettings,
        outbox: Outbox,
        session: MqttSession,
        make_intake: Callable[[], Intake],
        clock_reader: ClockReader,
        clock: Clock,
        telemetry: Telemetry,
        log: EventLog,
        rng: random.Random | None = None,
    ) -> None:
        self._config, self._clock, self._telemetry, self._log = config, clock, telemetry, log
        self.site, self.name = settings.site, settings.node
        self._labels = {"site": settings.site, "node": settings.node}
        self._outbox = outbox
        # First of all, so that nothing can be acknowledged and deleted before it is written down.
        self._truth = self._open_truth_log()
        if self._truth:
            outbox.on_shed = self._truth.shed
        self._shedding = SheddingReport(clock, telemetry, log, **self._labels)
        self._clock_reader = clock_reader
        self._intake = make_intake()
        self.session = self._session = session
        self._health = NodeHealth(clock, telemetry, log, session, clock_reader, **self._labels)
        self._home_assistant = HomeAssistant(config.home_assistant, outbox, **self._labels)
        self._uplink = Uplink(
            outbox,
            clock,
            max_inflight_bytes=config.uplink.max_inflight_bytes,
            resend_after_s=config.uplink.resend_after_s,
            max_bytes_per_s=config.uplink.max_bytes_per_s,
            start_jitter_s=config.uplink.start_jitter_s,
            rng=rng,
        )
        watch_own_certificate(telemetry, config.mqtt.for_node(self.name), config.base_dir, self.name)
        self._next_commit_ns = clock.monotonic_ns()
        self._next_purge_ns = clock.monotonic_ns()
        self._met = -1  # the connection that the uplink knows of
        self._announced: tuple[object, ...] = ()
        self._said: dict[str, bytes] = {}  # what stands retained on this connection, by leaf

    def step(self) -> None:
        """Take samples, commit when it is time, read the hub's words, publish what may go."""
        now_ns = self._clock.monotonic_ns()
        due = now_ns >= self._next_commit_ns
        if due:
            self._next_commit_ns = max(
                self._next_commit_ns + round(self._config.outbox.commit_interval_s * NS_PER_S), now_ns
            )
        try:
            self._intake.poll()
            if due or self._intake.commit_is_due:
                self._commit()
            self._listen()
            self._publish()
            if due:
                self._tick(now_ns)
        except OutboxError as e:
            # A lock, a full or a failing disk: the sensors go on, and the next step tries again.
            self._health.outbox_failed(e)
        if due:
            self._health.measure(self._intake, self._outbox, self._uplink.resent)

    @property
    def finished(self) -> bool:
        return self._intake.finished

    @property
    def drained(self) -> bool:
        return self._outbox.unacked_bytes() == 0

    @property
    def sources(self) -> Sequence[Source]:
        return self._intake.sources

    @property
    def samples_taken(self) -> int:
        return self._intake.samples_taken

    def summary(self) -> tuple[int, int, int, bool]:
        """Streams, those alive, sources that are missing, and whether the broker is there."""
        missing = len(missing_sources(self._intake))
        return self._health.streams, self._health.alive, missing, self._session.connected

    def settle(self) -> None:
        """Commit all there is, also what is in the making. Raises OutboxError: then it waits for the next commit."""
        self._take_in(self._intake.settle())

    def withdraw(self) -> None:
        """This node is no more: a last word to Home Assistant."""
        self._home_assistant.withdraw(self._session)

    def close(self, keep: Collection[Source] = (), *, keep_session: bool = False) -> None:
        """Commit what is in the making, say good-bye, close the files; what is kept stays open, for another node."""
        try:
            self._listen()  # acks that are here already need not come again
            accepted = self._intake.close(keep)
            if self._truth:
                self._truth.add(accepted)
            self._outbox.write_acks()
        except OutboxError as e:
            self._log.error("outbox_failed", **self._labels, reason=str(e))
        finally:
            if self._truth:
                self._truth.close()
            if not keep_session:
                if self._session.connected:
                    self._session.publish(self._topic("status"), _status("offline"), retain=True)
                self._session.close(timeout_s=1.0)
            self._health.close()
            self._outbox.close()

    def _commit(self) -> None:
        if self._truth:
            self._truth.catch_up()  # what another process committed and this commit may shed
        self._take_in(self._intake.commit())
        self._outbox.write_acks()  # those that no commit took along
        self._shedding.add(self._outbox.take_shed())

    def _take_in(self, accepted: list[Accepted]) -> None:
        if self._truth:
            self._truth.add(accepted)
        if accepted:
            self._health.outbox_worked()

    def _listen(self) -> None:
        try:
            messages = self._session.poll(0.0)
        except ConnectionFailed as e:
            self._log.error("mqtt_refused", **self._labels, reason=str(e))
            return
        for message in messages:
            try:
                self._hear(message)
            except WireError as e:
                self._telemetry.counter("infomae_messages_refused_total").labels(**self._labels, reason=e.reason).inc()
                self._log.warning("message_refused", **self._labels, topic=message.topic, reason=str(e))

    def _hear(self, message: Message) -> None:
        leaf = parse_topic(message.topic).leaf
        if leaf == "ack":
            result = self._uplink.handle_ack(message.payload)
            if result.strange:
                self._telemetry.counter("infomae_messages_refused_total").labels(**self._labels, reason="content").inc()
                self._log.warning("ack_of_other_content", **self._labels, fix="was this outbox copied to another node?")
            for reason, count in result.refused.items():
                known = f"hub_{reason}" if reason in REASONS else "hub_other"
                self._telemetry.counter("infomae_chunks_dropped_total").labels(**self._labels, reason=known).inc(count)
                self._log.error("records_refused_by_hub", **self._labels, reason=reason[:80], count=count)
        elif leaf == "bundle/desired" and message.payload != self._outbox.get_state(DESIRED):
            desired = load_json(message.payload)
            if not isinstance(desired.get("version"), int) or not all(
                isinstance(desired.get(key), str) for key in ("sha256", "url")
            ):
                raise WireError("a wanted bundle needs version, sha256 and url", reason="schema", where=message.topic)
            # The detector reads it there; it has no connection of its own.
            self._outbox.set_state(DESIRED, message.payload)
            self._log.info("bundle_desired", **self._labels, version=desired["version"])

    def _publish(self) -> None:
        if not self._session.connected:
            return
        if self._met != self._session.reconnects:
            self._uplink.connected()
            self._met = self._session.reconnects
        specs, missing = self._intake.specs, missing_sources(self._intake)
        known = (self._session.reconnects, missing, [spec.id.stream for spec in specs])
        if self._announced != known and self._announce(missing):
            self._announced = known
        for record in self._uplink.due():
            if not self._session.publish(record.topic, record.payload):
                return
            self._uplink.sent(record)
            reached("uplink.after_publish")

    def _announce(self, missing: list[str]) -> bool:
        """After every connection anew (a broker without a store forgets what it retained), and when a sensor came."""
        quality = self._clock_reader.read()
        birth = {
            "v": 1,
            "streams": [spec.to_dict() for spec in self._intake.specs],
            "missing": missing,
            "version": __version__,
            "clock": {
                "source": quality.source,
                "offset_ns": quality.offset_ns,
                "uncertainty_ns": quality.uncertainty_ns,
                "synchronised": quality.synchronised,
            },
        }
        self._said.clear()
        return (
            self._say("birth", json.dumps(birth).encode())
            and self._say("status", self._health.status(self._intake))
            and self._home_assistant.announce(self._session)
        )

    def _say(self, leaf: str, payload: bytes) -> bool:
        """Retained, once a connection; False when the session takes no more now."""
        if self._said.get(leaf) != payload:
            if not self._session.publish(self._topic(leaf), payload, retain=True):
                return False
            self._said[leaf] = payload
        return True

    def _tick(self, now_ns: int) -> None:
        if self._session.connected and self._announced:
            self._say("status", self._health.status(self._intake))
            observed = self._outbox.get_state(OBSERVED)
            if observed is not None:
                self._say("bundle/observed", observed)
        if now_ns >= self._next_purge_ns:
            self._next_purge_ns = now_ns + PURGE_EVERY_NS
            self._outbox.purge(self._config.outbox.keep_s)
            self._outbox.shed_expired()

    def _open_truth_log(self) -> TruthLog | None:
        if not self._config.truth_log_dir:
            return None
        return TruthLog(truth_log_path(self._config, self.name), self._outbox, site=self.site, node=self.name)

    def _topic(self, leaf: str) -> str:
        return node_topic(self.site, self.name, leaf)


def _status(state: str) -> bytes:
    return json.dumps({"v": 1, "state": state}).encode()


def truth_log_path(config: NodeConfig, node: str) -> Path:
    """Where the truth log of `node` stands when `truth_log_dir` is set."""
    return config.path(config.truth_log_dir) / f"{node}.jsonl"
