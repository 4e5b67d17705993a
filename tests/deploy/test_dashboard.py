"""The dashboard and the alerts speak of metrics that exist, in PromQL that parses."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from infomae_stream.telemetry import METRICS

DEPLOY = Path(__file__).parents[2] / "deploy"
BUILD: dict[str, Any] = runpy.run_path(str(DEPLOY / "grafana" / "build_dashboard.py"))
PANELS: list[tuple[str, str]] = BUILD["queries"]()
ALERTS = re.findall(r"^\s+expr: (.+)$", (DEPLOY / "alerts.yml").read_text(), flags=re.M)
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (package prometheus) is not here"
)


def without_variables(promql: str) -> str:
    """A panel's query as Grafana sends it when everything is selected."""
    filled = promql.replace("$site", ".*").replace("$node", ".*").replace("$__rate_interval", "1m")
    assert "$" not in filled, f"unknown variable in {promql}"
    return filled


def metrics_in(promql: str) -> set[str]:
    """Metric names of METRICS' form: a histogram's suffix is taken off."""
    found = re.findall(r"\binfomae_\w+", promql)
    return {name if name in METRICS else re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


def test_dashboard_and_alerts_name_only_metrics_that_exist() -> None:
    used = set().union(*(metrics_in(q) for _, q in PANELS), *map(metrics_in, ALERTS))
    assert used <= set(METRICS), f"not in telemetry.METRICS: {sorted(used - set(METRICS))}"


def test_every_metric_is_watched_or_listed_with_a_reason() -> None:
    used = set().union(*(metrics_in(q) for _, q in PANELS), *map(metrics_in, ALERTS))
    excused = tomllib.loads((DEPLOY / "unused_metrics.toml").read_text())
    assert used | set(excused) == set(METRICS)
    assert not used & set(excused), "listed as unused, yet used"
    assert all(isinstance(reason, str) and len(reason) > 10 for reason in excused.values())


def test_labels_in_queries_are_labels_of_the_metric() -> None:
    scraped = {"job", "instance", "process", "le"}
    for promql in [q for _, q in PANELS] + ALERTS:
        known = scraped.union(*(METRICS[name][2] for name in metrics_in(promql)))
        grouped = re.findall(r"\bby \(([^)]*)\)", promql)
        matched = re.findall(r"[{,]\s*(\w+)\s*(?:=~|!~|!=|=)", promql)
        wanted = {label.strip() for group in grouped for label in group.split(",")} | set(matched)
        assert wanted <= known, f"{promql}: {sorted(wanted - known)}"


def test_committed_dashboard_is_what_the_generator_writes() -> None:
    committed = json.loads((DEPLOY / "grafana" / "dashboards" / "infomae.json").read_text())
    assert committed == BUILD["dashboard"](), "run: python deploy/grafana/build_dashboard.py"


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BUILD["dashboard"]()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, f"{panel['title']} lies on another panel"
        assert at["x"] + at["w"] <= BUILD["GRID_WIDTH"]
        taken |= cells


@needs_promtool
def test_every_panel_query_parses(tmp_path: Path) -> None:
    rules = [{"record": f"panel_{i}", "expr": without_variables(q)} for i, (_, q) in enumerate(PANELS)]
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # JSON is YAML
    checked = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(PANELS)} rules found" in checked.stdout


@needs_promtool
def test_prometheus_takes_its_configuration_and_rules() -> None:
    checked = subprocess.run(
        ["promtool", "check", "config", str(DEPLOY / "prometheus.yml")], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(ALERTS)} rules found" in checked.stdout
