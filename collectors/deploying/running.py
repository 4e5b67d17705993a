"""A node that runs already: what its own metrics say. Its sensors must not be opened a second time."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from collectors.deploying.finding import Finding, bad, good, warn
from infomae_stream.node_config import NodeConfig

TIMEOUT_S: Final = 3.0
PROMPT_S: Final = 5.0  # a hub that is well has acknowledged by then: it commits every second

Sample = tuple[Mapping[str, str], float]


class RunningNode:
    """The metrics of `node collect`, as they were at one moment."""

    def __init__(self, text: str) -> None:
        self.at_s = time.monotonic()
        self._families = {family.name: family for family in text_string_to_metric_families(text)}

    def samples(self, name: str) -> list[Sample]:
        """Labels and value of each sample of the gauge `name`; empty when it is not there."""
        family = self._families.get(name)
        return [] if family is None else [(sample.labels, sample.value) for sample in family.samples]

    def value(self, name: str, site: str, node: str) -> float | None:
        """Of one node; None when it is not told."""
        wanted = {"site": site, "node": node}
        return next((value for labels, value in self.samples(name) if labels == wanted), None)


def running_node(config: NodeConfig) -> RunningNode | None:
    """None when no collecting process of this configuration answers."""
    host, port = config.metrics.host, config.metrics.collect_port
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            node = RunningNode(answer.read().decode())
    except (OSError, ValueError):
        return None
    return node if node.samples("infomae_build_info") else None


def check_streams(node: RunningNode, config: NodeConfig) -> Iterator[Finding]:
    """Whether each stream moves, and which sources are not there."""
    for labels, alive in node.samples("infomae_stream_alive"):
        check = f"sensor {labels['node']}/{labels['stream']}"
        if alive:
            yield good(check, "samples move (as the running node says)")
        else:
            fix = "is it plugged in? `journalctl -u infomae-node` says since when; docs/sensors.md has its table"
            yield bad(check, "no samples come (as the running node says)", fix)
    for settings in config.nodes:
        missing = node.value("infomae_sources_missing", settings.site, settings.node)
        if missing:
            fix = "`journalctl -u infomae-node | grep source_failed` says why and what to do"
            yield bad(f"sensor {settings.node}", f"{missing:g} of {len(settings.sources)} sources are not there", fix)


def check_hub(before: RunningNode, config: NodeConfig, prompt_s: float) -> Iterator[Finding]:
    """Whether the hub acknowledges: what waited at `before` must be gone when `prompt_s` have passed since."""
    time.sleep(max(before.at_s + prompt_s - time.monotonic(), 0))
    now = running_node(config)
    for settings in config.nodes:
        check = f"hub {settings.node}"
        of_node = settings.site, settings.node
        connected = None if now is None else now.value("infomae_mqtt_connected", *of_node)
        waits_s = None if now is None else now.value("infomae_outbox_oldest_seconds", *of_node)
        if now is None or connected is None or waits_s is None:
            yield bad(check, "the node does not answer any more", "journalctl -u infomae-node")
        elif not connected:
            yield bad(
                check, f"the node is offline; its oldest record waits for {waits_s:.0f} s", "see the broker's line"
            )
        elif waits_s > now.at_s - before.at_s:
            fix = "is `hub ingest` running? after a long outage this is the backlog, and shrinks"
            yield warn(check, f"connected, and a record waits for {waits_s:.0f} s for its acknowledgement", fix)
        else:
            yield good(check, f"acknowledges; the oldest record that waits is {waits_s:.1f} s old")
