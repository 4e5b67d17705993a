"""Information terms by discriminators: the ten critics of InfoMAE, with the signs put right (METHOD 3.1-3.3).

With A_i = log p(x1,x2,u_i) / p(x1)p(x2)p(u_i) and B_ij = log p(x_j,u_i) / p(x_j)p(u_i):

    I(X1;X2|U1) = E[ A_1 - B_11 - B_12 ],   I(X1;U1) = E[ B_11 ]
    L(U1) = I(X1;X2|U1) + beta I(X1;U1) = E[ A_1 - (1 - beta) B_11 - B_12 ]       and the same for U2.

The paper's eqs. 5, 18, 19, 21 add B where it is to be subtracted; minimised so, U forgets X.
Legend: B batch, K T F spectrogram, D width of u or v.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import cached

from aligner.critics import Critic, SpectrogramVector, frozen, ratio_loss, soft_clamp


@dataclass(frozen=True)
class PairSamples:
    """One batch of pairs: row i of every tensor is the same moment; `sequence_B` is the recording it lies in."""

    x1_BKTF: Tensor
    x2_BKTF: Tensor
    u1_BD: Tensor
    u2_BD: Tensor
    v1_BD: Tensor
    v2_BD: Tensor
    sequence_B: Tensor


class DiscriminatorEstimator(nn.Module):
    """Critics for two modalities. `ratios` names them and their parts: x1 and x2 are spectrograms' vectors."""

    ratios: dict[str, tuple[str, ...]] = {
        "a1": ("x1", "x2", "u1"),
        "a2": ("x1", "x2", "u2"),
        "b11": ("x1", "u1"),
        "b12": ("x2", "u1"),
        "b21": ("x1", "u2"),
        "b22": ("x2", "u2"),
        "xv1": ("x1", "v1"),
        "xv2": ("x2", "v2"),
        "uv1": ("v1", "u1"),
        "uv2": ("v2", "u2"),
    }

    def __init__(
        self,
        shapes_KTF: tuple[tuple[int, int, int], tuple[int, int, int]],
        shared_width: int,
        private_width: int,
        *,
        hidden: int = 96,
        layers: int = 3,
        vector_width: int = 48,
        limit: float = 5.0,
    ) -> None:
        super().__init__()
        self.limit = limit
        self.vectors = nn.ModuleDict(
            {f"x{i}": SpectrogramVector(shape, vector_width) for i, shape in enumerate(shapes_KTF, start=1)}
        )
        widths = {"x": vector_width, "u": shared_width, "v": private_width}
        self.critics = nn.ModuleDict(
            {name: Critic([widths[part[0]] for part in parts], hidden, layers) for name, parts in self.ratios.items()}
        )

    def critic_loss(self, samples: PairSamples, generator: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropy a critic, to be minimised by the critics' own optimiser; u and v are taken as data."""
        losses = {}
        # Cached: one power iteration of the spectral norms a step instead of one a call.
        with cached():
            parts = self._parts(samples, detach=True)
            for name, names in self.ratios.items():
                critic = self.critics[name]
                assert isinstance(critic, Critic)
                losses[name] = ratio_loss(critic, [parts[n] for n in names], samples.sequence_B, generator)
        return losses

    def log_ratios(self, samples: PairSamples) -> dict[str, Tensor]:
        """log ratio of every critic at the joint samples, softly clamped, (B,) each; gradients reach u and v only."""
        with frozen(self):
            parts = self._parts(samples, detach=False)
            return {
                name: soft_clamp(self.critics[name]([parts[n] for n in names]), self.limit)
                for name, names in self.ratios.items()
            }

    def shared(self, ratio: dict[str, Tensor], beta: float) -> Tensor:
        """L(U1) + L(U2) with the corrected signs, from `log_ratios`."""
        first = ratio["a1"] - (1.0 - beta) * ratio["b11"] - ratio["b12"]
        second = ratio["a2"] - ratio["b21"] - (1.0 - beta) * ratio["b22"]
        return (first + second).mean()

    def private(self, ratio: dict[str, Tensor], gamma: float, epsilon: float) -> Tensor:
        """gamma (I(X1;V1) + I(X2;V2)) + epsilon (I(V1;U1) + I(V2;U2)) (eqs. 7, 22), minimised."""
        own = ratio["xv1"] + ratio["xv2"]
        overlap = ratio["uv1"] + ratio["uv2"]
        return (gamma * own + epsilon * overlap).mean()

    def constancy(self, ratio: dict[str, Tensor]) -> dict[str, float]:
        """E[A_i - B_ii] = I(X1;X2) for deterministic U: a free check of the critics, constant while training."""
        return {f"a_minus_b{i}": float((ratio[f"a{i}"] - ratio[f"b{i}{i}"]).detach().mean()) for i in (1, 2)}

    def _parts(self, samples: PairSamples, *, detach: bool) -> dict[str, Tensor]:
        parts = {
            "x1": self.vectors["x1"](samples.x1_BKTF),
            "x2": self.vectors["x2"](samples.x2_BKTF),
            "u1": samples.u1_BD,
            "u2": samples.u2_BD,
            "v1": samples.v1_BD,
            "v2": samples.v2_BD,
        }
        return {n: part.detach() if detach and n[0] != "x" else part for n, part in parts.items()}
