"""InfoMAE (Kimura et al., WWW 2025, arXiv 2504.09707) with the corrected signs (METHOD 3).

    L = ramp (I_shared + I_private) + alpha d(U1,U2) + delta L_rec + lambda L_aug + eta L_temporal
        + nu L_variance + mu L_decorrelation

I_shared: METHOD 3.1; I_private: eqs. 7, 22; L_rec: eq. 8; L_aug: eq. 9 with its minus; L_temporal: eq. 10. The last
two are ours: without them U falls to one or two directions ("how much motion"). Means, not sums, throughout.
Legend: B batch, K T F spectrogram, E embedding, D width of u or v.
"""

from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn

from aligner.batches import AlignBatch, ModalityBatch
from aligner.information import estimator_class
from aligner.information.discriminator import DiscriminatorEstimator, PairSamples
from aligner.losses.contrast import CrossNce, NtXent
from aligner.losses.spread import decorrelation, variance_hinge
from aligner.losses.temporal import TemporalLocality
from aligner.masked_decoder import EmbeddingDecoder
from aligner.masking import masked_mse
from aligner.model import Model
from infomae_stream.config import Settings, validate


class InfoMaeOptions(Settings):
    """Weights of the terms (METHOD 3.4), all of mean-reduced losses. beta >= 1 collapses U (METHOD 3.1)."""

    estimator: str = "discriminator"
    alpha: float = Field(1.0, ge=0)
    beta: float = Field(0.05, ge=0)
    gamma: float = Field(0.01, ge=0)
    epsilon: float = Field(0.1, ge=0)
    shared: float = Field(0.1, ge=0)
    reconstruction: float = Field(1.0, ge=0)
    augmentation: float = Field(0.3, ge=0)
    temporal: float = Field(0.2, ge=0)
    variance: float = Field(1.0, ge=0)
    variance_target: float = Field(0.1, gt=0)
    decorrelation: float = Field(0.05, ge=0)
    cross: float = Field(0.0, ge=0)
    temperature: float = Field(0.2, gt=0)
    noise: float = Field(0.1, ge=0)
    ramp: float = Field(0.2, gt=0, le=1)
    decoder_width: int = Field(128, ge=1)


class InfoMae(nn.Module):
    """Terms of stage 2 over the parts of `model`. Pure: no clock, no log; draws come from `generator` alone."""

    def __init__(
        self, model: Model, pairs: list[tuple[str, str]], options: InfoMaeOptions, generator: torch.Generator
    ) -> None:
        super().__init__()
        # In a list, so that the model's weights are not counted as the objective's own.
        self._model = [model]
        self.options, self.generator = options, generator
        align = model.config.align
        shapes = {name: front_end.shape_KTF for name, front_end in model.front_ends.items()}
        self._informed = options.shared > 0 or options.gamma > 0 or options.epsilon > 0
        make = estimator_class(options.estimator)
        self.estimators = nn.ModuleDict(
            {
                _key(pair): make((shapes[pair[0]], shapes[pair[1]]), align.shared_width, align.private_width)
                for pair in pairs
            }
        )
        width = align.shared_width + align.private_width
        self.decoders = nn.ModuleDict(
            {name: EmbeddingDecoder(width, options.decoder_width, shape) for name, shape in shapes.items()}
        )
        self.contrast = NtXent(options.temperature)
        self.cross = CrossNce(options.temperature)
        self.temporal = TemporalLocality()

    @classmethod
    def build(
        cls, model: Model, pairs: list[tuple[str, str]], options: dict[str, object], generator: torch.Generator
    ) -> Self:
        """Check `options` and construct; raises ConfigError for an unknown option or a value out of range."""
        checked = validate(options, InfoMaeOptions, where="train", prefix=("align", "options"))
        return cls(model, pairs, checked, generator)

    def critic_parameters(self) -> list[nn.Parameter]:
        """Learned by the critics' optimiser; none when no information term has a weight."""
        if not self._informed:
            return []
        return list(self.estimators.parameters())

    def model_parameters(self) -> list[nn.Parameter]:
        """Learned with the projections: the decoders."""
        return list(self.decoders.parameters())

    def critic_loss(self, batch: AlignBatch) -> tuple[Tensor, dict[str, float]]:
        """Mean cross-entropy of the critics over all pairs of modalities, and that of each (0.693 = knows nothing)."""
        losses: dict[str, Tensor] = {}
        for pair, sides in batch.pairs.items():
            with torch.no_grad():
                samples = self._samples(pair, sides)
            for name, loss in self._estimator(pair).critic_loss(samples, self.generator).items():
                losses[f"critic_{name}"] = loss
        total = torch.stack(list(losses.values())).sum()
        return total, {name: float(loss.detach()) for name, loss in losses.items()}

    def model_loss(self, batch: AlignBatch, done: float) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Weighted terms, whose sum is minimised, and the critics' check E[A - B]; `done` in 0..1 drives the ramp."""
        terms: dict[str, Tensor] = {}
        checks: dict[str, float] = {}
        ramp = min(1.0, done / self.options.ramp)
        for pair, sides in batch.pairs.items():
            scale = 1.0 / max(1, len(self._model[0].parts) - 1)
            for name, value in self._pair_terms(pair, sides, ramp, checks).items():
                terms[name] = terms.get(name, torch.zeros(())) + scale * value
        for modality, windows in batch.windows.items():
            for name, value in self._window_terms(modality, windows).items():
                terms[name] = terms.get(name, torch.zeros(())) + value
        return terms, checks

    def _pair_terms(
        self,
        pair: tuple[str, str],
        sides: tuple[ModalityBatch, ModalityBatch],
        ramp: float,
        checks: dict[str, float],
    ) -> dict[str, Tensor]:
        options = self.options
        terms: dict[str, Tensor] = {}
        if self._informed:
            samples = self._samples(pair, sides)
            estimator = self._estimator(pair)
            ratio = estimator.log_ratios(samples)
            checks.update(estimator.constancy(ratio))
            terms["shared"] = ramp * options.shared * estimator.shared(ratio, options.beta)
            terms["private"] = ramp * estimator.private(ratio, options.gamma, options.epsilon)
        u1, u2 = (self._model[0].part(n).shared(side.view_a_BE) for n, side in zip(pair, sides, strict=True))
        terms["distance"] = options.alpha * (u1 - u2).square().mean()
        if options.cross:
            same = sides[0].sequence_B[:, None] == sides[0].sequence_B[None, :]
            terms["cross"] = options.cross * self.cross(u1, u2, same)
        return terms

    def _window_terms(self, modality: str, windows: ModalityBatch) -> dict[str, Tensor]:
        options, part = self.options, self._model[0].part(modality)
        u, v = part.shared(windows.e_BE), part.private(windows.e_BE)
        terms = {
            "variance": options.variance
            * (variance_hinge(u, options.variance_target) + variance_hinge(v, options.variance_target)),
            "decorrelation": options.decorrelation * (decorrelation(u) + decorrelation(v)),
            "temporal": options.temporal * self.temporal(torch.cat([u, v], dim=1), windows.sequence_B),
        }
        if options.augmentation:
            a, b = (torch.cat([part.shared(e), part.private(e)], dim=1) for e in (windows.view_a_BE, windows.view_b_BE))
            terms["augmentation"] = options.augmentation * self.contrast(a, b)
        if options.reconstruction:
            masked = windows.masked_BE
            decoded = self.decoders[modality](part.shared(masked), part.private(masked))
            terms["reconstruction"] = options.reconstruction * masked_mse(decoded, windows.x_BKTF, windows.hidden_BTF)
        return terms

    def _estimator(self, pair: tuple[str, str]) -> DiscriminatorEstimator:
        estimator = self.estimators[_key(pair)]
        assert isinstance(estimator, DiscriminatorEstimator)
        return estimator

    def _samples(self, pair: tuple[str, str], sides: tuple[ModalityBatch, ModalityBatch]) -> PairSamples:
        """u and v after a LayerNorm without affine, plus noise: a deterministic u would hold infinite information."""
        u, v = [], []
        for name, side in zip(pair, sides, strict=True):
            part = self._model[0].part(name)
            u.append(self._noisy(part.shared(side.e_BE)))
            v.append(self._noisy(part.private(side.e_BE)))
        return PairSamples(sides[0].x_BKTF, sides[1].x_BKTF, u[0], u[1], v[0], v[1], sides[0].sequence_B)

    def _noisy(self, u_BD: Tensor) -> Tensor:
        normal = nn.functional.layer_norm(u_BD, u_BD.shape[1:])
        return normal + self.options.noise * torch.randn(normal.shape, generator=self.generator)


def _key(pair: tuple[str, str]) -> str:
    return "|".join(pair)
