"""CMC: contrastive multiview coding (Tian, Krishnan, Isola, ECCV 2020), its in-batch form (METHOD 6).

    L = - sum_{pairs} 1/2 mean_i [ log softmax_j(u1_i . u2_j / tau)_i + log softmax_j(u2_i . u1_j / tau)_i ]

The minus is there: the true partner's probability grows. -L + log B bounds I(U1;U2) from below (nats). Only u learns.
Choices: both sides are augmented views, as in the comparisons of FOCAL and InfoMAE; windows of one recording are not
each other's negatives, because a batch is made of runs of neighbours.
"""

import torch
from pydantic import Field
from torch import Tensor

from aligner.batches import AlignBatch
from aligner.losses.contrast import CrossNce
from aligner.model import Model
from aligner.plain_objective import PlainObjective
from infomae_stream.config import Settings


class CmcOptions(Settings):
    """`neighbours`: windows of the same recording count as negatives too, as they do in the paper."""

    temperature: float = Field(0.07, gt=0)
    neighbours: bool = False


class Cmc(PlainObjective[CmcOptions]):
    """Symmetric cross-modal NCE of u over the pairs; sees no unpaired window."""

    options_type = CmcOptions

    def __init__(
        self, model: Model, pairs: list[tuple[str, str]], options: CmcOptions, generator: torch.Generator
    ) -> None:
        super().__init__(model, pairs, options, generator)
        self.cross = CrossNce(options.temperature)

    def model_loss(self, batch: AlignBatch, done: float) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The term `cross`, summed over the pairs of modalities / (M - 1)."""
        losses = []
        for (first, second), (one, other) in batch.pairs.items():
            u1, u2 = self.shared(first, one.view_a_BE), self.shared(second, other.view_a_BE)
            same = None if self.options.neighbours else one.sequence_B[:, None] == one.sequence_B[None, :]
            losses.append(self.cross(u1, u2, same))
        return {"cross": self.pair_scale * torch.stack(losses).sum()}, {}
