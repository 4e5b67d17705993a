"""The int8 graphs tell classes apart as well as the fp32 ones, or they stay out of the bundle."""

from __future__ import annotations

import math
from typing import Final, Self

import numpy as np

from aligner.evaluation import macro_f1
from aligner.export import outputs
from aligner.gates import Candidate, Verdict
from aligner.subsets import predict
from infomae_stream.hub_config import GateSettings

WINDOWS: Final = 1000  # a modality at most, spread over the validation set: one of them is 0.1 points of accuracy


class Int8Accuracy:
    """Macro-F1 that int8 costs, the worst of the modalities alone, on the same labelled windows.

    The candidate passes either way: nodes can serve fp32. Above `max_loss`, or where nothing could be measured, the
    verdict leaves int8 out.
    """

    def __init__(self, max_loss: float) -> None:
        self.max_loss = max_loss

    @classmethod
    def make(cls, settings: GateSettings) -> Self:
        return cls(settings.max_int8_loss)

    def judge(self, candidate: Candidate) -> Verdict:
        losses = {name: self._loss(candidate, name) for name in candidate.int8}
        measured = {name: loss for name, loss in losses.items() if loss is not None}
        worst = max(measured, key=lambda name: measured[name], default="")
        value = measured.get(worst, math.nan)
        taken = math.isfinite(value) and value <= self.max_loss
        reason = f"int8 costs {100 * value:.2f} points of macro-F1 on {worst}" if worst else "int8 was not measured"
        if not taken:
            reason += ", so it is left out of the bundle"
        return Verdict("int8_accuracy", True, value, self.max_loss, reason, () if taken else ("int8",))

    @staticmethod
    def _loss(candidate: Candidate, name: str) -> float | None:
        """None without a labelled window."""
        windows, model = candidate.validation.modalities[name], candidate.model
        rows = np.flatnonzero(windows.label_B >= 0)
        if not len(rows):
            return None
        windows = windows.take(rows[np.unique(np.linspace(0, len(rows) - 1, WINDOWS).astype(np.int64))])
        u_int8_BD = outputs(candidate.int8[name], model.spectrograms(name, windows.x_BCN).numpy())
        predicted = [predict(model, u_BD) for u_BD in (model.shared(name, windows.x_BCN), u_int8_BD)]
        with_fp32, with_int8 = (macro_f1(windows.label_B, p, len(model.classes)) for p in predicted)
        return with_fp32 - with_int8 if np.isfinite(u_int8_BD).all() else math.inf
