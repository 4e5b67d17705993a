"""Builds a node from its configuration: outbox, session, sources, intake. What a reload keeps is handed over."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from collectors.clock_quality import ClockReader
from collectors.intake import Intake, read_position
from collectors.node import Node, make_session
from collectors.refusals import Refusals
from collectors.reopening import Reopening, open_source, source_key
from collectors.sources import Position, Source, SourceContext, check_options
from infomae_stream.clock import Clock
from infomae_stream.config import load_config
from infomae_stream.errors import ConfigError
from infomae_stream.node_config import NodeConfig, NodeSettings
from infomae_stream.outbox import Outbox
from infomae_stream.session import MqttSession
from infomae_stream.shedding import SheddingPolicy, StreamRule
from infomae_stream.telemetry import EventLog, Telemetry

Name = tuple[str, str]  # site, node


def read_config(path: Path) -> NodeConfig:
    """The file, checked with all sources' options; nothing is opened. Raises ConfigError."""
    config = load_config(path, NodeConfig)
    for n, node in enumerate(config.nodes):
        for m, raw in enumerate(node.sources):
            check_options(raw, where=str(path), prefix=("nodes", str(n), "sources", str(m)))
    return config


def name_of(node: NodeSettings) -> Name:
    return node.site, node.node


class Builder:
    """where: the configuration's file, for messages."""

    def __init__(self, where: str, clock: Clock, telemetry: Telemetry, log: EventLog) -> None:
        self._where, self._clock, self._telemetry, self._log = where, clock, telemetry, log
        # Sources outlive the outbox that they were opened with.
        self._outboxes: dict[Name, Outbox] = {}

    def session(self, config: NodeConfig, settings: NodeSettings) -> MqttSession:
        """Not started. Raises ConfigError for a file that cannot be read."""
        return make_session(config, settings)

    def build(
        self, config: NodeConfig, settings: NodeSettings, session: MqttSession, kept: Sequence[Source] = ()
    ) -> Node:
        """A node that may be stepped. kept: sources of its predecessor that go on.

        Raises OutboxError, ConfigError for a stream that nobody gives, SourceError for one that two sources give.
        """
        o = config.outbox
        outbox = Outbox.open(
            config.outbox_path(settings),
            self._clock,
            max_bytes=o.max_bytes,
            reserve_bytes=o.reserve_bytes,
            shedding=shedding_policy(config, settings),
        )
        self._outboxes[name_of(settings)] = outbox
        clock_reader = ClockReader(settings.clock, self._clock)
        sources: list[Source] = []

        def make_intake() -> Intake:
            sources.extend(self._sources(config, settings, kept))
            self._check_shedding(config, settings, outbox, sources)
            return Intake(
                sources,
                outbox,
                clock_quality=clock_reader.read,
                offset_ns=round(settings.clock.offset_ms * 1e6) if settings.clock.source == "declared" else 0,
                telemetry=self._telemetry,
                log=self._log,
                site=settings.site,
                node=settings.node,
            )

        try:
            return Node(
                config, settings, outbox, session, make_intake, clock_reader, self._clock, self._telemetry, self._log
            )
        except BaseException:
            for opened in sources:
                if opened not in kept:
                    opened.close()
            clock_reader.close()
            outbox.close()
            raise

    def _sources(self, config: NodeConfig, settings: NodeSettings, kept: Sequence[Source]) -> list[Source]:
        name = name_of(settings)

        def position(stream: str) -> Position | None:
            return read_position(self._outboxes[name], stream)

        context = SourceContext(
            site=settings.site,
            node=settings.node,
            base_dir=config.base_dir,
            clock=self._clock,
            position=position,
            refuse=Refusals(self._telemetry, self._log, self._clock, site=settings.site, node=settings.node),
        )
        by_key = {source.key: source for source in kept if isinstance(source, Reopening)}
        sources: list[Source] = []
        try:
            for m, raw in enumerate(settings.sources):
                prefix = ("nodes", str(config.nodes.index(settings)), "sources", str(m))
                running = by_key.get(source_key(raw))
                sources.append(running or open_source(raw, context, where=self._where, prefix=prefix))
        except BaseException:
            for opened in sources:
                if opened not in kept:
                    opened.close()
            raise
        return sources

    def _check_shedding(
        self, config: NodeConfig, settings: NodeSettings, outbox: Outbox, sources: Sequence[Source]
    ) -> None:
        """Raises ConfigError for a stream that no source gives and of which nothing was ever stored."""
        if not all(source.specs() for source in sources):
            return  # one is not there yet, and nobody knows what it will give
        known = {spec.id.stream for source in sources for spec in source.specs()}
        known |= {spec.id.stream for spec in outbox.streams()}
        for stream in settings.shedding:
            if stream not in known:
                index = config.nodes.index(settings)
                raise ConfigError(
                    f"nodes.{index}.shedding.{stream}: no such stream; known: {', '.join(sorted(known))}",
                    where=self._where,
                )


def connection_print(config: NodeConfig, settings: NodeSettings) -> str:
    """Changes when the connection has to be made anew, also when only a file's content has: a renewed certificate."""
    mqtt = config.mqtt.for_node(settings.node)
    digest = hashlib.sha256(mqtt.model_dump_json().encode())
    for name in (mqtt.password_file, mqtt.ca_file, mqtt.cert_file, mqtt.key_file):
        if name:
            try:
                digest.update((config.base_dir / name).read_bytes())
            except OSError:
                digest.update(b"unreadable")
    return digest.hexdigest()


def shedding_policy(config: NodeConfig, node: NodeSettings) -> SheddingPolicy:
    """What `outbox.max_age_s` and `nodes.shedding` say."""
    rules = {stream: StreamRule(rule.priority, rule.max_age_s) for stream, rule in node.shedding.items()}
    return SheddingPolicy(config.outbox.max_age_s, rules)
