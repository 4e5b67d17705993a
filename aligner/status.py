"""The aligner's status file, `work_dir/status.json`: what a view or a summary needs, replaced whole at every change.

    {"format": 1, "updated_ns": ...,
     "windows": 7321, "windows_by_modality": {"phone_imu": 3700, ...},
     "pairs": 640, "pairs_to_learn_from": 212, "pairs_refused": {"clock_unsynchronised": 61, "no_partner": 5123, ...},
     "waiting": "" or why no run starts now,
     "training": null or {"run": 2, "stage": "align", "done": 120, "total": 400, "eta_s": 9.5, "metrics": {...}},
     "runs": [{"run": 1, "outcome": "promoted" | "not_promoted" | "failed", "reasons": [...], "seconds": 61.0,
               "stage_1": "trained" | "reused from run 1", "version": 1 or 0,
               "verdicts": [{"gate", "passed", "value", "limit", "reason", "leaves_out"}, ...],
               "alignment": null or {"objective", "pairs", "unpaired_windows", "seconds", "macro_f1_before",
                   "macro_f1_after", "macro_f1_interval": [low, high], "baselines": {"pseudolabel", "ridge_map",
                   "own_labels"}, "multimodal_macro_f1", "held_out_people": [...]},
               "validation": the same on the validation sites, and "subsets": [{"modalities", "macro_f1", "windows"},
                   ...], every subset of modalities on the same windows}, ...],
     "bundle": null or {"version", "sha256", "url", "run", "promoted": true},
     "nodes": {"s01/s01-watch": {"version", "sha256", "state", "reason", "verified"}, ...}}

`alignment` holds scores on the test sites (on the validation sites when there are no test sites); a number that could
not be had is null. `promoted` of a bundle says that nodes are told to run it.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

FORMAT: Final = 1


@dataclass
class Status:
    """What the aligner knows; the service fills it in, `write` puts it on disk."""

    windows: int = 0
    windows_by_modality: dict[str, int] = field(default_factory=dict)
    pairs: int = 0
    pairs_to_learn_from: int = 0
    pairs_refused: dict[str, int] = field(default_factory=dict)
    waiting: str = ""
    training: dict[str, Any] | None = None
    runs: list[dict[str, Any]] = field(default_factory=list)
    bundle: dict[str, Any] | None = None
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self, path: Path, now_ns: int) -> None:
        """Whole or not at all; no fsync, since a start makes it anew."""
        temporary = path.with_suffix(".tmp")
        temporary.write_text(
            json.dumps({"format": FORMAT, "updated_ns": now_ns, **finite(self.__dict__)}), encoding="utf-8"
        )
        os.replace(temporary, path)


def finite(value: Any) -> Any:
    """`value` for JSON: what is no number becomes null, because NaN is not JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value
