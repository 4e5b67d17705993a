"""The settings that docs/detection.md shows are settings that a node takes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from inference.trigger_gate import plan_triggers
from infomae_stream.config import validate
from infomae_stream.node_config import EventSettings, NodeConfig
from infomae_stream.telemetry import METRICS

TEXT = (Path(__file__).parents[2] / "docs" / "detection.md").read_text(encoding="utf-8")
BLOCKS = [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)]
NODES = [{"site": "ridge", "node": "ridge-1", "sources": [{"type": "synthetic"}]}]


@pytest.mark.parametrize("raw", BLOCKS, ids=lambda raw: "-".join([*raw, *raw.get("detect", {})]))
def test_every_block_is_taken(raw: dict[str, Any]) -> None:
    settings = validate({"nodes": NODES, **raw}, NodeConfig, where="docs/detection.md")
    assert len(plan_triggers(settings, "docs/detection.md")) == len(raw.get("detect", {}).get("triggers", []))


def test_events_triggers_and_fusion_have_a_block_each() -> None:
    shown = [key for raw in BLOCKS for key in [*raw.get("detect", {}), *(k for n in raw.get("nodes", []) for k in n)]]
    assert {"events", "triggers", "fuse"} <= set(shown)
    (events,) = [raw["detect"]["events"] for raw in BLOCKS if "events" in raw.get("detect", {})]
    assert events.keys() == EventSettings.model_fields.keys(), "all there is to set"


def test_metrics_that_are_named_exist() -> None:
    named = set(re.findall(r"\binfomae_[a-z0-9_]+\b", TEXT)) - {"infomae_stream"}
    assert named <= METRICS.keys(), sorted(named - METRICS.keys())
