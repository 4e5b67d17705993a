"""InfMasking (Wen et al., NeurIPS 2025, arXiv 2509.25270) as METHOD 5 gives it: CoMM, and fused tokens under masks.

    L = CoMM's contrast + masking * mean over both views of the masked term (aligner/losses/infmasking.py), minimised

The anchor q is the view's unmasked z; K times a share of each modality's tokens is hidden before the fusion.
`mask_estimator`: "gaussian" (the authors', K masks stand for infinitely many; lambda ramps linearly to `variance`) or
"mc" (mean of K exact terms). Choices: those of CoMM (the tokens are made of the modality embeddings), the masked
term's strangers are of other recordings, and lambda ends at 1, where the normal law's moment is exact.
Legend: B batch, K masks, Z width of the fusion's output.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from aligner.losses.infmasking import masked_term, masked_term_mc
from aligner.objectives.comm import Comm, CommOptions


class InfMaskingOptions(CommOptions):
    """CoMM's, and the masks: `rho` share of tokens hidden, `masks` draws, `masking` weight of the term."""

    rho: float = Field(0.7, gt=0, lt=1)
    masks: int = Field(4, ge=2)
    masking: float = Field(1.0, ge=0)
    variance: float = Field(1.0, ge=0)
    mask_estimator: Literal["gaussian", "mc"] = "gaussian"


class InfMasking(Comm):
    """CoMM's contrast and the masked term."""

    Options = InfMaskingOptions

    def pair_terms(self, views: list[list[Tensor]], same_BB: Tensor, done: float) -> dict[str, Tensor]:
        """Both terms of one pair of modalities; `done` in 0..1 drives lambda."""
        options = self.options
        assert isinstance(options, InfMaskingOptions)
        joint = [self.fusion(tokens) for tokens in views]
        masked = []
        for q_BZ, view in zip(joint, views, strict=True):
            z_BKZ = self._masked(view)
            if options.mask_estimator == "mc":
                masked.append(masked_term_mc(q_BZ, z_BKZ, options.temperature, ~same_BB))
            else:
                masked.append(masked_term(q_BZ, z_BKZ, options.temperature, options.variance * done, ~same_BB))
        contrast = self.contrast_term(views, joint, same_BB)
        return {"contrast": contrast, "masked": options.masking * torch.stack(masked).mean()}

    def _masked(self, view: list[Tensor]) -> Tensor:
        """z of K draws of masks, (B, K, Z); one pass through the fusion."""
        options = self.options
        assert isinstance(options, InfMaskingOptions)
        drawn = [self.fusion.masked(tokens.repeat(options.masks, 1, 1), options.rho, self.generator) for tokens in view]
        z_BKZ: Tensor = self.fusion(drawn).unflatten(0, (options.masks, -1)).transpose(0, 1)
        return z_BKZ
