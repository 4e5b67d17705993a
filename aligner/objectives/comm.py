"""CoMM, multimodal contrast (METHOD 5, 6): InfMasking without its masked term.

Two augmented views X', X''; z_i from modality i alone, z from both modalities of a pair, all through one fusion:

    L = mean over (each i, and z itself) of  1/2 ( NCE(z'_i, z'') + NCE(z''_i, z') ),     minimised

Choices: encoders run outside an objective, so its tokens are made of the modality embeddings u and v; NCE is symmetric
and leaves out windows of the same recording; more than two modalities: the sum over pairs / (M - 1).
Legend: B batch, D width of u, S W tokens, Z width of the fusion's output.
"""

from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn

from aligner.batches import AlignBatch, ModalityBatch
from aligner.fusion import Fusion
from aligner.losses.contrast import CrossNce
from aligner.model import Model
from infomae_stream.config import Settings, validate


class CommOptions(Settings):
    """Sizes of the fusion and the temperature of its contrast. `tokens`: of each modality, half from u, half from v."""

    temperature: float = Field(0.1, gt=0)
    tokens: int = Field(8, ge=2)
    width: int = Field(64, ge=8, multiple_of=8)
    head_width: int = Field(512, ge=1)
    width_out: int = Field(256, ge=2)


HEADS = 8


class Comm(nn.Module):
    """Terms of stage 2 over the parts of `model`; the fusion learns with the projections and is dropped afterwards."""

    Options: type[CommOptions] = CommOptions

    def __init__(self, model: Model, options: CommOptions, generator: torch.Generator) -> None:
        super().__init__()
        # In a list, so that the model's weights are not counted as the objective's own.
        self._model = [model]
        self.options, self.generator = options, generator
        align = model.config.align
        self.fusion = Fusion(
            dict.fromkeys(model.front_ends, (align.shared_width, align.private_width)),
            tokens=options.tokens,
            width=options.width,
            heads=HEADS,
            head_width=options.head_width,
            width_out=options.width_out,
        )
        self.contrast = CrossNce(options.temperature)

    @classmethod
    def build(
        cls, model: Model, pairs: list[tuple[str, str]], options: dict[str, object], generator: torch.Generator
    ) -> Self:
        """Check `options` and construct; raises ConfigError for an unknown option or a value out of range."""
        return cls(model, validate(options, cls.Options, where="train", prefix=("align", "options")), generator)

    def critic_parameters(self) -> list[nn.Parameter]:
        """None."""
        return []

    def model_parameters(self) -> list[nn.Parameter]:
        """Learned with the projections: the fusion."""
        return list(self.fusion.parameters())

    def critic_loss(self, batch: AlignBatch) -> tuple[Tensor, dict[str, float]]:
        """Zero: there are no critics."""
        return torch.zeros(()), {}

    def model_loss(self, batch: AlignBatch, done: float) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Terms summed over the pairs of modalities / (M - 1); nothing is checked."""
        terms: dict[str, Tensor] = {}
        scale = 1.0 / (len(self._model[0].front_ends) - 1)
        for pair, sides in batch.pairs.items():
            sequence = sides[0].sequence_B
            same_BB = sequence[:, None] == sequence[None, :]
            for name, value in self.pair_terms(self._views(pair, sides), same_BB, done).items():
                terms[name] = terms.get(name, torch.zeros(())) + scale * value
        return terms, {}

    def pair_terms(self, views: list[list[Tensor]], same_BB: Tensor, done: float) -> dict[str, Tensor]:
        """Terms of one pair of modalities: `views` holds the tokens (B, S, W) of both modalities, for either view."""
        joint = [self.fusion(tokens) for tokens in views]
        return {"contrast": self.contrast_term(views, joint, same_BB)}

    def contrast_term(self, views: list[list[Tensor]], joint: list[Tensor], same_BB: Tensor) -> Tensor:
        """The loss above, given z' and z''."""
        singles = [[self.fusion([tokens]) for tokens in view] for view in views]
        losses = []
        for first, second in (*zip(*singles, strict=True), tuple(joint)):
            losses += [self.contrast(first, joint[1], same_BB), self.contrast(second, joint[0], same_BB)]
        return torch.stack(losses).mean()

    def _views(self, pair: tuple[str, str], sides: tuple[ModalityBatch, ModalityBatch]) -> list[list[Tensor]]:
        views: list[list[Tensor]] = [[], []]
        for name, side in zip(pair, sides, strict=True):
            part = self._model[0].part(name)
            for view, e_BE in zip(views, (side.view_a_BE, side.view_b_BE), strict=True):
                view.append(self.fusion.tokenise(name, part.shared(e_BE), part.private(e_BE)))
        return views
