"""MoCo v3 (Chen, Xie, He, ICCV 2021) a modality: augmentation alone, with a slow teacher and a predictor; no pairs.

    L = sum_m 2 tau [ NCE(q_a, k_b) + NCE(q_b, k_a) ],   q = predictor(h),  k = teacher's h,  h = u || v

NCE is -log softmax, so a query moves to the key of the other view of its own window. The teacher follows the
projections, theta' <- 0.99 theta' + 0.01 theta, once a step; no gradient reaches it.
Choices: the teacher has its own projections but the same encoder (frozen by default); the predictor has no batch
norm, for small batches. It starts as `simclr` does, from each modality's principal directions.
"""

import copy

import torch
from pydantic import Field
from torch import Tensor, nn

from aligner.batches import AlignBatch
from aligner.losses.query_contrast import QueryContrast
from aligner.model import Model
from aligner.plain_objective import PlainObjective
from aligner.principal_start import start_from_principal
from infomae_stream.config import Settings


class MocoOptions(Settings):
    """`momentum`: of the teacher; `hidden_width`: of the predictor."""

    temperature: float = Field(0.2, gt=0)
    momentum: float = Field(0.99, ge=0, le=1)
    hidden_width: int = Field(128, ge=1)


class Moco(PlainObjective[MocoOptions]):
    """Contrast of every modality's views with a teacher's keys, over all windows, paired or not."""

    options_type = MocoOptions

    def __init__(
        self, model: Model, pairs: list[tuple[str, str]], options: MocoOptions, generator: torch.Generator
    ) -> None:
        super().__init__(model, pairs, options, generator)
        start_from_principal(model)
        width = model.config.align.shared_width + model.config.align.private_width
        self.predictors = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(width, options.hidden_width), nn.GELU(), nn.Linear(options.hidden_width, width)
                )
                for name in model.front_ends
            }
        )
        self.teachers = nn.ModuleDict({name: copy.deepcopy(self._heads(name)) for name in model.front_ends})
        self.teachers.requires_grad_(False).eval()
        self.contrast = QueryContrast(options.temperature)

    def model_loss(self, batch: AlignBatch, done: float) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The term `augmentation`, summed over modalities; first the teachers take their step."""
        self._follow()
        losses = []
        for name, windows in batch.windows.items():
            views = (windows.view_a_BE, windows.view_b_BE)
            keys = [torch.cat([head(e) for head in self._teacher(name)], dim=1).detach() for e in views]
            queries = [self.predictors[name](self.whole(name, e)) for e in views]
            losses.append(self.contrast(queries[0], keys[1]) + self.contrast(queries[1], keys[0]))
        return {"augmentation": torch.stack(losses).sum()}, {}

    @torch.no_grad()
    def _follow(self) -> None:
        for name in self.model.front_ends:
            for slow, fast in zip(self.teachers[name].parameters(), self._heads(name).parameters(), strict=True):
                slow.lerp_(fast, 1.0 - self.options.momentum)

    def _heads(self, name: str) -> nn.ModuleList:
        part = self.model.part(name)
        return nn.ModuleList([part.shared, part.private])

    def _teacher(self, name: str) -> nn.ModuleList:
        teacher = self.teachers[name]
        assert isinstance(teacher, nn.ModuleList)
        return teacher
