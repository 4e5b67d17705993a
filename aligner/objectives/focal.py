"""FOCAL (Liu et al., NeurIPS 2023): shared and private contrast in orthogonal parts, and a temporal rank (METHOD 6).

    L = L_shared + L_private + 3 L_orthogonal + 5 L_temporal
    L_shared:     symmetric NCE of u1, u2 over the pairs, tau 0.07       L_private: NT-Xent of two views' v, tau 0.07
    L_orthogonal: mean |cos(u, v)| of each modality, mean |cos(v1, v2)| over the pairs
    L_temporal:   mean distance within a sequence + 1 <= mean distance to each other sequence, of h = u || v

All four are minimised; the two contrasts carry their minus. Choices: what needs no pair (private, u against v,
temporal) sees all windows, paired or not; both views count, averaged; windows of one recording are no negatives of
the shared contrast; |cos| instead of cos (aligner/losses/orthogonal.py); unit vectors in the temporal term.
"""

from collections import defaultdict

import torch
from pydantic import Field
from torch import Tensor

from aligner.batches import AlignBatch, ModalityBatch
from aligner.losses.contrast import CrossNce, NtXent
from aligner.losses.orthogonal import orthogonality
from aligner.losses.temporal_rank import TemporalRank
from aligner.model import Model
from aligner.plain_objective import PlainObjective
from infomae_stream.config import Settings


class FocalOptions(Settings):
    """Weights of the terms, of mean-reduced losses."""

    temperature: float = Field(0.07, gt=0)
    shared: float = Field(1.0, ge=0)
    private: float = Field(1.0, ge=0)
    orthogonal: float = Field(3.0, ge=0)
    temporal: float = Field(5.0, ge=0)
    margin: float = Field(1.0, gt=0)


class Focal(PlainObjective[FocalOptions]):
    """The four terms over the pairs and over all windows."""

    options_type = FocalOptions

    def __init__(
        self, model: Model, pairs: list[tuple[str, str]], options: FocalOptions, generator: torch.Generator
    ) -> None:
        super().__init__(model, pairs, options, generator)
        self.cross, self.contrast = CrossNce(options.temperature), NtXent(options.temperature)
        self.rank = TemporalRank(options.margin)

    def model_loss(self, batch: AlignBatch, done: float) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Weighted terms `shared`, `private`, `orthogonal`, `temporal`: sums over modalities, over pairs / (M - 1)."""
        found: dict[str, list[Tensor]] = defaultdict(list)
        for (first, second), (one, other) in batch.pairs.items():
            same = one.sequence_B[:, None] == one.sequence_B[None, :]
            for e1, e2 in zip(_views(one), _views(other), strict=True):
                nce = self.cross(self.shared(first, e1), self.shared(second, e2), same)
                overlap = orthogonality(self.private(first, e1), self.private(second, e2))
                found["shared"].append(0.5 * self.pair_scale * nce)
                found["orthogonal"].append(0.5 * self.pair_scale * overlap)
        for modality, windows in batch.windows.items():
            u = [self.shared(modality, e) for e in _views(windows)]
            v = [self.private(modality, e) for e in _views(windows)]
            found["private"].append(self.contrast(*v))
            for u_BD, v_BD in zip(u, v, strict=True):
                found["orthogonal"].append(0.5 * orthogonality(u_BD, v_BD))
                found["temporal"].append(0.5 * self.rank(torch.cat([u_BD, v_BD], dim=1), windows.sequence_B))
        weights = self.options.model_dump()
        return {name: weights[name] * torch.stack(values).sum() for name, values in found.items()}, {}


def _views(side: ModalityBatch) -> tuple[Tensor, Tensor]:
    return side.view_a_BE, side.view_b_BE
