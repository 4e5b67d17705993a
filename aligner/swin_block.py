"""Swin Transformer blocks on a fixed grid (Liu et al., ICCV 2021), static in shape and free of rolls.

The shift, the padding and the partition into windows are one gather with an index computed once; parameter names are
those of timm's SwinTransformerBlock, so weights can be carried over.
Legend: B batch, L tokens of the grid (T x F), D width, W windows, S tokens a window, H heads.
"""

import torch
from torch import Tensor, nn


class WindowAttention(nn.Module):
    """Self-attention inside windows with a relative position bias; `mask_WSS` is added to the logits."""

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: tuple[int, int], dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.window = window
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window[0] - 1) * (2 * window[1] - 1), heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", _relative_index(window), persistent=False)

    def forward(self, x_BWSD: Tensor, mask_WSS: Tensor | None) -> Tensor:
        b, w, s, d = x_BWSD.shape
        qkv = self.qkv(x_BWSD).view(b, w, s, 3, self.heads, d // self.heads).permute(3, 0, 1, 4, 2, 5)
        q, k, v = qkv[0], qkv[1], qkv[2]
        logits = (q * self.scale) @ k.transpose(-2, -1)
        bias_SSH = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(s, s, self.heads)
        logits = logits + bias_SSH.permute(2, 0, 1)
        if mask_WSS is not None:
            logits = logits + mask_WSS[:, None]
        attention = self.dropout(logits.softmax(dim=-1))
        out: Tensor = self.dropout(self.proj((attention @ v).transpose(2, 3).reshape(b, w, s, d)))
        return out


class Mlp(nn.Module):
    """Two layers with GELU, four times the width between them."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.fc2(nn.functional.gelu(self.fc1(x))))
        return out


class DropPath(nn.Module):
    """Drops a residual branch for whole samples while training."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.share == 0.0:
            return x
        keep = torch.rand(x.shape[0], *([1] * (x.ndim - 1)), device=x.device) >= self.share
        return x * keep / (1.0 - self.share)


class SwinBlock(nn.Module):
    """x_BLD -> x_BLD on `grid`; a window as large as an axis is not shifted along it, and padding is masked out."""

    gather: Tensor
    scatter: Tensor
    mask_WSS: Tensor | None

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        heads: int,
        window: tuple[int, int],
        *,
        shifted: bool,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        window = (min(window[0], grid[0]), min(window[1], grid[1]))
        shift = tuple(w // 2 if shifted and w < g else 0 for w, g in zip(window, grid, strict=True))
        gather, scatter, mask = _partition(grid, window, (shift[0], shift[1]))
        self.register_buffer("gather", gather, persistent=False)
        self.register_buffer("scatter", scatter, persistent=False)
        self.register_buffer("mask_WSS", mask, persistent=False)
        self.windows = gather.numel() // (window[0] * window[1])
        self.padded = gather.numel() > grid[0] * grid[1]
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BLD: Tensor) -> Tensor:
        b, _, d = x_BLD.shape
        y = self.norm1(x_BLD)
        if self.padded:
            y = torch.cat([y, torch.zeros_like(y[:, :1])], dim=1)
        y_BWSD = y[:, self.gather].view(b, self.windows, -1, d)
        y = self.attn(y_BWSD, self.mask_WSS).view(b, -1, d)[:, self.scatter]
        x_BLD = x_BLD + self.drop_path(y)
        out: Tensor = x_BLD + self.drop_path(self.mlp(self.norm2(x_BLD)))
        return out


class PatchMerging(nn.Module):
    """Joins 2 x 2 neighbouring tokens and doubles the width; odd grids are padded with zeros."""

    gather: Tensor

    def __init__(self, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
        rows = torch.full((2 * self.grid[0], 2 * self.grid[1]), grid[0] * grid[1])
        rows[: grid[0], : grid[1]] = torch.arange(grid[0] * grid[1]).view(grid)
        joined = torch.stack([rows[0::2, 0::2], rows[1::2, 0::2], rows[0::2, 1::2], rows[1::2, 1::2]], dim=-1)
        self.register_buffer("gather", joined.reshape(-1), persistent=False)
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        b, _, d = x_BLD.shape
        padded = torch.cat([x_BLD, torch.zeros_like(x_BLD[:, :1])], dim=1)
        out: Tensor = self.reduction(self.norm(padded[:, self.gather].view(b, -1, 4 * d)))
        return out


def _relative_index(window: tuple[int, int]) -> Tensor:
    """`index_SS` into the bias table: offset in time times the table's row length plus offset in frequency."""
    t, f = torch.meshgrid(torch.arange(window[0]), torch.arange(window[1]), indexing="ij")
    where_2S = torch.stack([t.flatten(), f.flatten()])
    offset_2SS = where_2S[:, :, None] - where_2S[:, None, :]
    return (offset_2SS[0] + window[0] - 1) * (2 * window[1] - 1) + offset_2SS[1] + window[1] - 1


def _partition(
    grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gather index (token of every window place, L for padding), its inverse, and the additive mask or None.

    Tokens see each other when they were neighbours before the cyclic shift; nothing sees padding.
    """
    size = [-(-g // w) * w for g, w in zip(grid, window, strict=True)]
    tokens = torch.full((size[0], size[1]), grid[0] * grid[1])
    tokens[: grid[0], : grid[1]] = torch.arange(grid[0] * grid[1]).view(grid)
    region = torch.zeros(size[0], size[1], dtype=torch.long)
    for axis in (0, 1):
        if shift[axis]:
            step = torch.zeros(size[axis], dtype=torch.long)
            step[size[axis] - window[axis] : size[axis] - shift[axis]] = 1
            step[size[axis] - shift[axis] :] = 2
            region = region * 3 + (step[:, None] if axis == 0 else step[None, :])
    tokens = torch.roll(tokens, (-shift[0], -shift[1]), (0, 1))

    def windows(plane: Tensor) -> Tensor:
        split = plane.view(size[0] // window[0], window[0], size[1] // window[1], window[1])
        return split.permute(0, 2, 1, 3).reshape(-1, window[0] * window[1])

    token_WS, region_WS = windows(tokens), windows(region)
    gather = token_WS.reshape(-1)
    scatter = torch.empty(grid[0] * grid[1], dtype=torch.long)
    real = gather < grid[0] * grid[1]
    scatter[gather[real]] = torch.nonzero(real).flatten()
    blocked = (region_WS[:, :, None] != region_WS[:, None, :]) | (token_WS == grid[0] * grid[1])[:, None, :]
    mask = torch.where(blocked, -100.0, 0.0) if bool(blocked.any()) else None
    return gather, scatter, mask
