"""Every weight, every loss and every score on the validation windows is a number."""

from __future__ import annotations

import math
from typing import Self

import numpy as np
import torch

from aligner.gates import Candidate, Verdict
from infomae_stream.hub_config import GateSettings


class Finite:
    """Counts what is not finite; none may be."""

    @classmethod
    def make(cls, settings: GateSettings) -> Self:
        return cls()

    def judge(self, candidate: Candidate) -> Verdict:
        weights = sum(int((~torch.isfinite(t)).sum()) for t in candidate.model.state_dict().values())
        losses = sum(not math.isfinite(v) for v in candidate.report.losses.values())
        scores = 0
        if not weights:  # else every score is NaN anyway
            for name, windows in candidate.validation.modalities.items():
                scores += int((~np.isfinite(candidate.model.scores({name: windows.x_BCN}))).sum())
        found = weights + losses + scores
        return Verdict(
            "finite",
            found == 0,
            float(found),
            0.0,
            f"{weights} weights, {losses} losses, {scores} scores are not finite",
        )
