"""The exported graphs give what torch gives, on real validation windows."""

from __future__ import annotations

from typing import Final, Self

import numpy as np
import torch

from aligner.export import TOLERANCE, disagreement
from aligner.gates import Candidate, Verdict
from infomae_stream.hub_config import GateSettings

WINDOWS: Final = 16  # a modality, spread over the validation set


class OnnxAgreement:
    """The largest absolute difference of any encoder's u or of the head's logits stays within the tolerance."""

    @classmethod
    def make(cls, settings: GateSettings) -> Self:
        return cls()

    def judge(self, candidate: Candidate) -> Verdict:
        model, worst = candidate.model.eval(), 0.0
        for name, windows in candidate.validation.modalities.items():
            rows = np.unique(np.linspace(0, len(windows) - 1, WINDOWS).astype(np.int64))
            x_BKTF = model.spectrograms(name, windows.x_BCN[rows])
            worst = np.fmax(worst, self._difference(model.part(name), candidate, name, x_BKTF))
            with torch.no_grad():
                u_BD = model.part(name)(x_BKTF)
            worst = np.fmax(worst, self._difference(model.head, candidate, "head", u_BD))
        passed = bool(worst <= TOLERANCE)
        return Verdict("onnx_agreement", passed, float(worst), TOLERANCE, f"largest difference {worst:.2e}")

    @staticmethod
    def _difference(module: torch.nn.Module, candidate: Candidate, graph: str, x: torch.Tensor) -> float:
        found = disagreement(module, candidate.graphs[graph], [x[i : i + 1] for i in range(len(x))])
        return found if np.isfinite(found) else float("inf")  # max() forgets a NaN
