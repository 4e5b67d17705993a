"""ModAlign / InfoBridge (Li et al., ICCV 2025) as METHOD 5 gives it: shared information of a context, up to a margin.

    L = task mean_m L_self,m + alpha mean_T max(0, kappa_T - I_T) + eta sum_m max(0, L_self,m - L_ref,m - eps),
    kappa_T = margin log B_T,   eps = tolerance L_ref,m

All is minimised, so I(Z1;Z2|T) grows up to kappa; its estimate and the critic: aligner/losses/conditional_ratio.py.
Choices, where the paper gives none: the critic; Z = u after a LayerNorm; L_self is NT-Xent between two augmented views
of u || v; L_ref is its mean over the batches before the first model step; contexts of aligner/contexts.py.
Legend: B batch, D width of u, T contexts.
"""

from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn

from aligner.batches import AlignBatch, ModalityBatch
from aligner.contexts import Contexts, onset
from aligner.critics import frozen, soft_clamp
from aligner.losses.conditional_ratio import critic_loss, negatives, shortfall
from aligner.losses.contrast import NtXent
from aligner.model import Model
from aligner.trainset import TrainSet
from infomae_stream.config import Settings, validate
from infomae_stream.errors import TrainingError

Pair = tuple[str, str]


class ModAlignOptions(Settings):
    """Weights of mean-reduced losses. `r`: weight of the critic's negatives; margin 1 asks for all that a batch can
    tell. The critic learns best at `critic_rate` 1e-3, which is the loop's setting."""

    task: float = Field(1.0, ge=0)
    alpha: float = Field(0.1, ge=0)
    eta: float = Field(1.0, ge=0)
    margin: float = Field(0.5, ge=0)
    tolerance: float = Field(0.05, ge=0)
    r: float = Field(4.0, gt=0, le=16)
    critic_width: int = Field(128, ge=1)
    critic_temperature: float = Field(0.1, gt=0)
    temperature: float = Field(0.2, gt=0)


class SeparableCritic(nn.Module):
    """log p(z1,z2|T) / p(z1|T)p(z2|T) of every row of z1 with every row of z2: cosine of their images / temperature +
    a bias of the context, which also scales and shifts z (FiLM). Softly clamped to +-`limit`.

    One linear map makes the images of both sides. A critic that may translate reads what U1 and U2 share wherever it
    lies; then nothing pulls it to one place, where one head can read it from either.
    """

    def __init__(
        self, width_D: int, contexts: int, *, width: int = 128, temperature: float = 0.1, limit: float = 10.0
    ) -> None:
        super().__init__()
        self.temperature, self.limit = temperature, limit
        self.map = nn.Linear(width_D, width)
        self.film, self.bias = nn.Embedding(contexts, 2 * width_D), nn.Embedding(contexts, 1)
        for parameter in (self.film.weight, self.bias.weight, self.map.bias):
            nn.init.zeros_(parameter)

    def forward(self, z1_BD: Tensor, z2_BD: Tensor, context_B: Tensor) -> Tensor:
        cosine_BB = self._image(z1_BD, context_B) @ self._image(z2_BD, context_B).T
        # The bias in units of the limit: it must follow as fast as the cosines change.
        return soft_clamp(cosine_BB / self.temperature + self.limit * self.bias(context_B), self.limit)

    def _image(self, z_BD: Tensor, context_B: Tensor) -> Tensor:
        scale, shift = self.film(context_B).chunk(2, dim=1)
        return nn.functional.normalize(self.map((1.0 + scale) * z_BD + shift), dim=1)


class ModAlign(nn.Module):
    """Terms of stage 2 over the parts of `model`; one critic for each pair of modalities, made by `prepare`."""

    def __init__(self, model: Model, pairs: list[Pair], options: ModAlignOptions) -> None:
        super().__init__()
        # In a list, so that the model's weights are not counted as the objective's own.
        self._model = [model]
        self.options, self._pairs = options, pairs
        self.contrast = NtXent(options.temperature)
        self.contexts: dict[Pair, Contexts] = {}
        self.critics = nn.ModuleDict()
        self._reference: dict[str, tuple[float, int]] = {}
        self._aligning = False

    @classmethod
    def build(cls, model: Model, pairs: list[Pair], options: dict[str, object], generator: torch.Generator) -> Self:
        """Check `options` and construct; raises ConfigError for an unknown option or a value out of range."""
        return cls(model, pairs, validate(options, ModAlignOptions, where="train", prefix=("align", "options")))

    def prepare(self, train: TrainSet, x_BKTF: dict[str, Tensor]) -> None:
        """Contexts from the first modality of every pair, and a critic that knows how many there are."""
        options, width = self.options, self._model[0].config.align.shared_width
        for pair in self._pairs:
            rows = train.pairs[pair][:, 0]
            windows, loud = train.modalities[pair[0]], self._onset(pair, x_BKTF[pair[0]][torch.from_numpy(rows)])
            self.contexts[pair] = Contexts(windows.group_B[rows], windows.sequence_B[rows], loud)
            self.critics[_key(pair)] = SeparableCritic(
                width,
                self.contexts[pair].count,
                width=options.critic_width,
                temperature=options.critic_temperature,
            )

    def critic_parameters(self) -> list[nn.Parameter]:
        """Raises TrainingError before `prepare`: the critics' shape depends on the contexts."""
        if not self.critics:
            raise TrainingError("no contexts yet", where="modalign", fix="call prepare first")
        return list(self.critics.parameters())

    def model_parameters(self) -> list[nn.Parameter]:
        """None: the map is the critic's."""
        return []

    def critic_loss(self, batch: AlignBatch) -> tuple[Tensor, dict[str, float]]:
        """Sum over pairs of modalities of the two-term loss, and each; before the first model step L_ref grows too."""
        losses = {}
        if not self._aligning:
            with torch.no_grad():
                self._remember(batch)
        for pair, sides in batch.pairs.items():
            with torch.no_grad():
                z1, z2 = self._z(pair, sides)
            context = self._context(pair, sides[0])
            ratio = self.critics[_key(pair)](z1, z2, context)
            losses[f"critic_{_key(pair)}"] = critic_loss(ratio, negatives(context, sides[0].sequence_B), self.options.r)
        return torch.stack(list(losses.values())).sum(), {n: float(loss.detach()) for n, loss in losses.items()}

    def model_loss(self, batch: AlignBatch, done: float) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The three terms, and the information of each pair of modalities in nats."""
        self._aligning = True
        options, checks = self.options, {}
        own = {name: self._own_loss(name, windows) for name, windows in batch.windows.items()}
        guard = [(loss - (1.0 + options.tolerance) * self.reference(name)).clamp(min=0.0) for name, loss in own.items()]
        missing = []
        for pair, sides in batch.pairs.items():
            context = self._context(pair, sides[0])
            with frozen(self.critics):
                ratio = self.critics[_key(pair)](*self._z(pair, sides), context)
            lacking, information = shortfall(ratio, negatives(context, sides[0].sequence_B), context, options.margin)
            missing.append(lacking)
            checks[f"information_{_key(pair)}"] = information
        terms = {
            "task": options.task * torch.stack(list(own.values())).mean(),
            "alignment": options.alpha * torch.stack(missing).sum() / (len(own) - 1),
            "guard": options.eta * torch.stack(guard).sum(),
        }
        return terms, checks

    def reference(self, modality: str) -> float:
        """L_ref: the mean own loss of the modality before alignment. Raises TrainingError when none was taken."""
        if modality not in self._reference:
            raise TrainingError("no loss from before alignment", where=modality, fix="take a critic step first")
        total, count = self._reference[modality]
        return total / count

    def _remember(self, batch: AlignBatch) -> None:
        for name, windows in batch.windows.items():
            total, count = self._reference.get(name, (0.0, 0))
            self._reference[name] = (total + float(self._own_loss(name, windows)), count + 1)

    def _own_loss(self, modality: str, windows: ModalityBatch) -> Tensor:
        part = self._model[0].part(modality)
        a, b = (torch.cat([part.shared(e), part.private(e)], dim=1) for e in (windows.view_a_BE, windows.view_b_BE))
        loss: Tensor = self.contrast(a, b)
        return loss

    def _z(self, pair: Pair, sides: tuple[ModalityBatch, ModalityBatch]) -> list[Tensor]:
        """u after a LayerNorm without affine: the critic must not be pleased by growing norms."""
        u = [self._model[0].part(name).shared(side.e_BE) for name, side in zip(pair, sides, strict=True)]
        return [nn.functional.layer_norm(u_BD, u_BD.shape[1:]) for u_BD in u]

    def _context(self, pair: Pair, first: ModalityBatch) -> Tensor:
        return self.contexts[pair].of(first.sequence_B, self._onset(pair, first.x_BKTF))

    def _onset(self, pair: Pair, x_BKTF: Tensor) -> Tensor:
        return onset(x_BKTF, self._model[0].front_ends[pair[0]].content)


def _key(pair: Pair) -> str:
    return "|".join(pair)
