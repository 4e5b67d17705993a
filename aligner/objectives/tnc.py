"""TNC: temporal neighbourhood coding (Tonekaboni, Eytan, Goldenberg, ICLR 2021) a modality; no pairs (METHOD 6).

    L = sum_m { -mean_near log D(h_i, h_j) - mean_far [ w log D(h_i, h_j) + (1 - w) log(1 - D(h_i, h_j)) ] }

h = u || v; D is learned together with h, both minimise; w = 0.05 is the share of far windows that are neighbours in
disguise (positive-unlabelled weight). Choices: near is the same recording within a batch, that is a run of
consecutive windows, in place of the paper's stationarity test; all pairs of a batch; windows as they are, without
augmentation. It starts as `simclr` does, from each modality's principal directions.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from aligner.batches import AlignBatch
from aligner.losses.neighbourhood import Neighbourhood
from aligner.model import Model
from aligner.plain_objective import PlainObjective
from aligner.principal_start import start_from_principal
from infomae_stream.config import Settings


class TncOptions(Settings):
    """`weight`: w; `hidden_width`: of the discriminator."""

    weight: float = Field(0.05, ge=0, lt=1)
    hidden_width: int = Field(64, ge=1)


class Tnc(PlainObjective[TncOptions]):
    """Neighbours in time told from strangers, for every modality's windows, paired or not."""

    options_type = TncOptions

    def __init__(
        self, model: Model, pairs: list[tuple[str, str]], options: TncOptions, generator: torch.Generator
    ) -> None:
        super().__init__(model, pairs, options, generator)
        start_from_principal(model)
        width = model.config.align.shared_width + model.config.align.private_width
        self.neighbourhoods = nn.ModuleDict(
            {name: Neighbourhood(width, options.hidden_width, options.weight) for name in model.front_ends}
        )

    def model_loss(self, batch: AlignBatch, done: float) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The term `neighbourhood`, summed over modalities."""
        losses = [
            self.neighbourhoods[name](self.whole(name, windows.e_BE), windows.sequence_B)
            for name, windows in batch.windows.items()
        ]
        return {"neighbourhood": torch.stack(losses).sum()}, {}
