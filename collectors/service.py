"""`infomae-stream node collect`: every node of the configuration, in one process and one loop."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Annotated, Final

import typer

from collectors.assembly import Builder, Name, connection_print, name_of, read_config
from collectors.node import Node
from collectors.reload import Changes, compare
from collectors.reopening import Reopening, source_key
from infomae_stream.clock import NS_PER_S, Clock, SystemClock
from infomae_stream.errors import ConfigError, InfomaeError
from infomae_stream.folders import make_folders
from infomae_stream.node_config import NodeConfig, NodeSettings
from infomae_stream.sd_notify import Notifier
from infomae_stream.session import MqttSession
from infomae_stream.telemetry import EventLog, Telemetry, configure_logging

STEP_S: Final = 0.05
STEPS_A_LOOK: Final = 20  # once a second: is everything drained, do samples move, what does systemd hear
STATUS_EVERY_NS: Final = 2 * NS_PER_S
_RELOADED: Final = "infomae_config_last_reload_successful"


def collect(config: Annotated[Path, typer.Option("--config", help="The node's TOML file.")]) -> None:
    """Sensors into the outbox, outbox to the hub, until SIGINT or SIGTERM. What is not delivered waits on disk.

    SIGHUP reads the file anew.
    """
    configure_logging()
    stop, hang_up = threading.Event(), threading.Event()
    # Before the file is read, so that no change of it can be missed.
    signal.signal(signal.SIGHUP, lambda *_: hang_up.set())
    settings = read_config(config)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stop.set())
    Collector(settings, str(config), SystemClock()).run(stop, hang_up)


class Collector:
    """Builds the nodes and steps them in turn. where: the file, which a reload reads again."""

    def __init__(self, config: NodeConfig, where: str, clock: Clock) -> None:
        self._config, self._where, self._clock = config, where, clock
        self._log = EventLog("infomae.collect")
        self._telemetry = Telemetry()
        self._notifier = Notifier(self._log)
        self._builder = Builder(where, clock, self._telemetry, self._log)
        self._nodes: dict[Name, Node] = {}
        self._connections: dict[Name, str] = {}
        self._finished = self._drained = False
        self._moved = 0  # samples, at the last look
        self._status_ns, self._status_samples = clock.monotonic_ns(), 0  # of the last status line

    def run(self, stop: threading.Event, hang_up: threading.Event | None = None) -> None:
        """Until `stop` is set; `hang_up` asks for a reload. A node whose step fails is logged and stepped again."""
        port = self._telemetry.serve(self._config.metrics.host, self._config.metrics.collect_port)
        self._log.info("collect_started", nodes=len(self._config.nodes), metrics=f"{self._config.metrics.host}:{port}")
        state_dir = self._config.path(self._config.state_dir)
        make_folders(state_dir)
        self._telemetry.gauge("infomae_disk_free_bytes").set_function(lambda: _free_bytes(state_dir))
        try:
            for node in self._config.nodes:
                if stop.is_set():
                    break
                self._add(self._config, node)
                self._step_all()  # those that are there already do not wait for the rest
            self._notifier.ready("collecting")
            self._loop(stop, hang_up or threading.Event())
        finally:
            for made in self._nodes.values():
                self._close(made)
            self._log.info("collect_stopped")

    def _close(self, node: Node) -> None:
        try:
            node.close()
        except Exception:  # noqa: BLE001 - the others still have samples to commit
            self._log.exception("close_failed", site=node.site, node=node.name)

    def _loop(self, stop: threading.Event, hang_up: threading.Event) -> None:
        steps = 0
        while not stop.wait(STEP_S):
            if hang_up.is_set():
                hang_up.clear()
                self._reload()
            self._step_all()
            steps += 1
            if steps % STEPS_A_LOOK == 0:
                self._look()

    def _look(self) -> None:
        nodes = self._nodes.values()
        if not self._finished and all(node.finished for node in nodes):
            self._finished = True
            self._log.info("sources_finished", nodes=len(nodes))
        if self._finished and not self._drained and all(node.drained for node in nodes):
            self._drained = True
            self._log.info("outbox_drained", nodes=len(nodes))
        moved = sum(node.samples_taken for node in nodes)
        # Any stream that moves will do: one that stalls alone is no reason to stop the others, and has its own alarm.
        if moved != self._moved or self._finished:
            self._notifier.alive()
        self._moved = moved
        since_ns = self._clock.monotonic_ns() - self._status_ns
        if since_ns >= STATUS_EVERY_NS:
            self._notifier.status(self._status_line(max(moved - self._status_samples, 0) / since_ns * NS_PER_S))
            self._status_ns, self._status_samples = self._clock.monotonic_ns(), moved

    def _status_line(self, rate_hz: float) -> str:
        told = [node.summary() for node in self._nodes.values()]
        streams, alive, missing = (sum(t[i] for t in told) for i in range(3))
        connected = sum(t[3] for t in told)
        broker = "broker connected" if connected == len(told) else f"{connected} of {len(told)} nodes at the broker"
        absent = f", {missing} sources missing" if missing else ""
        return f"{rate_hz:.0f} samples/s, {alive} of {streams} streams alive{absent}, {broker}"

    def _step_all(self) -> None:
        for node in self._nodes.values():
            try:
                node.step()
            except Exception:  # noqa: BLE001 - the outermost loop: one node's fault must not stop the others
                self._log.exception("step_failed", site=node.site, node=node.name)
                labels = {"site": node.site, "node": node.name}
                self._telemetry.counter("infomae_step_failures_total").labels(**labels).inc()

    def _add(self, config: NodeConfig, settings: NodeSettings, session: MqttSession | None = None) -> None:
        session = session or self._builder.session(config, settings)
        try:
            self._nodes[name_of(settings)] = self._builder.build(config, settings, session)
        except BaseException:
            session.close()
            raise
        self._connections[name_of(settings)] = connection_print(config, settings)
        session.start()

    # -- reload --------------------------------------------------------------------------------------------------------

    def _reload(self) -> None:
        """Take over what the file says now; when it cannot be, the last good configuration stays."""
        self._notifier.reloading()
        sessions: dict[Name, MqttSession] = {}
        try:
            changes = compare(self._config, read_config(Path(self._where)), self._connections)
            for node in [node for node in changes.rebuilt if name_of(node) in changes.reconnected] + changes.added:
                sessions[name_of(node)] = self._builder.session(changes.config, node)
            for node in changes.rebuilt:
                self._nodes[name_of(node)].settle()  # a disk that fails is met before anything is closed
        except InfomaeError as e:
            for session in sessions.values():
                session.close()
            self._reload_failed(e)
            good = False
        else:
            good = self._apply(changes, sessions)
        self._telemetry.gauge(_RELOADED).set(good)
        self._notifier.ready()

    def _reload_failed(self, error: InfomaeError, **labels: str) -> None:
        event = "config_rejected" if isinstance(error, ConfigError) else "reload_failed"
        self._log.error(event, **labels, reason=str(error), effect="the last good configuration stays")

    def _apply(self, changes: Changes, sessions: dict[Name, MqttSession]) -> bool:
        """True when everything that the file says is in use now; a node that cannot be built stays as it was."""
        in_use = {name_of(node): node for node in changes.config.nodes}
        for name in changes.removed:
            gone = self._nodes.pop(name)
            gone.withdraw()
            self._close(gone)
            self._telemetry.forget(site=gone.site, node=gone.name)
        failed = False
        for node in [*changes.rebuilt, *changes.added]:
            name = name_of(node)
            before = next((n for n in self._config.nodes if name_of(n) == name), None)
            try:
                if before is None:
                    self._add(changes.config, node, sessions[name])
                else:
                    self._rebuild(changes.config, node, before, sessions.get(name))
            except InfomaeError as e:
                self._reload_failed(e, site=node.site, node=node.node)
                failed = True
                if before is None:
                    del in_use[name]
                else:
                    in_use[name], self._connections[name] = before, ""  # the next reload tries again
        self._config = changes.config.model_copy(update={"nodes": list(in_use.values())})
        self._finished = self._drained = False
        names = {"added": map(name_of, changes.added), "rebuilt": map(name_of, changes.rebuilt)}
        told = {what: ["/".join(name) for name in given] for what, given in names.items()}
        self._log.info("config_reloaded", **told, removed=["/".join(name) for name in changes.removed])
        if changes.need_restart:
            self._log.warning("config_needs_restart", keys=changes.need_restart, effect="their old values stay")
        return not failed and not changes.need_restart

    def _rebuild(
        self, config: NodeConfig, settings: NodeSettings, before: NodeSettings, session: MqttSession | None
    ) -> None:
        """Close the node and build it anew; sources that say the same go on, and so does an unchanged connection.

        Raises InfomaeError with the old node in place.
        """
        name, old = name_of(settings), self._nodes[name_of(settings)]
        wanted = {source_key(raw) for raw in settings.sources}
        kept = [source for source in old.sources if isinstance(source, Reopening) and source.key in wanted]
        old.close(kept, keep_session=session is None)
        used = session or old.session
        error: InfomaeError | None = None
        try:
            made = self._builder.build(config, settings, used, kept)
            self._connections[name] = connection_print(config, settings)
        except InfomaeError as e:
            error = e
            if session is not None:
                session.close()
                session = used = self._builder.session(self._config, before)
            made = self._builder.build(self._config, before, used, kept)
        self._nodes[name] = made
        if session is not None:
            session.start()
        if error is not None:
            raise error


def _free_bytes(path: Path) -> float:
    disk = os.statvfs(path)
    return float(disk.f_bavail * disk.f_frsize)
