"""Decoders of masked reconstruction: mirrored Swin for stage 1, a light one from u || v for stage 2.

Legend: B batch, K channels, T intervals, F bins, L tokens, D width.
"""

import torch
from torch import Tensor, nn

from aligner.encoders.swin import SwinEncoder
from aligner.swin_block import SwinBlock


class MirroredDecoder(nn.Module):
    """Tokens of a SwinEncoder's last grid -> x_BKTF: unmerge step by step, a Swin block a step, then patches."""

    def __init__(self, encoder: SwinEncoder, heads: int) -> None:
        super().__init__()
        self.shape_KTF, self.patch = encoder.shape_KTF, encoder.patch
        grids = [encoder.grid]
        while grids[-1] != encoder.last_grid:
            grids.append(((grids[-1][0] + 1) // 2, (grids[-1][1] + 1) // 2))
        self.grids = grids[::-1]
        self.expands, self.blocks = nn.ModuleList(), nn.ModuleList()
        width = encoder.last_width
        for grid in self.grids[1:]:
            self.expands.append(nn.Linear(width, 2 * width))
            width //= 2
            self.blocks.append(SwinBlock(grid, width, heads, encoder.window, shifted=False))
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, self.shape_KTF[0] * self.patch[0] * self.patch[1])

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        x = tokens_BLD
        for small, large, expand, block in zip(self.grids, self.grids[1:], self.expands, self.blocks, strict=False):
            b, _, d = x.shape
            x = expand(x).view(b, small[0], small[1], 2, 2, d // 2).permute(0, 1, 3, 2, 4, 5)
            x = x.reshape(b, 2 * small[0], 2 * small[1], d // 2)[:, : large[0], : large[1]].reshape(b, -1, d // 2)
            x = block(x)
        return self._to_spectrogram(self.predict(self.norm(x)))

    def _to_spectrogram(self, patches_BLP: Tensor) -> Tensor:
        channels, intervals, bins = self.shape_KTF
        grid, patch = self.grids[-1], self.patch
        x = patches_BLP.view(-1, grid[0], grid[1], channels, patch[0], patch[1]).permute(0, 3, 1, 4, 2, 5)
        return x.reshape(-1, channels, grid[0] * patch[0], grid[1] * patch[1])[:, :, :intervals, :bins]


class EmbeddingDecoder(nn.Module):
    """u || v -> x_BKTF by two layers: the decoder of stage 2 (eq. 8)."""

    def __init__(self, width_in: int, hidden: int, shape_KTF: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape_KTF = shape_KTF
        self.layers = nn.Sequential(
            nn.Linear(width_in, hidden), nn.GELU(), nn.Linear(hidden, shape_KTF[0] * shape_KTF[1] * shape_KTF[2])
        )

    def forward(self, u_BD: Tensor, v_BD: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat([u_BD, v_BD], dim=1))
        return out.view(-1, *self.shape_KTF)
