"""concat: no alignment, the control of every table (METHOD 6, 7). No equation: nothing is learned, no pair is used.

u are the leading principal directions of the stage-1 embedding, v the next ones, whatever `align.start` says, and
every step leaves every weight as it is: `align.steps = 1` says all. A probe on u1 || v1 || u2 || v2 (or on e1 || e2,
which stage 2 does not change with `encoder_rate` 0) is the papers' concat; with shared_width = embedding_width u is e.
The model's own head takes the mean of the u that are present, so through it concat is not a concatenation but the
unaligned start: on a modality without labels it scores what `Evaluation.before` scores, but for the cut.
"""

import torch
from torch import Tensor

from aligner.batches import AlignBatch
from aligner.model import Model
from aligner.plain_objective import NoOptions, PlainObjective
from aligner.principal_start import start_from_principal


class Concat(PlainObjective[NoOptions]):
    """A loss of zero that depends on no weight."""

    options_type = NoOptions

    def __init__(
        self, model: Model, pairs: list[tuple[str, str]], options: NoOptions, generator: torch.Generator
    ) -> None:
        super().__init__(model, pairs, options, generator)
        start_from_principal(model)

    def model_loss(self, batch: AlignBatch, done: float) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The term `none`, always zero. Weights without a gradient are not decayed either."""
        return {"none": torch.zeros((), requires_grad=True)}, {}
