"""Fusion of modalities for multimodal contrast (CoMM, InfMasking; METHOD 5): tokens -> one transformer -> unit vector.

Legend: B batch, D width of u, S tokens a modality, W their width, Z width of the output.
"""

import torch
from torch import Tensor, nn


class Tokens(nn.Module):
    """u_BD, v_BD -> (B, S, W): half of the tokens from u by a map that all modalities share, half from v by its own.

    So what the fusion reads of u it reads at the same place from every modality.
    """

    def __init__(self, shared: nn.Linear, private_width: int, own: int, width: int) -> None:
        super().__init__()
        self._shared = [shared]
        self.width = width
        self.private = nn.Linear(private_width, own * width)

    def forward(self, u_BD: Tensor, v_BD: Tensor) -> Tensor:
        rows = torch.cat([self._shared[0](u_BD), self.private(v_BD)], dim=1)
        return rows.view(len(u_BD), -1, self.width)


class Fusion(nn.Module):
    """Tokens of any subset of modalities -> z_BZ of unit norm: one transformer layer, CLS, a head with BatchNorm.

    A masked token is replaced, position and all, by one learned token.
    """

    def __init__(
        self,
        widths: dict[str, tuple[int, int]],
        *,
        tokens: int,
        width: int,
        heads: int,
        head_width: int,
        width_out: int,
    ) -> None:
        super().__init__()
        half = tokens // 2
        self.shared = nn.Linear(next(iter(widths.values()))[0], (tokens - half) * width)
        self.tokens = nn.ModuleDict(
            {n: Tokens(self.shared, private, half, width) for n, (_, private) in widths.items()}
        )
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.mask_token, self.cls = (nn.Parameter(0.02 * torch.randn(width)) for _ in range(2))
        self.layer = nn.TransformerEncoderLayer(
            width, heads, dim_feedforward=2 * width, dropout=0.0, activation="gelu", batch_first=True
        )
        layers: list[nn.Module] = []
        for before, after in ((width, head_width), (head_width, head_width)):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Linear(head_width, width_out))

    def tokenise(self, modality: str, u_BD: Tensor, v_BD: Tensor) -> Tensor:
        """Tokens with their positions, (B, S, W)."""
        out: Tensor = self.tokens[modality](u_BD, v_BD) + self.position
        return out

    def masked(self, tokens_BSW: Tensor, share: float, generator: torch.Generator) -> Tensor:
        """`share` of each row's tokens, at least one and not all where there are two, replaced; drawn a row."""
        count = tokens_BSW.shape[1]
        hidden = min(max(1, round(share * count)), max(1, count - 1))
        order = torch.rand(tokens_BSW.shape[:2], generator=generator).argsort(dim=1).argsort(dim=1)
        return torch.where((order < hidden)[:, :, None], self.mask_token, tokens_BSW)

    def forward(self, tokens: list[Tensor]) -> Tensor:
        rows = torch.cat([self.cls.expand(len(tokens[0]), 1, -1), *tokens], dim=1)
        out: Tensor = nn.functional.normalize(self.head(self.layer(rows)[:, 0]), dim=1)
        return out
