"""SW-T: a small Swin encoder for interval spectrograms (InfoMAE 2504.09707, appendix; METHOD 1).

Legend: B batch, K spectrogram channels, T intervals, F bins, L tokens, D width, R output.
"""

import torch
from torch import Tensor, nn

from aligner.config import EncoderConfig
from aligner.masking import pixel_mask
from aligner.swin_block import PatchMerging, SwinBlock


class PatchEmbedding(nn.Module):
    """Spectrogram -> patch tokens: x_BKTF -> x_BLD, then LayerNorm. Ragged edges are padded with zeros."""

    def __init__(self, shape_KTF: tuple[int, int, int], patch: tuple[int, int], width: int) -> None:
        super().__init__()
        channels, intervals, bins = shape_KTF
        self.patch = patch
        self.grid = (-(-intervals // patch[0]), -(-bins // patch[1]))
        self.padding = (0, self.grid[1] * patch[1] - bins, 0, self.grid[0] * patch[0] - intervals)
        self.project = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BKTF: Tensor) -> Tensor:
        if any(self.padding):
            x_BKTF = nn.functional.pad(x_BKTF, self.padding)
        out: Tensor = self.norm(self.project(x_BKTF).flatten(2).transpose(1, 2))
        return out


class SwinEncoder(nn.Module):
    """x_BKTF -> r_BR: the last grid's tokens, normalised and laid side by side, so that order in time survives.

    With `skip` the visible input itself follows: a short pretraining on little data loses what a linear map on the
    log magnitudes can read (the skip is worth up to 6 points of macro-F1 to the linear probe on two cores).

    `tokens` gives them before flattening; `masked_BL` (True = hidden) replaces tokens by one learned token after the
    patch embedding, so the grid stays whole (METHOD 2). `grid`, `last_grid`: tokens before and after merging.
    """

    def __init__(self, shape_KTF: tuple[int, int, int], config: EncoderConfig) -> None:
        super().__init__()
        self.shape_KTF = shape_KTF
        self.patch = config.patch
        self.window = config.window
        self.embed = PatchEmbedding(shape_KTF, config.patch, config.width)
        self.grid = self.embed.grid
        self.mask_token = nn.Parameter(torch.zeros(config.width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        count, done = sum(config.depths), 0
        grid, width = self.grid, config.width
        stages: list[nn.Module] = []
        for stage, depth in enumerate(config.depths):
            if stage:
                merge = PatchMerging(grid, width)
                stages.append(merge)
                grid, width = merge.grid, 2 * width
            for block in range(depth):
                drop_path = config.drop_path * (done + block) / max(1, count - 1)
                stages.append(
                    SwinBlock(
                        grid,
                        width,
                        config.heads,
                        config.window,
                        shifted=block % 2 == 1,
                        dropout=config.dropout,
                        drop_path=drop_path,
                    )
                )
            done += depth
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(width)
        self.last_grid, self.last_width = grid, width
        self.skip = config.skip
        pixels = shape_KTF[0] * shape_KTF[1] * shape_KTF[2] if config.skip else 0
        self.embedding_width = grid[0] * grid[1] * width + pixels

    def tokens(self, x_BKTF: Tensor, masked_BL: Tensor | None = None) -> Tensor:
        x_BLD = self.embed(x_BKTF)
        if masked_BL is not None:
            x_BLD = torch.where(masked_BL[:, :, None], self.mask_token, x_BLD)
        out: Tensor = self.norm(self.stages(x_BLD))
        return out

    def forward(self, x_BKTF: Tensor, masked_BL: Tensor | None = None) -> Tensor:
        tokens_BR = self.tokens(x_BKTF, masked_BL).flatten(1)
        if not self.skip:
            return tokens_BR
        if masked_BL is not None:
            hidden_BTF = pixel_mask(masked_BL, self.grid, self.patch, (self.shape_KTF[1], self.shape_KTF[2]))
            x_BKTF = x_BKTF.masked_fill(hidden_BTF[:, None], 0.0)
        return torch.cat([tokens_BR, x_BKTF.flatten(1)], dim=1)
