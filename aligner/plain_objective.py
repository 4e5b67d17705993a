"""What objectives without critics have in common: their options are checked, and the second optimiser has nothing."""

from typing import Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from aligner.batches import AlignBatch
from aligner.model import Model
from infomae_stream.config import Settings, validate

OptionsT = TypeVar("OptionsT", bound=Settings)


class NoOptions(Settings):
    """An objective that has nothing to set."""


class PlainObjective(nn.Module, Generic[OptionsT]):
    """Base of an objective that minimises one sum over the model. A subclass names `options_type` and gives
    `model_loss`; what learns beside the model is a submodule that it assigns."""

    options_type: type[OptionsT]

    def __init__(
        self, model: Model, pairs: list[tuple[str, str]], options: OptionsT, generator: torch.Generator
    ) -> None:
        super().__init__()
        # In a list, so that the model's weights are not counted as the objective's own.
        self._model = [model]
        self.pairs, self.options, self.generator = pairs, options, generator
        # METHOD 3.4: with M modalities every one is in M - 1 pairs.
        self.pair_scale = 1.0 / max(1, len(model.parts) - 1)

    @classmethod
    def build(
        cls, model: Model, pairs: list[tuple[str, str]], options: dict[str, object], generator: torch.Generator
    ) -> Self:
        """Check `options` and construct; raises ConfigError for an unknown option or a value out of range."""
        checked = validate(options, cls.options_type, where="train", prefix=("align", "options"))
        return cls(model, pairs, checked, generator)

    def critic_parameters(self) -> list[nn.Parameter]:
        """None: the loop then runs no critic step."""
        return []

    def model_parameters(self) -> list[nn.Parameter]:
        """Everything trainable that the objective owns."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def critic_loss(self, batch: AlignBatch) -> tuple[Tensor, dict[str, float]]:
        """Zero: there is no critic. The loop does not ask."""
        return torch.zeros((), requires_grad=True), {}

    @property
    def model(self) -> Model:
        return self._model[0]

    def shared(self, modality: str, e_BE: Tensor) -> Tensor:
        """u_BD of embeddings of one modality."""
        out: Tensor = self.model.part(modality).shared(e_BE)
        return out

    def private(self, modality: str, e_BE: Tensor) -> Tensor:
        """v_BD of embeddings of one modality."""
        out: Tensor = self.model.part(modality).private(e_BE)
        return out

    def whole(self, modality: str, e_BE: Tensor) -> Tensor:
        """h = u || v."""
        return torch.cat([self.shared(modality, e_BE), self.private(modality, e_BE)], dim=1)
