"""Gates: what a candidate must show before it may serve. One file a gate, one line here; every gate is asked.

Gates read the validation sites and never the test sites, so that the reported numbers stay a test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from aligner.align import AlignmentReport
from aligner.model import Model
from aligner.registry import resolve
from aligner.train import Evaluation
from aligner.trainset import TrainSet
from infomae_stream.hub_config import GateSettings

# In the order in which they are told.
GATES: Final[dict[str, str]] = {
    "finite": "aligner.gates.finite:Finite",
    "not_collapsed": "aligner.gates.not_collapsed:NotCollapsed",
    "better_than_unaligned": "aligner.gates.better_than_unaligned:BetterThanUnaligned",
    "better_than_serving": "aligner.gates.better_than_serving:BetterThanServing",
    "onnx_agreement": "aligner.gates.onnx_agreement:OnnxAgreement",
    "int8_accuracy": "aligner.gates.int8_accuracy:Int8Accuracy",
}


@dataclass(frozen=True)
class Candidate:
    """A trained model and what is known of it. `evaluation` is on `validation`.

    `serving_macro_f1`: the model that serves now, scored again on the very same windows; None when none serves.
    `graphs`: exported files by modality, and by "head"; `int8`: the int8 ones by modality.
    """

    model: Model
    report: AlignmentReport
    graphs: dict[str, Path]
    validation: TrainSet
    evaluation: Evaluation
    serving_macro_f1: float | None
    int8: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """`value` is what was measured and `limit` what it had to reach (or stay below); `reason` is for people.

    leaves_out: parts that do not go into the bundle although the candidate passes.
    """

    gate: str
    passed: bool
    value: float
    limit: float
    reason: str
    leaves_out: tuple[str, ...] = ()


class Gate(Protocol):
    @classmethod
    def make(cls, settings: GateSettings) -> Gate:
        """The gate with its limit from the settings."""

    def judge(self, candidate: Candidate) -> Verdict:
        """Never raises for a bad candidate: that is a verdict. A value that is not finite never passes."""


def judge_all(candidate: Candidate, settings: GateSettings) -> list[Verdict]:
    """The verdict of every gate, also after one has failed: people want all reasons at once."""
    return [resolve(GATES, name, "gates").make(settings).judge(candidate) for name in GATES]


def at_least(gate: str, value: float, limit: float, what: str) -> Verdict:
    passed = math.isfinite(value) and value >= limit
    return Verdict(gate, passed, value, limit, f"{what} {value:.4g}, {'at least' if passed else 'below'} {limit:.4g}")
