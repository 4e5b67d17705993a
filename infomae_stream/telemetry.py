"""Metrics and logs. One table declares every metric there is; a process may only use what stands in it.

Names, units and label sets follow Prometheus' conventions; no label ever holds a value from a payload.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from infomae_stream import __version__

RESTARTS: Final = "INFOMAE_RESTARTS"  # the supervisor tells a child so how often it has been started again
_NODE: Final = ("site", "node")
_STREAM: Final = ("site", "node", "stream")
_LAG_BUCKETS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_DURATION_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_SCORE_BUCKETS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

# name: (type, help, labels, buckets)
METRICS: Final[dict[str, tuple[str, str, tuple[str, ...], tuple[float, ...]]]] = {
    # node, collecting
    "infomae_stream_samples_total": ("counter", "Samples taken from the sensor.", _STREAM, ()),
    "infomae_stream_last_sample_timestamp_seconds": ("gauge", "Time of the newest sample.", _STREAM, ()),
    "infomae_stream_gap_seconds_total": ("counter", "Time without samples.", _STREAM, ()),
    "infomae_stream_rate_error_ratio": ("gauge", "Measured over declared rate, minus 1.", _STREAM, ()),
    "infomae_stream_clipped_samples_total": ("counter", "Samples at the end of the sensor's range.", _STREAM, ()),
    "infomae_stream_flatline_seconds_total": ("counter", "Time in which a channel did not move at all.", _STREAM, ()),
    "infomae_stream_alive": ("gauge", "1 while samples come.", _STREAM, ()),
    "infomae_sources_missing": ("gauge", "Configured sources that are not there.", _NODE, ()),
    "infomae_source_refused_total": (
        "counter",
        "Datagrams, rows, messages or samples that a source did not take, by reason.",
        (*_STREAM, "reason"),
        (),
    ),
    "infomae_chunks_dropped_total": ("counter", "Chunks not taken, by reason.", (*_NODE, "reason"), ()),
    "infomae_records_shed_total": ("counter", "Accepted records given up for want of room or for age.", _STREAM, ()),
    "infomae_samples_refused_total": ("counter", "Samples the source refused, by reason.", (*_STREAM, "reason"), ()),
    "infomae_messages_refused_total": ("counter", "Messages to the node that cannot be read.", (*_NODE, "reason"), ()),
    "infomae_step_failures_total": ("counter", "Steps of the node's loop that failed; see the log.", _NODE, ()),
    "infomae_records_resent_total": ("counter", "Records published again for want of an ack.", _NODE, ()),
    "infomae_clock_offset_seconds": ("gauge", "Offset of the node's clock as its time source tells.", _NODE, ()),
    "infomae_clock_uncertainty_seconds": ("gauge", "Uncertainty of the node's clock.", _NODE, ()),
    "infomae_clock_synchronized": ("gauge", "1 when the time source says so.", _NODE, ()),
    "infomae_clock_source_answers": ("gauge", "1 while the configured time source does, 0: the kernel.", _NODE, ()),
    "infomae_outbox_writable": ("gauge", "0 while the outbox takes nothing: disk full, broken or locked.", _NODE, ()),
    "infomae_outbox_failures_total": ("counter", "Steps that the outbox's disk or a lock failed.", _NODE, ()),
    "infomae_outbox_bytes": ("gauge", "Bytes in the outbox that wait for their ack.", _NODE, ()),
    "infomae_outbox_oldest_seconds": ("gauge", "Age of the oldest record without ack.", _NODE, ()),
    "infomae_mqtt_connected": ("gauge", "1 while connected to the broker.", _NODE, ()),
    "infomae_mqtt_reconnects_total": ("counter", "Connections after the first.", _NODE, ()),
    "infomae_mqtt_refusals_total": ("counter", "Refused by the broker, or it by us.", (*_NODE, "reason"), ()),
    # node, detecting
    "infomae_detections_total": ("counter", "Detections.", (*_NODE, "class", "version"), ()),
    "infomae_detection_score": ("histogram", "Score of the detected class.", _NODE, _SCORE_BUCKETS),
    "infomae_inference_duration_seconds": (
        "histogram",
        "Front end to head, one window.",
        (),
        _DURATION_BUCKETS,
    ),
    "infomae_inference_realtime_factor": ("gauge", "Compute time a second of data (1 = cannot keep up).", (), ()),
    "infomae_windows_dropped_total": ("counter", "Windows not looked at, by reason.", (*_NODE, "reason"), ()),
    "infomae_fusion_node_up": ("gauge", "1 while a node that another one fuses sends chunks.", _NODE, ()),
    "infomae_windows_suppressed_total": (
        "counter",
        "Windows that showed a class and came to no event: brief, cool_down.",
        (*_NODE, "reason"),
        (),
    ),
    "infomae_bundle_info": ("gauge", "1 for the bundle that serves.", ("version", "sha256"), ()),
    "infomae_bundle_precision": ("gauge", "1 for the graphs that serve, fp32 or int8.", ("kind",), ()),
    "infomae_bundle_missing_loss": ("gauge", "Macro-F1 lost without this modality, at release.", ("kind",), ()),
    "infomae_int8_refused_total": ("counter", "Bundles whose int8 graphs are not trusted here.", ("reason",), ()),
    "infomae_modality_present": ("gauge", "1 when it took part in the newest window.", (*_NODE, "kind"), ()),
    "infomae_bundle_healthy": ("gauge", "1 while one serves that would again after a restart.", (), ()),
    "infomae_bundle_rollbacks_total": ("counter", "Bundles refused or reverted, by reason.", ("reason",), ()),
    # hub
    "infomae_ingest_chunks_total": ("counter", "Records received, by outcome.", ("outcome",), ()),
    "infomae_ingest_lag_seconds": ("gauge", "From the node's acceptance to durability, newest commit.", (), ()),
    "infomae_ingest_commit_duration_seconds": ("histogram", "One lake commit.", (), _DURATION_BUCKETS),
    "infomae_ingest_failures_total": ("counter", "Steps that failed: commit, ack or turn.", ("reason",), ()),
    "infomae_broker_refusals_total": ("counter", "Clients that the broker turned away.", ("reason",), ()),
    "infomae_dead_letters_total": ("counter", "Messages refused for good, by reason.", ("reason",), ()),
    "infomae_windows_total": ("gauge", "Finished windows on the grid, by modality.", ("kind",), ()),
    "infomae_pairs_total": ("gauge", "Pairs in the lake.", (), ()),
    "infomae_pair_candidates_total": ("gauge", "Candidate pairs by outcome: paired, or the reason.", ("outcome",), ()),
    "infomae_pair_lag_seconds": ("histogram", "Lag between the windows of a pair.", (), _LAG_BUCKETS),
    "infomae_alignment_runs_total": ("counter", "Alignment runs by outcome.", ("outcome",), ()),
    "infomae_alignment_last_success_timestamp_seconds": ("gauge", "End of the last promoted run.", (), ()),
    "infomae_alignment_loss": ("gauge", "Last value of each loss term.", ("term",), ()),
    "infomae_alignment_macro_f1": ("gauge", "Macro-F1 on held-out sites, by protocol.", ("term",), ()),
    "infomae_lake_bytes": ("gauge", "Bytes of the lake.", (), ()),
    "infomae_lake_torn_files": ("gauge", "Files of the lake that are cut short and left out.", (), ()),
    "infomae_lake_files": ("gauge", "Files of the lake.", (), ()),
    "infomae_lake_compacted_bytes_total": ("counter", "Bytes that compaction wrote.", (), ()),
    "infomae_lake_copies_dropped_total": ("counter", "Physical duplicates that compaction left out.", (), ()),
    "infomae_lake_retired_records_total": ("counter", "Records taken out by retention.", ("reason",), ()),
    "infomae_lake_retired_bytes_total": ("counter", "Bytes of files taken out by retention.", ("reason",), ()),
    "infomae_lake_vacuumed_bytes_total": ("counter", "Bytes of deleted files that no version needed.", (), ()),
    "infomae_maintenance_failures_total": ("counter", "Failed steps: compact, retire, vacuum.", ("reason",), ()),
    "infomae_maintenance_last_success_timestamp_seconds": ("gauge", "End of the last whole round.", (), ()),
    # both
    "infomae_build_info": ("gauge", "1, with the version.", ("version",), ()),
    "infomae_config_last_reload_successful": ("gauge", "1 when the configuration in use is the one on disk.", (), ()),
    "infomae_certificate_expiry_timestamp_seconds": ("gauge", "When a TLS certificate ends.", ("node",), ()),
    "infomae_disk_free_bytes": ("gauge", "Free space where the state lives.", (), ()),
    "infomae_process_restarts_total": ("counter", "Starts of this process after the first.", (), ()),
    "infomae_process_resident_bytes": ("gauge", "Memory of this process.", (), ()),
}


class Telemetry:
    """This process's metrics. `counter("infomae_...")` and so on give the metric, made at its first use."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._made: dict[str, Counter | Gauge | Histogram] = {}
        self.gauge("infomae_build_info").labels(version=__version__).set(1)
        self.gauge("infomae_config_last_reload_successful").set(1)
        self.gauge("infomae_process_resident_bytes").set_function(resident_bytes)
        self.counter("infomae_process_restarts_total").inc(int(os.environ.get(RESTARTS, "0")))

    def counter(self, name: str) -> Counter:
        made = self._get(name)
        assert isinstance(made, Counter)
        return made

    def gauge(self, name: str) -> Gauge:
        made = self._get(name)
        assert isinstance(made, Gauge)
        return made

    def histogram(self, name: str) -> Histogram:
        made = self._get(name)
        assert isinstance(made, Histogram)
        return made

    def forget(self, **labels: str) -> None:
        """Drop every series that has these labels: what they name is gone, and its last words would stay for ever."""
        for metric in self._made.values():
            if set(labels) <= set(metric._labelnames):
                metric.remove_by_labels(labels)

    def serve(self, host: str, port: int) -> int:
        """Serve /metrics on a thread of its own; return the port (the one chosen when `port` is 0)."""
        server, _ = start_http_server(port, addr=host, registry=self.registry)
        return int(server.server_port)

    def _get(self, name: str) -> Counter | Gauge | Histogram:
        made = self._made.get(name)
        if made is None:
            made = self._made[name] = self._make(name)
        return made

    def _make(self, name: str) -> Counter | Gauge | Histogram:
        kind, text, labels, buckets = METRICS[name]
        if kind == "counter":
            return Counter(name, text, labels, registry=self.registry)
        if kind == "gauge":
            return Gauge(name, text, labels, registry=self.registry)
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)


def resident_bytes() -> float:
    """Resident memory of this process; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as f:
            return float(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0.0


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class HumanLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = " ".join(f"{k}={v}" for k, v in getattr(record, "fields", {}).items())
        trace = "\n" + self.formatException(record.exc_info) if record.exc_info else ""
        return f"{clock} {record.levelname.lower():7} {record.getMessage()} {fields}{trace}"


class EventLog:
    """One line a decision: a stable event name and its fields."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def info(self, event: str, **fields: Any) -> None:
        self._logger.info(event, extra={"fields": fields})

    def warning(self, event: str, **fields: Any) -> None:
        self._logger.warning(event, extra={"fields": fields})

    def error(self, event: str, **fields: Any) -> None:
        self._logger.error(event, extra={"fields": fields})

    def exception(self, event: str, **fields: Any) -> None:
        """As `error`, with the traceback of the exception being handled."""
        self._logger.exception(event, extra={"fields": fields})


def configure_logging(level: int = logging.INFO) -> None:
    """Lines to stderr: for people on a terminal, JSON otherwise."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(HumanLines() if sys.stderr.isatty() else JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
