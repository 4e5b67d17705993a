"""GMC: geometric multimodal contrast (Poklukar et al., ICML 2022): each modality beside the joint of both (METHOD 6).

    L = sum_{pairs of modalities} sum_{m in pair} NT-Xent(u_m, z),      z = joint(e1 || e2)

NT-Xent is -log softmax, so u_m moves towards its own z and away from the other rows of u_m and z. (The paper's
denominator leaves the positive out; with it the loss is bounded below by zero and the optimum is the same.)
Choices: no further head behind u and z; the joint network is a linear map plus a two-layer MLP, as the projections
are, one for each pair of modalities, and serves training only; augmented views; tau 0.1.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from aligner.batches import AlignBatch
from aligner.heads import Projection
from aligner.losses.contrast import NtXent
from aligner.model import Model
from aligner.plain_objective import PlainObjective
from infomae_stream.config import Settings


class GmcOptions(Settings):
    """`hidden_width`: of the joint network's MLP."""

    temperature: float = Field(0.1, gt=0)
    hidden_width: int = Field(128, ge=1)


class Gmc(PlainObjective[GmcOptions]):
    """NT-Xent of the joint embedding with each modality's u over the pairs; sees no unpaired window."""

    options_type = GmcOptions

    def __init__(
        self, model: Model, pairs: list[tuple[str, str]], options: GmcOptions, generator: torch.Generator
    ) -> None:
        super().__init__(model, pairs, options, generator)
        width = model.config.encoder.embedding_width
        self.joint = nn.ModuleDict(
            {
                "|".join(pair): Projection(2 * width, options.hidden_width, model.config.align.shared_width, 0.0)
                for pair in pairs
            }
        )
        self.contrast = NtXent(options.temperature)

    def model_loss(self, batch: AlignBatch, done: float) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The term `joint`, summed over modalities and over pairs of them / (M - 1)."""
        losses = []
        for pair, sides in batch.pairs.items():
            e = [side.view_a_BE for side in sides]
            z = self.joint["|".join(pair)](torch.cat(e, dim=1))
            losses += [self.contrast(self.shared(name, e_BE), z) for name, e_BE in zip(pair, e, strict=True)]
        return {"joint": self.pair_scale * torch.stack(losses).sum()}, {}
