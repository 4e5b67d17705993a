"""What the running processes tell about themselves: metrics, event logs, the aligner's status file, MQTT.

Nothing here is computed by the demo: every number comes from a process of the deployment.
"""

from __future__ import annotations

import http.client
import json
import urllib.request
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from infomae_stream.errors import InfomaeError, WireError
from infomae_stream.node_config import MqttSettings
from infomae_stream.session import MqttSession
from infomae_stream.topics import ROOT, parse_topic
from infomae_stream.types import Detection
from infomae_stream.wire import decode_detection, load_json

SCRAPE_TIMEOUT_S: Final = 1.0
KEPT_DETECTIONS: Final = 200
KEPT_EVENTS: Final = 200

Samples = dict[str, list[tuple[dict[str, str], float]]]


def parse_metrics(text: str) -> Samples:
    """Prometheus' text format as {sample name: [(labels, value)]}."""
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


def scrape(url: str) -> Samples:
    """The metrics at `url`; empty while nobody answers there, as between a crash and the restart."""
    try:
        with urllib.request.urlopen(url, timeout=SCRAPE_TIMEOUT_S) as answer:
            return parse_metrics(answer.read().decode())
    except (OSError, http.client.HTTPException, ValueError):  # it may also end in the middle of its answer
        return {}


@dataclass
class EventTail:
    """New lines of one process's JSON log since the last call; half a line waits for its end."""

    path: Path
    name: str
    _offset: int = 0
    _rest: bytes = b""

    def read(self) -> list[dict[str, Any]]:
        """Events in order, each with "process" added; a line that is no JSON becomes an event named "output"."""
        try:
            with self.path.open("rb") as log:
                log.seek(self._offset)
                new = log.read()
        except OSError:
            return []
        self._offset += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        return [self._event(line) for line in lines if line.strip()]

    def _event(self, line: bytes) -> dict[str, Any]:
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict) or "event" not in event:
            event = {"event": "output", "level": "output", "text": line.decode(errors="replace")[:300]}
        return {**event, "process": self.name}


@dataclass
class NodeFacts:
    site: str
    node: str
    samples: float = 0.0
    gap_s: float = 0.0
    connected: bool = False
    synchronised: bool = True
    uncertainty_s: float = 0.0
    outbox_bytes: float = 0.0
    bundle_version: int = 0
    bundle_state: str = ""
    detections: int = 0


@dataclass
class Facts:
    """All that is known at one moment; the view and the summary read it, nobody else writes it."""

    nodes: dict[str, NodeFacts] = field(default_factory=dict)
    ingest: Counter[str] = field(default_factory=Counter)
    lag_s: float = 0.0
    lake_bytes: float = 0.0
    dead_letters: float = 0.0
    windows: dict[str, int] = field(default_factory=dict)
    pairs: dict[str, int] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    detections: deque[Detection] = field(default_factory=lambda: deque(maxlen=KEPT_DETECTIONS))
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT_EVENTS))
    n_detections: int = 0
    inference_ms: float = 0.0
    answering: set[str] = field(default_factory=set)

    def node(self, site: str, node: str) -> NodeFacts:
        return self.nodes.setdefault(node, NodeFacts(site, node))

    @property
    def samples(self) -> float:
        return sum(n.samples for n in self.nodes.values())

    @property
    def outbox_bytes(self) -> float:
        return sum(n.outbox_bytes for n in self.nodes.values())


class Watcher:
    """Reads every source once a call of `update`; `metrics_urls` and `logs` are by process name."""

    def __init__(self, metrics_urls: dict[str, str], logs: dict[str, Path], status: Path, mqtt: MqttSettings) -> None:
        self.facts = Facts()
        self._urls = metrics_urls
        self._tails = [EventTail(path, name) for name, path in logs.items()]
        self._status = status
        self._session = MqttSession(
            mqtt,
            "demo-view",
            subscriptions=[(f"{ROOT}/+/+/detections", 0), (f"{ROOT}/+/+/bundle/observed", 1)],
        )
        self._session.start()

    def update(self, wait_s: float) -> list[dict[str, Any]]:
        """Take in what is new, waiting at most `wait_s` for MQTT; return the new events of the logs."""
        self._take_messages(wait_s)
        self.facts.answering.clear()
        for process, url in self._urls.items():
            samples = scrape(url)
            if samples:
                self.facts.answering.add(process)
                self._take_metrics(samples)
        events = sorted((e for tail in self._tails for e in tail.read()), key=lambda e: e.get("ts", 0.0))
        self.facts.events.extend(events)
        self._take_status()
        return events

    def close(self) -> None:
        self._session.close()

    def _take_messages(self, wait_s: float) -> None:
        try:
            messages = self._session.poll(wait_s)
        except InfomaeError:  # the broker is away; the session goes on trying
            return
        for message in messages:
            try:
                topic = parse_topic(message.topic)
                if topic.leaf == "detections":
                    detection = decode_detection(message.payload)
                    self.facts.detections.append(detection)
                    self.facts.n_detections += 1
                    self.facts.node(topic.site, topic.node).detections += 1
                elif topic.leaf == "bundle/observed":
                    observed = load_json(message.payload)
                    node = self.facts.node(topic.site, topic.node)
                    node.bundle_version, node.bundle_state = int(observed["version"]), str(observed["state"])
            except (WireError, KeyError, TypeError, ValueError) as e:
                self.facts.events.append(
                    {
                        "event": "unreadable_message",
                        "level": "warning",
                        "process": "view",
                        "topic": message.topic,
                        "error": str(e),
                    }
                )

    def _take_metrics(self, samples: Samples) -> None:
        for name, take in _NODE_METRICS.items():
            for labels, value in samples.get(name, ()):
                node = self.facts.node(labels["site"], labels["node"])
                setattr(node, take, type(getattr(node, take))(value))
        for name, take in _HUB_METRICS.items():
            for _, value in samples.get(name, ()):
                setattr(self.facts, take, value)
        for name, take, label in _HUB_COUNTS:
            if name in samples:
                setattr(self.facts, take, _by_label(samples[name], label))
        seconds = sum(v for _, v in samples.get("infomae_inference_duration_seconds_sum", ()))
        count = sum(v for _, v in samples.get("infomae_inference_duration_seconds_count", ()))
        if count:
            self.facts.inference_ms = 1000 * seconds / count

    def _take_status(self) -> None:
        try:
            status = json.loads(self._status.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not written yet, or being written
            return
        if isinstance(status, dict):
            self.facts.status = status


_NODE_METRICS: Final = {
    "infomae_stream_samples_total": "samples",
    "infomae_stream_gap_seconds_total": "gap_s",
    "infomae_mqtt_connected": "connected",
    "infomae_clock_synchronized": "synchronised",
    "infomae_clock_uncertainty_seconds": "uncertainty_s",
    "infomae_outbox_bytes": "outbox_bytes",
}
_HUB_METRICS: Final = {"infomae_ingest_lag_seconds": "lag_s", "infomae_lake_bytes": "lake_bytes"}
_HUB_COUNTS: Final = (
    ("infomae_ingest_chunks_total", "ingest", "outcome"),
    ("infomae_windows_total", "windows", "kind"),
    ("infomae_pair_candidates_total", "pairs", "outcome"),
)


def _by_label(samples: Iterable[tuple[dict[str, str], float]], label: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for labels, value in samples:
        counts[labels[label]] += int(value)
    return counts
