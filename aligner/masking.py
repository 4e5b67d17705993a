"""Patch masks and the masked reconstruction error (METHOD 2).

Legend: B batch, K channels, T intervals, F bins, L patches of the grid.
"""

import torch
from torch import Tensor


def window_mask(
    batch: int, grid: tuple[int, int], unit: tuple[int, int], ratio: float, generator: torch.Generator
) -> Tensor:
    """Return `masked_BL` (True = hidden): whole units of `unit` patches, `ratio` of them as nearly as units allow.

    Every sample gets its own draw; at least one unit is hidden and at least one stays visible where there are two.
    """
    rows, columns = -(-grid[0] // unit[0]), -(-grid[1] // unit[1])
    units = rows * columns
    hidden = min(max(1, round(ratio * units)), max(1, units - 1))
    order_BU = torch.rand(batch, units, generator=generator).argsort(dim=1).argsort(dim=1)
    mask = (order_BU < hidden).view(batch, rows, columns)
    mask = mask.repeat_interleave(unit[0], dim=1).repeat_interleave(unit[1], dim=2)
    return mask[:, : grid[0], : grid[1]].reshape(batch, -1)


def pixel_mask(masked_BL: Tensor, grid: tuple[int, int], patch: tuple[int, int], shape_TF: tuple[int, int]) -> Tensor:
    """Return `hidden_BTF`: the mask of patches on intervals and bins; padding beyond the spectrogram is cut off."""
    mask = masked_BL.view(-1, *grid).repeat_interleave(patch[0], dim=1).repeat_interleave(patch[1], dim=2)
    return mask[:, : shape_TF[0], : shape_TF[1]]


def masked_mse(predicted_BKTF: Tensor, target_BKTF: Tensor, hidden_BTF: Tensor) -> Tensor:
    """Mean squared error over hidden places only (a mean over channels and places; zero when nothing is hidden)."""
    weight = hidden_BTF[:, None].to(target_BKTF.dtype)
    squared = (predicted_BKTF - target_BKTF).square() * weight
    return squared.sum() / (weight.sum() * target_BKTF.shape[1]).clamp(min=1.0)
