"""`infomae-stream node collect`: every node of the configuration, in one process and one loop."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Annotated, Final

import typer

from collectors.clock_quality import ClockReader
from collectors.intake import Intake, read_position
from collectors.node import Node, make_session
from collectors.refusals import Refusals
from collectors.reopening import open_source
from collectors.sources import Source, SourceContext, check_options
from infomae_stream.clock import Clock, SystemClock
from infomae_stream.config import load_config
from infomae_stream.errors import ConfigError, SourceError
from infomae_stream.folders import make_folders
from infomae_stream.node_config import NodeConfig, NodeSettings
from infomae_stream.outbox import Outbox
from infomae_stream.shedding import SheddingPolicy, StreamRule
from infomae_stream.telemetry import EventLog, Telemetry, configure_logging

STEP_S: Final = 0.05
DRAIN_CHECK_STEPS: Final = 20


def collect(config: Annotated[Path, typer.Option("--config", help="The node's TOML file.")]) -> None:
    """Sensors into the outbox, outbox to the hub, until SIGINT or SIGTERM. What is not delivered waits on disk."""
    configure_logging()
    settings = load_config(config, NodeConfig)
    for n, node in enumerate(settings.nodes):
        for m, raw in enumerate(node.sources):
            check_options(raw, where=str(config), prefix=("nodes", str(n), "sources", str(m)))
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stop.set())
    Collector(settings, str(config), SystemClock()).run(stop)


class Collector:
    """Builds the nodes and steps them in turn."""

    def __init__(self, config: NodeConfig, where: str, clock: Clock) -> None:
        self._config, self._where, self._clock = config, where, clock
        self._log = EventLog("infomae.collect")
        self._telemetry = Telemetry()
        self._nodes: list[Node] = []

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set. A node whose step fails is logged with its traceback and stepped again later."""
        port = self._telemetry.serve(self._config.metrics.host, self._config.metrics.collect_port)
        self._log.info("collect_started", nodes=len(self._config.nodes), metrics=f"{self._config.metrics.host}:{port}")
        state_dir = self._config.path(self._config.state_dir)
        make_folders(state_dir)
        self._telemetry.gauge("infomae_disk_free_bytes").set_function(lambda: _free_bytes(state_dir))
        try:
            for index, node in enumerate(self._config.nodes):
                if stop.is_set():
                    break
                self._nodes.append(self._make_node(index, node))
                self._step_all()  # those that are there already do not wait for the rest
            self._loop(stop)
        finally:
            for made in self._nodes:
                self._close(made)
            self._log.info("collect_stopped")

    def _close(self, node: Node) -> None:
        try:
            node.close()
        except Exception:  # noqa: BLE001 - the others still have samples to commit
            self._log.exception("close_failed", site=node.site, node=node.name)

    def _loop(self, stop: threading.Event) -> None:
        finished = drained = False
        steps = 0
        while not stop.wait(STEP_S):
            self._step_all()
            steps += 1
            if steps % DRAIN_CHECK_STEPS:
                continue
            if not finished and all(node.finished for node in self._nodes):
                finished = True
                self._log.info("sources_finished", nodes=len(self._nodes))
            if finished and not drained and all(node.drained for node in self._nodes):
                drained = True
                self._log.info("outbox_drained", nodes=len(self._nodes))

    def _step_all(self) -> None:
        for node in self._nodes:
            try:
                node.step()
            except Exception:  # noqa: BLE001 - the outermost loop: one node's fault must not stop the others
                self._log.exception("step_failed", site=node.site, node=node.name)
                labels = {"site": node.site, "node": node.name}
                self._telemetry.counter("infomae_step_failures_total").labels(**labels).inc()

    def _make_node(self, index: int, settings: NodeSettings) -> Node:
        o = self._config.outbox
        path = self._config.outbox_path(settings)
        policy = shedding_policy(self._config, settings)
        outbox = Outbox.open(path, self._clock, max_bytes=o.max_bytes, reserve_bytes=o.reserve_bytes, shedding=policy)
        session = make_session(self._config, settings)

        def make_intake(outbox: Outbox) -> Intake:
            sources = self._make_sources(index, settings, outbox)
            if len(sources) == len(settings.sources):
                self._check_shedding(index, settings, outbox, sources)
            return Intake(
                sources,
                outbox,
                clock_quality=ClockReader(settings.clock, self._clock).read,
                offset_ns=round(settings.clock.offset_ms * 1e6) if settings.clock.source == "declared" else 0,
                telemetry=self._telemetry,
                log=self._log,
                site=settings.site,
                node=settings.node,
            )

        node = Node(self._config, settings, outbox, session, make_intake, self._clock, self._telemetry, self._log)
        session.start()
        return node

    def _check_shedding(self, index: int, settings: NodeSettings, outbox: Outbox, sources: list[Source]) -> None:
        """Raises ConfigError for a stream that no source gives and of which nothing was ever stored."""
        known = {spec.id.stream for source in sources for spec in source.specs()}
        known |= {spec.id.stream for spec in outbox.streams()}
        for stream in settings.shedding:
            if stream not in known:
                raise ConfigError(
                    f"nodes.{index}.shedding.{stream}: no such stream; known: {', '.join(sorted(known))}",
                    where=self._where,
                )

    def _make_sources(self, index: int, settings: NodeSettings, outbox: Outbox) -> list[Source]:
        """A source that cannot be opened is told of and left out: the node still serves what it has."""
        context = SourceContext(
            site=settings.site,
            node=settings.node,
            base_dir=self._config.base_dir,
            clock=self._clock,
            position=lambda stream: read_position(outbox, stream),
            refuse=Refusals(self._telemetry, self._log, self._clock, site=settings.site, node=settings.node),
        )
        sources = []
        for m, raw in enumerate(settings.sources):
            prefix = ("nodes", str(index), "sources", str(m))
            try:
                sources.append(open_source(raw, context, where=self._where, prefix=prefix))
            except SourceError as e:
                self._log.error("source_failed", site=settings.site, node=settings.node, reason=str(e))
        return sources


def shedding_policy(config: NodeConfig, node: NodeSettings) -> SheddingPolicy:
    """What `outbox.max_age_s` and `nodes.shedding` say."""
    rules = {stream: StreamRule(rule.priority, rule.max_age_s) for stream, rule in node.shedding.items()}
    return SheddingPolicy(config.outbox.max_age_s, rules)


def _free_bytes(path: Path) -> float:
    disk = os.statvfs(path)
    return float(disk.f_bavail * disk.f_frsize)
