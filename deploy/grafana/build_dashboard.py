"""The Grafana dashboard as code: `python deploy/grafana/build_dashboard.py` writes dashboards/infomae.json.

The JSON is committed, so that a provisioned Grafana needs no Python; a test compares it with what this file says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

OUTPUT: Final = Path(__file__).parent / "dashboards" / "infomae.json"
GRID_WIDTH: Final = 24
NODES: Final = '{site=~"$site",node=~"$node"}'


@dataclass(frozen=True)
class Query:
    promql: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """`kind` is Grafana's panel type; `width` is in columns of GRID_WIDTH; `unit` is Grafana's unit id."""

    title: str
    text: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 7
    maximum: float | None = None


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


ROWS: Final = (
    Row(
        "At a glance",
        (
            Panel("Nodes connected", "Nodes that have a session with the broker.",
                  (Query("sum(infomae_mqtt_connected)"),), kind="stat", width=4, height=4),
            Panel("Samples a second", "Taken from all sensors.",
                  (Query("sum(rate(infomae_stream_samples_total[$__rate_interval]))"),), "cps", "stat", 4, 4),
            Panel("Pairs", "Pairs in the lake that alignment may use.",
                  (Query("infomae_pairs_total"),), kind="stat", width=4, height=4),
            Panel("Detections a second", "Over all nodes.",
                  (Query("sum(rate(infomae_detections_total[$__rate_interval]))"),), "cps", "stat", 4, 4),
            Panel("Bundle in service", "Version that detectors serve; two numbers mean that nodes differ.",
                  (Query("count by (version) (infomae_bundle_info == 1)", "v{{version}}"),),
                  kind="stat", width=4, height=4),
            Panel("Refused for good", "Dead letters at the hub; each lies in the lake's _dead_letters folder.",
                  (Query("sum(infomae_dead_letters_total) or vector(0)"),), kind="stat", width=4, height=4),
        ),
    ),
    Row(
        "Sensors and nodes",
        (
            Panel("Samples", "Samples a second of each node.",
                  (Query(f"sum by (node) (rate(infomae_stream_samples_total{NODES}[$__rate_interval]))", "{{node}}"),),
                  "cps"),
            Panel("Newest sample", "Age of the newest sample. Replayed recordings are as old as they are.",
                  (Query(f"time() - infomae_stream_last_sample_timestamp_seconds{NODES}", "{{node}}/{{stream}}"),),
                  "s"),
            Panel("Streams alive", "1 while samples come.",
                  (Query(f"infomae_stream_alive{NODES}", "{{node}}/{{stream}}"),)),
            Panel("Sources missing", "Configured, and not there: never found, or lost.",
                  (Query(f"infomae_sources_missing{NODES}", "{{node}}"),)),
            Panel("Outbox failures", "Steps that a failing or locked disk stopped; not writable: it takes nothing.",
                  (Query(f"rate(infomae_outbox_failures_total{NODES}[$__rate_interval])", "{{node}} failures/s"),
                   Query(f"infomae_outbox_writable{NODES}", "{{node}} writable"))),
            Panel("Time source", "1 while chrony or gpsd answers, where one is configured.",
                  (Query(f"infomae_clock_source_answers{NODES}", "{{node}}"),)),
            Panel("Gaps", "Seconds without samples, and chunks that a node could not take.",
                  (Query(f"sum by (node) (infomae_stream_gap_seconds_total{NODES})", "{{node}} gaps, s"),
                   Query(f"sum by (node, reason) (infomae_chunks_dropped_total{NODES})", "{{node}} {{reason}}"))),
            Panel("Shed", "Accepted records that a full outbox gave up; each lies inside a gap record.",
                  (Query(f"sum by (node, stream) (infomae_records_shed_total{NODES})", "{{node}}/{{stream}}"),)),
            Panel("Samples refused at the source", "Backward or repeated times, values out of range.",
                  (Query(f"sum by (node, reason) (infomae_samples_refused_total{NODES})", "{{node}} {{reason}}"),)),
            Panel("Refused by sensors' drivers", "Datagrams, rows or messages that a source did not take; see the log.",
                  (Query(f"sum by (node, stream, reason) (infomae_source_refused_total{NODES})",
                         "{{node}}/{{stream}} {{reason}}"),)),
            Panel("Clipped and flat", "Samples at the end of the range; seconds in which a channel did not move.",
                  (Query(f"sum by (node, stream) (infomae_stream_clipped_samples_total{NODES})",
                         "{{node}}/{{stream}} clipped"),
                   Query(f"sum by (node, stream) (infomae_stream_flatline_seconds_total{NODES})",
                         "{{node}}/{{stream}} flat, s"))),
            Panel("Rate error", "Measured over declared rate, minus 1.",
                  (Query(f"infomae_stream_rate_error_ratio{NODES}", "{{node}}/{{stream}}"),), "percentunit"),
            Panel("Clock offset", "As the node's time source tells; windows off by more than 50 ms make no pairs.",
                  (Query(f"infomae_clock_offset_seconds{NODES}", "{{node}}"),
                   Query(f"infomae_clock_uncertainty_seconds{NODES}", "{{node}} ±")), "s"),
            Panel("Clocks not synchronised", "Nodes whose time source says so.",
                  (Query(f"infomae_clock_synchronized{NODES} == 0", "{{node}}"),), kind="table"),
            Panel("Outbox", "Bytes that wait for the hub's acknowledgement.",
                  (Query(f"infomae_outbox_bytes{NODES}", "{{node}}"),), "bytes"),
            Panel("Oldest record without acknowledgement", "How far the hub is behind this node.",
                  (Query(f"infomae_outbox_oldest_seconds{NODES}", "{{node}}"),), "s"),
            Panel("Connections", "1 while connected; the count of connections made again.",
                  (Query(f"infomae_mqtt_connected{NODES}", "{{node}}"),
                   Query(f"infomae_mqtt_reconnects_total{NODES}", "{{node}} again"))),
            Panel("Connections refused", "By reason: certificates, ACL, and what the broker told of others.",
                  (Query(f"sum by (node, reason) (infomae_mqtt_refusals_total{NODES})", "{{node}} {{reason}}"),
                   Query("sum by (reason) (infomae_broker_refusals_total)", "broker: {{reason}}"))),
            Panel("Days until a certificate ends", "Each node's own, the hub's, and the broker's.",
                  (Query("(infomae_certificate_expiry_timestamp_seconds - time()) / 86400", "{{node}}"),)),
            Panel("Sent again", "Records a second that were published once more for want of an acknowledgement.",
                  (Query(f"sum by (node) (rate(infomae_records_resent_total{NODES}[$__rate_interval]))", "{{node}}"),),
                  "cps"),
            Panel("Trouble on nodes", "Steps of the loop that failed, and messages that could not be read.",
                  (Query(f"sum by (node) (infomae_step_failures_total{NODES})", "{{node}} steps"),
                   Query(f"sum by (node, reason) (infomae_messages_refused_total{NODES})", "{{node}} {{reason}}"))),
        ),
    ),
    Row(
        "Hub: ingest and lake",
        (
            Panel("Records by outcome", "Records a second that reached the hub.",
                  (Query("sum by (outcome) (rate(infomae_ingest_chunks_total[$__rate_interval]))", "{{outcome}}"),),
                  "cps"),
            Panel("Ingest lag", "From a node's acceptance to durability in the lake, newest commit.",
                  (Query("infomae_ingest_lag_seconds"),), "s"),
            Panel("Commit duration", "One lake commit: segment, fsync, rename, Delta log.",
                  (Query("histogram_quantile(0.5, sum by (le) "
                         "(rate(infomae_ingest_commit_duration_seconds_bucket[$__rate_interval])))", "median"),
                   Query("histogram_quantile(0.95, sum by (le) "
                         "(rate(infomae_ingest_commit_duration_seconds_bucket[$__rate_interval])))", "95 %")), "s"),
            Panel("Ingest failures", "Steps that failed and are tried again; nothing is acknowledged meanwhile.",
                  (Query("sum by (reason) (infomae_ingest_failures_total)", "{{reason}}"),)),
            Panel("Dead letters", "Messages refused for good, by reason.",
                  (Query("sum by (reason) (infomae_dead_letters_total)", "{{reason}}"),)),
            Panel("Lake size", "All tables.", (Query("infomae_lake_bytes"),), "bytes"),
            Panel("Lake files", "Many small files slow reads down.", (Query("infomae_lake_files"),)),
            Panel("Lake maintenance", "Bytes a second: written by compaction, retired by reason, deleted by vacuum.",
                  (Query("rate(infomae_lake_compacted_bytes_total[$__rate_interval])", "compacted"),
                   Query("sum by (reason) (rate(infomae_lake_retired_bytes_total[$__rate_interval]))",
                         "retired: {{reason}}"),
                   Query("rate(infomae_lake_vacuumed_bytes_total[$__rate_interval])", "deleted")), "Bps"),
            Panel("Retired records", "Taken out by retention, by reason.",
                  (Query("sum by (reason) (infomae_lake_retired_records_total)", "{{reason}}"),)),
            Panel("Maintenance trouble", "Failed steps, and copies of records that compaction left out.",
                  (Query("sum by (reason) (infomae_maintenance_failures_total)", "{{reason}}"),
                   Query("infomae_lake_copies_dropped_total", "copies"))),
            Panel("Last whole maintenance", "Time since then.",
                  (Query("time() - infomae_maintenance_last_success_timestamp_seconds"),), "s", "stat", 4),
        ),
    ),
    Row(
        "Hub: pairs and alignment",
        (
            Panel("Windows", "Finished windows on the grid, by modality.",
                  (Query("sum by (kind) (infomae_windows_total)", "{{kind}}"),)),
            Panel("Pairs by outcome", "Candidates that became pairs, and why the others were refused.",
                  (Query("sum by (outcome) (infomae_pair_candidates_total)", "{{outcome}}"),), kind="bargauge"),
            Panel("Lag of pairs", "Between the clocks of the windows of a pair.",
                  (Query("histogram_quantile(0.5, sum by (le) (infomae_pair_lag_seconds_bucket))", "median"),
                   Query("histogram_quantile(0.95, sum by (le) (infomae_pair_lag_seconds_bucket))", "95 %")), "s"),
            Panel("Macro-F1 on held-out sites", "Before and after alignment, beside the baselines.",
                  (Query("infomae_alignment_macro_f1", "{{term}}"),), "percentunit", "bargauge", maximum=1),
            Panel("Losses", "Last value of each term of training.", (Query("infomae_alignment_loss", "{{term}}"),)),
            Panel("Alignment runs", "Runs by outcome.",
                  (Query("sum by (outcome) (infomae_alignment_runs_total)", "{{outcome}}"),), kind="stat", width=4),
            Panel("Last promoted run", "Time since then.",
                  (Query("time() - infomae_alignment_last_success_timestamp_seconds"),), "s", "stat", 4),
        ),
    ),
    Row(
        "Detection",
        (
            Panel("Detections by class", "A second, over all nodes.",
                  (Query(f"sum by (class) (rate(infomae_detections_total{NODES}[$__rate_interval]))", "{{class}}"),),
                  "cps"),
            Panel("Score", "Score of the detected class.",
                  (Query("histogram_quantile(0.5, sum by (le) "
                         f"(rate(infomae_detection_score_bucket{NODES}[$__rate_interval])))", "median"),
                   Query("histogram_quantile(0.1, sum by (le) "
                         f"(rate(infomae_detection_score_bucket{NODES}[$__rate_interval])))", "lowest tenth")),
                  "percentunit", maximum=1),
            Panel("Inference duration", "Front end to head, one window.",
                  (Query("histogram_quantile(0.5, sum by (le) "
                         "(rate(infomae_inference_duration_seconds_bucket[$__rate_interval])))", "median"),
                   Query("histogram_quantile(0.95, sum by (le) "
                         "(rate(infomae_inference_duration_seconds_bucket[$__rate_interval])))", "95 %")), "s"),
            Panel("Real-time factor", "Compute a second of data; at 1 the detector cannot keep up.",
                  (Query("infomae_inference_realtime_factor", "{{instance}}"),), "percentunit"),
            Panel("Windows dropped", "Windows not looked at, by reason.",
                  (Query(f"sum by (node, reason) (infomae_windows_dropped_total{NODES})", "{{node}} {{reason}}"),)),
            Panel("Windows without an event", "They showed a class, and were too few, or too soon after an event.",
                  (Query(f"sum by (node, reason) (infomae_windows_suppressed_total{NODES})", "{{node}} {{reason}}"),)),
            Panel("Fused nodes", "1 while a node that another one listens to sends chunks.",
                  (Query(f"infomae_fusion_node_up{NODES}", "{{node}}"),)),
            Panel("Bundles", "The bundle that each detector serves.",
                  (Query("infomae_bundle_info == 1", "{{instance}} v{{version}} {{sha256}}"),), kind="table"),
            Panel("Bundle healthy", "1 while one serves that would again after a restart.",
                  (Query("infomae_bundle_healthy", "{{instance}}"),)),
            Panel("Modalities present", "1 when it took part in the newest window; 0 also without such a sensor.",
                  (Query(f"infomae_modality_present{NODES}", "{{node}} {{kind}}"),)),
            Panel("What a missing modality costs", "Macro-F1 lost without it, measured when the bundle was released.",
                  (Query("infomae_bundle_missing_loss", "{{instance}} without {{kind}}"),), "percentunit"),
            Panel("Precision that serves", "int8 where the golden vectors prove it, else fp32; refusals by reason.",
                  (Query("infomae_bundle_precision == 1", "{{instance}} {{kind}}"),
                   Query("sum by (reason) (infomae_int8_refused_total)", "int8 refused: {{reason}}"))),
            Panel("Bundles refused or reverted", "By reason.",
                  (Query("sum by (reason) (infomae_bundle_rollbacks_total)", "{{reason}}"),)),
        ),
    ),
    Row(
        "Processes",
        (
            Panel("Memory", "Resident memory of each process.",
                  (Query("infomae_process_resident_bytes", "{{process}} {{instance}}"),), "bytes"),
            Panel("Free disk", "Where each process keeps its state.",
                  (Query("infomae_disk_free_bytes", "{{process}} {{instance}}"),), "bytes"),
            Panel("Restarts", "Starts of each process after its first.",
                  (Query("infomae_process_restarts_total", "{{process}} {{instance}}"),)),
            Panel("Configuration in use", "1 when it is the one on disk.",
                  (Query("infomae_config_last_reload_successful", "{{process}} {{instance}}"),), width=4),
            Panel("Versions", "Of the program.",
                  (Query("count by (version) (infomae_build_info)", "{{version}}"),), kind="stat", width=4),
        ),
    ),
)  # fmt: skip


def dashboard(rows: tuple[Row, ...] = ROWS) -> dict[str, Any]:
    """Grafana's JSON of `rows`; panels fill each line from the left and wrap at GRID_WIDTH."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        panels.append({"id": len(panels) + 1, "type": "row", "title": row.title, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": GRID_WIDTH, "h": 1}})  # fmt: skip
        y, x, line_height = y + 1, 0, 0
        for panel in row.panels:
            if x + panel.width > GRID_WIDTH:
                x, y, line_height = 0, y + line_height, 0
            panels.append({"id": len(panels) + 1, **_panel(panel, x, y)})
            x, line_height = x + panel.width, max(line_height, panel.height)
        y += line_height
    return {
        "uid": "infomae-stream",
        "title": "infomae-stream",
        "description": "One recording travels from a sensor to a detection.",
        "tags": ["infomae"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
                _variable("site", "label_values(infomae_stream_samples_total, site)"),
                _variable("node", 'label_values(infomae_stream_samples_total{site=~"$site"}, node)'),
            ]
        },
        "panels": panels,
    }


def queries(rows: tuple[Row, ...] = ROWS) -> list[tuple[str, str]]:
    """Every (panel title, PromQL) of the dashboard."""
    return [(panel.title, query.promql) for row in rows for panel in row.panels for query in panel.queries]


def _panel(panel: Panel, x: int, y: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0 if panel.maximum else None, "max": panel.maximum}
    table = panel.kind == "table"
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": {k: v for k, v in defaults.items() if v is not None}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "expr": query.promql,
                "legendFormat": query.legend or "__auto",
                "instant": panel.kind in ("table", "bargauge", "stat"),
                "range": panel.kind == "timeseries",
                "format": "table" if table else "time_series",
            }
            for i, query in enumerate(panel.queries)
        ],
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def main() -> None:
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
