"""A later model replaces the one that serves only when it is better on the same validation windows."""

from __future__ import annotations

import math
from typing import Self

from aligner.gates import Candidate, Verdict
from infomae_stream.hub_config import GateSettings


class BetterThanServing:
    """Macro-F1 above the serving model's by more than `min_gain`: equal is not better. Passes while nothing serves."""

    def __init__(self, min_gain: float) -> None:
        self.min_gain = min_gain

    @classmethod
    def make(cls, settings: GateSettings) -> Self:
        return cls(settings.min_gain_over_serving)

    def judge(self, candidate: Candidate) -> Verdict:
        after, serving = candidate.evaluation.after.macro_f1, candidate.serving_macro_f1
        if serving is None:
            return Verdict("better_than_serving", math.isfinite(after), after, 0.0, "nothing serves yet")
        limit = serving + self.min_gain
        passed = math.isfinite(after) and after > limit
        reason = f"macro-F1 {after:.3f}, the serving model {serving:.3f} on the same windows"
        return Verdict("better_than_serving", passed, after, limit, reason)
