"""Density ratios by critics (InfoMAE eq. 6; METHOD 3.3): logit = log p(joint) / p(product of its parts).

Legend: B batch, K channels, T intervals, F bins, D width of a part, C width of a spectrogram's vector.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from aligner.negatives import sequence_derangements


class SpectrogramVector(nn.Module):
    """Convolutions that turn the unmasked spectrogram into a vector, shared by the critics of that modality."""

    def __init__(self, shape_KTF: tuple[int, int, int], width: int) -> None:
        super().__init__()
        channels, intervals, bins = shape_KTF
        flat = 32 * ((intervals + 1) // 2) * ((bins + 1) // 2)
        self.layers = nn.Sequential(
            spectral_norm(nn.Conv2d(channels, 32, 3, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(32, 32, 3, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            spectral_norm(nn.Linear(flat, width)),
        )

    def forward(self, x_BKTF: Tensor) -> Tensor:
        out: Tensor = self.layers(x_BKTF)
        return out


class Critic(nn.Module):
    """Parts of a sample, side by side -> logit_B. Spectral norm on all layers but the last, which sets the scale."""

    def __init__(self, widths: Sequence[int], hidden: int, layers: int) -> None:
        super().__init__()
        stack: list[nn.Module] = []
        width = sum(widths)
        for _ in range(layers - 1):
            stack += [spectral_norm(nn.Linear(width, hidden)), nn.LeakyReLU(0.2)]
            width = hidden
        self.layers = nn.Sequential(*stack, nn.Linear(width, 1))

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        out: Tensor = self.layers(torch.cat(list(parts), dim=1)).squeeze(1)
        return out


def ratio_loss(critic: Critic, parts: Sequence[Tensor], sequence_B: Tensor, generator: torch.Generator) -> Tensor:
    """Cross-entropy of telling joint samples (label 1) from products of the parts (label 0): minimal at the log ratio.

    Each part but the first is deranged in its own way, so a three-way product has three independent parts. In nats a
    sample, 0.693 when the critic knows nothing.
    """
    shuffles = sequence_derangements(sequence_B, len(parts) - 1, generator)
    product = [parts[0], *(part[shuffle] for part, shuffle in zip(parts[1:], shuffles, strict=True))]
    softplus = nn.functional.softplus
    return 0.5 * (softplus(-critic(parts)).mean() + softplus(critic(product)).mean())


def soft_clamp(logit: Tensor, limit: float) -> Tensor:
    """`limit` * tanh(logit / limit): slope 1 at zero, never beyond +-limit. For the model's loss only."""
    return limit * torch.tanh(logit / limit)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside, `module` has no trainable parameter: gradients flow through its inputs only."""
    wanted = [parameter.requires_grad for parameter in module.parameters()]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, want in zip(module.parameters(), wanted, strict=True):
            parameter.requires_grad_(want)
