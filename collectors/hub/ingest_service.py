"""`hub ingest`: messages from the broker into the lake, then the acknowledgement back to the node."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final

import pyarrow

from collectors.hub.broker_watch import BrokerWatch
from collectors.hub.dead_letters import DeadLetters
from collectors.hub.ingest import Ingest, Outcome
from collectors.hub.subscriber import Subscriber
from infomae_stream.certificate_expiry import watch_own_certificate
from infomae_stream.clock import NS_PER_S, Clock, SystemClock
from infomae_stream.config import load_config
from infomae_stream.errors import ConnectionFailed, LakeError
from infomae_stream.failpoints import reached
from infomae_stream.hub_config import HubConfig
from infomae_stream.run_commands import ConfigOption
from infomae_stream.telemetry import EventLog, Telemetry, configure_logging
from infomae_stream.topics import ROOT
from storage.lake import Lake
from storage.torn_files import torn_seen

_FILTERS: Final = ("+/+/+/chunk", "+/+/+/gap", "+/+/detections")
_RETRY_S: Final = 1.0  # after a commit that the disk refused
_GAUGES_S: Final = 5.0
_log = EventLog("infomae.ingest")


def ingest(config: ConfigOption) -> None:
    """Run until SIGTERM or SIGINT; what was received by then is committed and acknowledged first."""
    configure_logging()
    # Arrow's own allocator keeps what it once had; on a small hub 15 MB matter more than its speed.
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    # Messages make no cycles; looking for some every 700 objects took a tenth of the time.
    gc.set_threshold(200_000, 20, 50)
    settings = load_config(config, HubConfig)
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    IngestService(settings, SystemClock()).run(stop)


class IngestService:
    """Raises LakeError when the lake cannot be opened, ConfigError when a file of the settings is missing."""

    def __init__(self, settings: HubConfig, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._telemetry = Telemetry()
        self._lake = Lake(settings.lake_path, clock)
        self._letters = _open_letters(settings)
        limits = settings.ingest
        self._ingest = Ingest(
            self._lake,
            self._letters,
            clock,
            commit_interval_s=limits.commit_interval_s,
            commit_bytes=limits.commit_bytes,
            max_inflight_bytes=limits.max_inflight_bytes,
            reserve_bytes=limits.reserve_bytes,
        )
        prefix = f"$share/{limits.shared_subscription}/" if limits.shared_subscription else ""
        self._session = Subscriber(
            settings.mqtt,
            # No queue at the broker: what it would keep for us the nodes send again anyway.
            f"hub-ingest-{os.urandom(4).hex()}",
            subscriptions=[(f"{prefix}{ROOT}/{leaf}", 1) for leaf in _FILTERS],
            max_incoming_bytes=max(1_000_000, limits.max_inflight_bytes // 4),
            base_dir=settings.base_dir,
        )
        watch_own_certificate(self._telemetry, settings.mqtt, settings.base_dir, "hub")
        # Without TLS there is nothing to count, and brokers on loopback publish no log.
        self._watch = BrokerWatch(settings.mqtt, settings.base_dir, self._telemetry) if settings.mqtt.ca_file else None
        # One thread writes and syncs a batch while this one receives and decodes the next.
        self._writer = ThreadPoolExecutor(1, "lake writer")
        self._storing: Future[Outcome] | None = None
        self._storing_since_ns = 0
        self._refused_since_ns: int | None = None  # the disk refuses commits since then
        self._retry_at_ns = 0
        self._gauges_at_ns = 0

    def run(self, stop: threading.Event) -> None:
        metrics = self._settings.metrics
        port = self._telemetry.serve(metrics.host, metrics.ingest_port)
        outboxes = self._lake.known_identities().outboxes()
        _log.info("ingest_started", lake=str(self._lake.path), outboxes=len(outboxes), metrics_port=port)
        self._session.start()
        if self._watch is not None:
            self._watch.start()
        try:
            while not stop.is_set():
                try:
                    self._turn(stop)
                except Exception:  # noqa: BLE001 - the outermost loop
                    _log.exception("ingest_turn_failed")
                    self._telemetry.counter("infomae_ingest_failures_total").labels(reason="turn").inc()
                    stop.wait(_RETRY_S)
            self._finish()
        finally:
            self._session.close()
            self._writer.shutdown()
            if self._watch is not None:
                self._watch.close()
            _log.info("ingest_stopped")

    def _turn(self, stop: threading.Event) -> None:
        """Receive until a commit is due or done. While the disk is slow or refuses, take what fits and no more."""
        wait_s = 0.5
        if self._storing is None:
            retry_s = (self._retry_at_ns - self._clock.monotonic_ns()) / NS_PER_S
            wait_s = max(0.0, min(0.5, max(self._ingest.seconds_until_due(), retry_s)))
        if self._ingest.has_room:
            self._receive(wait_s)
        elif self._storing is not None:
            # The session stops reading when its own queue is full too, and the data wait on the nodes' disks.
            wait([self._storing], wait_s)
        else:
            stop.wait(wait_s)
        if self._storing is not None and self._storing.done():
            self._settle(self._storing)
        now_ns = self._clock.monotonic_ns()
        if self._storing is None and self._ingest.seconds_until_due() == 0 and now_ns >= self._retry_at_ns:
            self._begin()
        self._refresh_gauges()

    def _finish(self) -> None:
        """Commit and acknowledge what was received; what the disk refuses now the nodes send again."""
        if self._storing is not None:
            self._settle(self._storing)
        self._receive(0.0)
        while self._ingest.inflight_bytes and self._refused_since_ns is None:
            self._begin()
            if self._storing is not None:
                self._settle(self._storing)

    def _receive(self, timeout_s: float) -> None:
        try:
            messages = self._session.poll(timeout_s)
        except ConnectionFailed as e:
            _log.warning("broker_trouble", error=str(e))
            return
        for message in messages:
            self._ingest.take(message.topic, message.payload)

    def _begin(self) -> None:
        """Give the next batch to the writer."""
        if not self._ingest.inflight_bytes:
            return
        self._storing_since_ns = self._clock.monotonic_ns()
        self._storing = self._writer.submit(self._ingest.store, self._ingest.seal(self._settings.ingest.commit_bytes))
        self._storing.add_done_callback(lambda _: self._session.interrupt())

    def _settle(self, storing: Future[Outcome]) -> None:
        """Wait for the batch, then acknowledge it, or note that the disk refuses it."""
        self._storing = None
        try:
            outcome = storing.result()
        except LakeError as e:
            self._note_refusal(e)
            return
        self._ingest.release()
        now_ns = self._clock.monotonic_ns()
        if self._refused_since_ns is not None:
            _log.info("commits_again", after_s=(now_ns - self._refused_since_ns) / NS_PER_S)
            self._refused_since_ns = None
        seconds = (now_ns - self._storing_since_ns) / NS_PER_S
        self._telemetry.histogram("infomae_ingest_commit_duration_seconds").observe(seconds)
        reached("ingest.before_ack")
        self._acknowledge(outcome)
        reached("ingest.after_ack")

    def _acknowledge(self, outcome: Outcome) -> None:
        for topic, payload in outcome.acks:
            if not self._session.publish_once(topic, payload):
                # The node sends the records again, and they are acknowledged then.
                self._telemetry.counter("infomae_ingest_failures_total").labels(reason="ack").inc()
        for name, count in outcome.counts.items():
            self._telemetry.counter("infomae_ingest_chunks_total").labels(outcome=name).inc(count)
        for reason, count in outcome.refused.items():
            self._telemetry.counter("infomae_dead_letters_total").labels(reason=reason).inc(count)
        if outcome.lag_s is not None:
            self._telemetry.gauge("infomae_ingest_lag_seconds").set(outcome.lag_s)

    def _note_refusal(self, error: LakeError) -> None:
        now_ns = self._clock.monotonic_ns()
        self._retry_at_ns = now_ns + round(_RETRY_S * NS_PER_S)
        self._telemetry.counter("infomae_ingest_failures_total").labels(reason="commit").inc()
        if self._refused_since_ns is None:
            self._refused_since_ns = now_ns
            _log.error("commit_refused", error=str(error), fix="nothing is acknowledged until the lake can be written")

    def _refresh_gauges(self) -> None:
        start_ns = self._clock.monotonic_ns()
        if start_ns < self._gauges_at_ns:
            return
        size, files = self._lake.size()
        self._telemetry.gauge("infomae_lake_bytes").set(size)
        self._telemetry.gauge("infomae_lake_files").set(files)
        self._telemetry.gauge("infomae_lake_torn_files").set(torn_seen())
        self._telemetry.gauge("infomae_disk_free_bytes").set(shutil.disk_usage(self._lake.path).free)
        # A walk through a large lake takes its time; never more than a fiftieth of ours.
        took_s = (self._clock.monotonic_ns() - start_ns) / NS_PER_S
        self._gauges_at_ns = start_ns + round(max(_GAUGES_S, 50 * took_s) * NS_PER_S)


def _open_letters(settings: HubConfig) -> DeadLetters:
    try:
        return DeadLetters(settings.dead_letter_path, settings.ingest.dead_letter_bytes)
    except OSError as e:
        raise LakeError(f"cannot make the folder: {e.strerror}", where=str(settings.dead_letter_path)) from e
