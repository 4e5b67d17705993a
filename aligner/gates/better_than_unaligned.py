"""Alignment helped: macro-F1 of the modality without labels rose on the validation sites."""

from __future__ import annotations

from typing import Self

from aligner.gates import Candidate, Verdict, at_least
from infomae_stream.hub_config import GateSettings


class BetterThanUnaligned:
    """After alignment at least `min_gain` above the labelled modality's head on the unaligned embedding."""

    def __init__(self, min_gain: float) -> None:
        self.min_gain = min_gain

    @classmethod
    def make(cls, settings: GateSettings) -> Self:
        return cls(settings.min_gain_over_unaligned)

    def judge(self, candidate: Candidate) -> Verdict:
        before, after = candidate.evaluation.before.macro_f1, candidate.evaluation.after.macro_f1
        what = f"macro-F1 of {candidate.evaluation.target} {before:.3f} -> {after:.3f}, gain"
        return at_least("better_than_unaligned", after - before, self.min_gain, what)
