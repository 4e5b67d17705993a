"""Augmentations of spectrogram windows: FOCAL's pool, acting on the encoder's input (METHOD 3.4).

Legend: B batch, K channels, T intervals, F bins.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


def permutation(x_BKTF: Tensor, generator: torch.Generator) -> Tensor:
    """Swap the two halves around a random interval."""
    cut = int(torch.randint(1, x_BKTF.shape[2], (1,), generator=generator)) if x_BKTF.shape[2] > 1 else 0
    return torch.roll(x_BKTF, cut, dims=2)


def horizontal_flip(x_BKTF: Tensor, generator: torch.Generator) -> Tensor:
    """Reverse the order of the intervals."""
    return x_BKTF.flip(2)


def scaling(x_BKTF: Tensor, generator: torch.Generator) -> Tensor:
    """Multiply every sample's channels by N(1, 0.2)."""
    return x_BKTF * (1.0 + 0.2 * torch.randn(*x_BKTF.shape[:2], 1, 1, generator=generator))


def magnitude_warp(x_BKTF: Tensor, generator: torch.Generator) -> Tensor:
    """Multiply by a smooth curve over time around 1, deviation 0.05."""
    knots = 1.0 + 0.05 * torch.randn(x_BKTF.shape[0], 1, 4, generator=generator)
    curve = torch.nn.functional.interpolate(knots, size=x_BKTF.shape[2], mode="linear", align_corners=True)
    return x_BKTF * curve[..., None]


def time_warp(x_BKTF: Tensor, generator: torch.Generator) -> Tensor:
    """Resample the intervals along a smooth monotone time whose speed varies by 0.2."""
    batch, _, intervals, _ = x_BKTF.shape
    if intervals < 3:
        return x_BKTF
    knots = (1.0 + 0.2 * torch.randn(batch, 1, 4, generator=generator)).clamp(min=0.2)
    speed = torch.nn.functional.interpolate(knots, size=intervals - 1, mode="linear", align_corners=True)[:, 0]
    place = torch.cat([torch.zeros(batch, 1), speed.cumsum(dim=1)], dim=1)
    place = place / place[:, -1:] * (intervals - 1)
    low = place.floor().long().clamp(max=intervals - 2)
    share = (place - low)[:, None, :, None]
    low_BKTF = low[:, None, :, None].expand(-1, x_BKTF.shape[1], -1, x_BKTF.shape[3])
    return x_BKTF.gather(2, low_BKTF) * (1 - share) + x_BKTF.gather(2, low_BKTF + 1) * share


def jitter(x_BKTF: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise of a tenth of the normalised scale."""
    return x_BKTF + 0.1 * torch.randn(x_BKTF.shape, generator=generator)


def channel_dropout(x_BKTF: Tensor, generator: torch.Generator) -> Tensor:
    """Set about a tenth of the channels to their centre (zero after normalisation), drawn a sample."""
    keep = torch.rand(*x_BKTF.shape[:2], 1, 1, generator=generator) >= 0.1
    return x_BKTF * keep


AUGMENTATIONS: dict[str, Augmentation] = {
    "permutation": permutation,
    "horizontal_flip": horizontal_flip,
    "scaling": scaling,
    "magnitude_warp": magnitude_warp,
    "time_warp": time_warp,
    "jitter": jitter,
    "channel_dropout": channel_dropout,
}
# Reversing or permuting time turns sitting down into standing up: what the classes of motion are made of.
KEEPING_ORDER = ("scaling", "magnitude_warp", "time_warp", "jitter", "channel_dropout")


def augment(x_BKTF: Tensor, names: tuple[str, ...], generator: torch.Generator, probability: float = 0.5) -> Tensor:
    """Apply one augmentation of `names`, drawn a batch, with `probability`; the shape stays."""
    if not names or float(torch.rand(1, generator=generator)) >= probability:
        return x_BKTF
    name = names[int(torch.randint(len(names), (1,), generator=generator))]
    return AUGMENTATIONS[name](x_BKTF, generator)
