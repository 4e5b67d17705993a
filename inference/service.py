"""`node detect`: the outboxes of the hosted nodes -> detections, back into them. Needs no network."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Final

from inference.bundle_keeper import BundleKeeper
from inference.bundle_watch import BundleWatch
from inference.detector import Detector, Seen
from inference.events import Draft
from inference.hosted_node import POSITION_STATE, HostedNode
from inference.instants import Instant, Position
from inference.outbox_feed import Feed, OutboxFeed
from inference.reload import reloaded
from inference.runtimes import make_runtime
from inference.trigger_gate import TriggerGate, plan_triggers
from infomae_stream.bundle import load_public_key
from infomae_stream.bundle_store import BundleStore
from infomae_stream.clock import NS_PER_S, Clock, SystemClock
from infomae_stream.config import load_config
from infomae_stream.errors import BundleError, OutboxError
from infomae_stream.node_config import NodeConfig, NodeSettings
from infomae_stream.outbox import Outbox
from infomae_stream.run_commands import ConfigOption
from infomae_stream.telemetry import EventLog, Telemetry, configure_logging

POLL_S: Final = 0.3
COMMIT_S: Final = 1.0
_REPORT_S: Final = 5.0


class DetectLoop:
    """All hosted nodes share one detector. `step` does what there is to do and returns; the caller paces it."""

    def __init__(
        self,
        nodes: Sequence[HostedNode],
        keeper: BundleKeeper,
        clock: Clock,
        telemetry: Telemetry,
        *,
        max_lag_s: float,
    ) -> None:
        self._nodes = nodes
        self._keeper = keeper
        self._watch = BundleWatch(keeper, clock, telemetry, EventLog("infomae.detect"))
        self._clock = clock
        self._telemetry = telemetry
        self._max_lag_ns = round(max_lag_s * NS_PER_S)
        self._committed_ns = self._reported_ns = clock.monotonic_ns()
        self._busy_ns = self._instants = 0
        self._looked_at: set[str] = set()  # nodes since the last report
        self._detector: Detector | None = None
        self._serve()

    def step(self, stopping: Callable[[], bool] = lambda: False) -> int:
        """Read, detect, once a second commit; return how many chunks were read. `stopping` ends it between nodes."""
        if self._keeper.tend(self._nodes):
            self._serve()
        read = 0
        for node in self._nodes:
            if stopping():
                break
            read += self._step_node(node)
            now_ns = self._clock.monotonic_ns()
            if now_ns - self._committed_ns >= COMMIT_S * NS_PER_S:
                self.commit()
            if now_ns - self._reported_ns >= _REPORT_S * NS_PER_S:
                self._report(now_ns)
        return read

    def wait_for_install(self, timeout_s: float) -> None:
        """Let an install that is under way come to its end, and serve what it brought."""
        if self._keeper.wait(timeout_s, self._nodes):
            self._serve()

    def close(self) -> None:
        """Close the outboxes; what was not committed will be detected again."""
        self._keeper.close()
        for node in self._nodes:
            node.close()

    def commit(self) -> None:
        self._committed_ns = self._clock.monotonic_ns()
        for node in self._nodes:
            try:
                self._count_dropped(node, "outbox_full", node.commit())
            except OutboxError as e:
                lost = node.give_up_uncommitted()
                self._count_dropped(node, "outbox_error", lost)
                node.warn("commit_failed", e)

    def _serve(self) -> None:
        """Every node goes on with the bundle that the keeper has now; its open events end under the one before."""
        self._detector = self._keeper.detector
        for node in self._nodes:
            self._put(node, node.serve(None if self._detector is None else self._detector.bundle))
        self.commit()

    def _step_node(self, node: HostedNode) -> int:
        try:
            n_chunks, instants = node.read()
        except OutboxError as e:
            # One node's broken file must not silence its neighbours.
            node.warn("outbox_unreadable", e)
            return 0
        for instant in instants:
            seen = self._look(node, instant)
            self._put(node, node.observe(instant.start_ns, seen))
        self._put(node, node.end_idle())
        for reason, count in node.take_dropped().items():
            self._count_dropped(node, reason, count)
        for reason, count in node.take_suppressed().items():
            self._telemetry.counter("infomae_windows_suppressed_total").labels(node.site, node.node, reason).inc(count)
        return n_chunks

    def _look(self, node: HostedNode, instant: Instant) -> Seen | None:
        """What the detector sees in it; None when nobody looked, which is counted."""
        detector = self._detector
        if detector is None or self._clock.now_ns() - instant.accepted_ns > self._max_lag_ns:
            self._count_dropped(node, "lag" if detector else "runtime", len(instant.windows))
            return None
        begun_ns = self._clock.monotonic_ns()
        self._instants += 1
        self._looked_at.add(node.node)
        if node.gate.quiet(instant.windows):
            self._busy_ns += self._clock.monotonic_ns() - begun_ns
            self._count_dropped(node, "quiet", len(instant.windows))
            return None
        try:
            look = detector.look(instant.windows)
        except BundleError as e:
            self._count_dropped(node, "runtime", len(instant.windows))
            if self._keeper.failed(e, self._nodes):
                self._detector = None  # until the nodes' windows are cut as the next bundle wants them
            return None
        taken_ns = self._clock.monotonic_ns() - begun_ns
        self._busy_ns += taken_ns
        if look.seen is not None:
            self._telemetry.histogram("infomae_inference_duration_seconds").observe(taken_ns / NS_PER_S)
        for reason, count in look.dropped.items():
            self._count_dropped(node, reason, count)
        if self._keeper.passed(look, taken_ns, self._nodes):
            self._detector = None  # as above
        return look.seen

    def _put(self, node: HostedNode, drafts: Sequence[Draft]) -> None:
        node.put(drafts)
        labels = {"site": node.site, "node": node.node}
        for draft in drafts:
            kind = {"class": draft.label, "version": str(draft.bundle_version)}
            self._telemetry.counter("infomae_detections_total").labels(**labels, **kind).inc()
            self._telemetry.histogram("infomae_detection_score").labels(**labels).observe(draft.event.peak_score)

    def _count_dropped(self, node: HostedNode, reason: str, count: int) -> None:
        if count:
            self._telemetry.counter("infomae_windows_dropped_total").labels(node.site, node.node, reason).inc(count)

    def _report(self, now_ns: int) -> None:
        if self._detector is not None and self._instants:
            hop_s = next(iter(self._detector.bundle.manifest.modalities.values())).hop_s
            data_s = self._instants * hop_s / len(self._looked_at)  # the nodes' seconds pass at the same time
            factor = self._busy_ns / NS_PER_S / data_s
            self._telemetry.gauge("infomae_inference_realtime_factor").set(factor)
        self._watch.look()
        self._telemetry.gauge("infomae_disk_free_bytes").set(shutil.disk_usage(self._keeper.store.directory).free)
        self._reported_ns, self._busy_ns, self._instants, self._looked_at = now_ns, 0, 0, set()


def make_loop(settings: NodeConfig, clock: Clock, telemetry: Telemetry, log: EventLog) -> DetectLoop:
    """Raises ConfigError for a key file, a runtime or a trigger that is not there, OutboxError or BundleError for a bad
    file."""
    keys = [load_public_key(settings.path(key)) for key in settings.detect.trusted_keys]
    if not keys:
        log.warning("no_trusted_keys", effect="every bundle is refused", setting="detect.trusted_keys")
    runtime = make_runtime(settings.detect.runtime, settings.detect.threads)
    plans = plan_triggers(settings, "the node's file")
    nodes = [_make_node(settings, node, TriggerGate(plans), clock, telemetry, log) for node in settings.nodes]
    keeper = BundleKeeper(
        BundleStore(settings.bundle_dir),
        keys,
        runtime,
        clock,
        telemetry,
        log,
        precision=settings.detect.precision,
        trial_windows=settings.detect.trial_windows,
        max_realtime_factor=settings.detect.max_realtime_factor,
    )
    return DetectLoop(nodes, keeper, clock, telemetry, max_lag_s=settings.detect.max_lag_s)


def _make_node(
    settings: NodeConfig, node: NodeSettings, gate: TriggerGate, clock: Clock, telemetry: Telemetry, log: EventLog
) -> HostedNode:
    outbox = Outbox.open(
        settings.outbox_path(node),
        clock,
        max_bytes=settings.outbox.max_bytes,
        reserve_bytes=settings.outbox.reserve_bytes,
    )

    def feed(stored: bytes | None) -> Feed:
        if node.fuse is None:
            return OutboxFeed(outbox, stored)
        from inference.fusion_feed import FusionFeed  # only who fuses needs MQTT in this process

        mqtt = settings.mqtt.for_node(node.node)
        return FusionFeed(node.site, node.node, node.fuse, mqtt, settings.base_dir, stored, clock, telemetry, log)

    try:
        made = feed(outbox.get_state(POSITION_STATE))
    except ValueError as e:
        log.warning("position_unreadable", site=node.site, node=node.node, error=str(e))
        last_seq = outbox.last_seq()
        made = feed(Position(last_seq + 1, last_seq).dump())
    return HostedNode(node.site, node.node, outbox, made, gate, settings.detect.events, clock, log)


def detect(config: ConfigOption) -> None:
    """Detect on all nodes of the file, until SIGTERM or SIGINT. SIGHUP reads the file anew."""
    configure_logging()
    log = EventLog("infomae.detect")
    stop, hang_up = threading.Event(), threading.Event()
    # Before the file is read, so that no change of it can be missed.
    signal.signal(signal.SIGHUP, lambda *_: hang_up.set())
    settings = load_config(config, NodeConfig)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stop.set())
    telemetry = Telemetry()

    def make(wanted: NodeConfig) -> DetectLoop:
        return make_loop(wanted, SystemClock(), telemetry, log)

    loop = make(settings)
    port = telemetry.serve(settings.metrics.host, settings.metrics.detect_port)
    log.info("detect_started", nodes=len(settings.nodes), metrics_port=port)
    while not stop.is_set():
        if hang_up.is_set():
            hang_up.clear()
            loop, settings = reloaded(loop, settings, config, make, telemetry, log)
        n_chunks = loop.step(stop.is_set)
        if n_chunks == 0:
            stop.wait(POLL_S)
    loop.commit()
    loop.close()
    log.info("detect_stopped")
