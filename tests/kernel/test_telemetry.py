from __future__ import annotations

import re

from prometheus_client import generate_latest

from infomae_stream.telemetry import METRICS, Telemetry
from tests.waiting import metrics_of

ALLOWED_LABELS = {
    "site", "node", "stream", "kind", "reason", "class", "version", "term", "outcome", "sha256",
}  # fmt: skip


def test_every_declared_metric_follows_the_conventions_and_can_be_made() -> None:
    telemetry = Telemetry()
    for name, (kind, text, labels, buckets) in METRICS.items():
        assert re.fullmatch(r"infomae_[a-z0-9_]+", name)
        assert (kind == "counter") == name.endswith("_total") or kind == "gauge"
        assert set(labels) <= ALLOWED_LABELS
        assert text.endswith(".")
        assert bool(buckets) == (kind == "histogram")
        getattr(telemetry, kind)(name)
    text = generate_latest(telemetry.registry).decode()
    assert "infomae_build_info" in text


def test_a_process_serves_its_metrics_on_the_port_it_tells() -> None:
    telemetry = Telemetry()
    telemetry.counter("infomae_ingest_chunks_total").labels(outcome="durable").inc(3)
    port = telemetry.serve("127.0.0.1", 0)
    assert 'infomae_ingest_chunks_total{outcome="durable"} 3.0' in metrics_of(port)
