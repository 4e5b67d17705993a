"""SimCLR (Chen et al., ICML 2020) a modality: the control that learns from augmentation alone, never from a pair.

    L = sum_m NT-Xent(h_m of one augmented view, h_m of another),     h = u || v

NT-Xent is -log softmax: two views of a window move together, other windows away. The projections start from each
modality's principal directions whatever `align.start` says, since a closed-form start has seen the pairs. What u of
two modalities have in common after it is chance: with few classes chance alone can pass the cosine gate.
"""

import torch
from pydantic import Field
from torch import Tensor

from aligner.batches import AlignBatch
from aligner.losses.contrast import NtXent
from aligner.model import Model
from aligner.plain_objective import PlainObjective
from aligner.principal_start import start_from_principal
from infomae_stream.config import Settings


class SimClrOptions(Settings):
    """tau 0.1 to 0.5 (METHOD 6): the smaller the batch, the larger."""

    temperature: float = Field(0.2, gt=0)


class SimClr(PlainObjective[SimClrOptions]):
    """NT-Xent between two views of every modality's windows, paired or not."""

    options_type = SimClrOptions

    def __init__(
        self, model: Model, pairs: list[tuple[str, str]], options: SimClrOptions, generator: torch.Generator
    ) -> None:
        super().__init__(model, pairs, options, generator)
        start_from_principal(model)
        self.contrast = NtXent(options.temperature)

    def model_loss(self, batch: AlignBatch, done: float) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The term `augmentation`, summed over modalities."""
        losses = [
            self.contrast(self.whole(name, windows.view_a_BE), self.whole(name, windows.view_b_BE))
            for name, windows in batch.windows.items()
        ]
        return {"augmentation": torch.stack(losses).sum()}, {}
