"""`node detect`: the outboxes of the hosted nodes -> detections, back into them. Needs no network."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Final

from inference.bundle_keeper import BundleKeeper
from inference.detector import Detector
from inference.hosted_node import HostedNode
from inference.instants import Instant
from inference.runtimes import make_runtime
from infomae_stream.bundle import load_public_key
from infomae_stream.bundle_store import BundleStore
from infomae_stream.clock import NS_PER_S, Clock, SystemClock
from infomae_stream.config import load_config
from infomae_stream.errors import BundleError, OutboxError
from infomae_stream.node_config import NodeConfig
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
        for node in self._nodes:
            node.outbox.close()

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
        """Every node goes on with the bundle that the keeper has now. What was seen so far is committed first."""
        self.commit()
        self._detector = self._keeper.detector
        for node in self._nodes:
            node.serve(None if self._detector is None else self._detector.bundle.manifest.modalities)

    def _step_node(self, node: HostedNode) -> int:
        try:
            n_chunks, instants = node.read()
        except OutboxError as e:
            # One node's broken file must not silence its neighbours.
            node.warn("outbox_unreadable", e)
            return 0
        for instant in instants:
            self._look(node, instant)
        for reason, count in node.take_dropped().items():
            self._count_dropped(node, reason, count)
        return n_chunks

    def _look(self, node: HostedNode, instant: Instant) -> None:
        detector = self._detector
        if detector is None or self._clock.now_ns() - instant.accepted_ns > self._max_lag_ns:
            self._count_dropped(node, "lag" if detector else "runtime", len(instant.windows))
            return
        begun_ns = self._clock.monotonic_ns()
        try:
            look = detector.look(instant.windows)
        except BundleError as e:
            self._count_dropped(node, "runtime", len(instant.windows))
            self._keeper.revert(e, self._nodes)
            self._detector = None  # until the nodes' windows are cut as the next bundle wants them
            return
        taken_ns = self._clock.monotonic_ns() - begun_ns
        if look.ran:
            self._busy_ns += taken_ns
            self._instants += 1
            self._looked_at.add(node.node)
            self._telemetry.histogram("infomae_inference_duration_seconds").observe(taken_ns / NS_PER_S)
        for reason, count in look.dropped.items():
            self._count_dropped(node, reason, count)
        if look.draft is None:
            return
        draft, bundle = look.draft, detector.bundle
        node.put(draft, bundle)
        labels = {"site": node.site, "node": node.node}
        self._telemetry.counter("infomae_detections_total").labels(
            **labels, **{"class": draft.label, "version": str(bundle.version)}
        ).inc()
        self._telemetry.histogram("infomae_detection_score").labels(**labels).observe(draft.scores[draft.label])

    def _count_dropped(self, node: HostedNode, reason: str, count: int) -> None:
        if count:
            self._telemetry.counter("infomae_windows_dropped_total").labels(node.site, node.node, reason).inc(count)

    def _report(self, now_ns: int) -> None:
        if self._detector is not None and self._instants:
            hop_s = next(iter(self._detector.bundle.manifest.modalities.values())).hop_s
            data_s = self._instants * hop_s / len(self._looked_at)  # the nodes' seconds pass at the same time
            factor = self._busy_ns / NS_PER_S / data_s
            self._telemetry.gauge("infomae_inference_realtime_factor").set(factor)
        self._telemetry.gauge("infomae_disk_free_bytes").set(shutil.disk_usage(self._keeper.store.directory).free)
        self._reported_ns, self._busy_ns, self._instants, self._looked_at = now_ns, 0, 0, set()


def make_loop(settings: NodeConfig, clock: Clock, telemetry: Telemetry, log: EventLog) -> DetectLoop:
    """Raises ConfigError for a key file or a runtime that is not there, OutboxError or BundleError for a bad file."""
    keys = [load_public_key(settings.path(key)) for key in settings.detect.trusted_keys]
    if not keys:
        log.warning("no_trusted_keys", effect="every bundle is refused", setting="detect.trusted_keys")
    runtime = make_runtime(settings.detect.runtime, settings.detect.threads)
    nodes = []
    for node in settings.nodes:
        outbox = Outbox.open(
            settings.outbox_path(node),
            clock,
            max_bytes=settings.outbox.max_bytes,
            reserve_bytes=settings.outbox.reserve_bytes,
        )
        nodes.append(HostedNode(node.site, node.node, outbox, log))
    keeper = BundleKeeper(BundleStore(settings.bundle_dir), keys, runtime, clock, telemetry, log)
    return DetectLoop(nodes, keeper, clock, telemetry, max_lag_s=settings.detect.max_lag_s)


def detect(config: ConfigOption) -> None:
    """Detect on all nodes of the file, until SIGTERM or SIGINT."""
    settings = load_config(config, NodeConfig)
    configure_logging()
    log = EventLog("infomae.detect")
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stop.set())
    telemetry = Telemetry()
    loop = make_loop(settings, SystemClock(), telemetry, log)
    port = telemetry.serve(settings.metrics.host, settings.metrics.detect_port)
    log.info("detect_started", nodes=len(settings.nodes), metrics_port=port)
    while not stop.is_set():
        n_chunks = loop.step(stop.is_set)
        if n_chunks == 0:
            stop.wait(POLL_S)
    loop.commit()
    loop.close()
    log.info("detect_stopped")
