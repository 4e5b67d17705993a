"""Temporal neighbourhood coding (Tonekaboni, Eytan, Goldenberg, ICLR 2021, eq. 2) with its positive-unlabelled weight.

Legend: B batch, D width, H hidden.
"""

import torch
from torch import Tensor, nn


class Neighbourhood(nn.Module):
    """Discriminator D(h_i, h_j) = probability that windows i and j are neighbours, and the loss that both minimise:

        L = -mean_{j near i} log D - mean_{j far from i} [ w log D + (1 - w) log(1 - D) ]

    Near: another window of the same sequence. A far one is taken for a neighbour in disguise with weight w. Nats;
    2 log 2 for a discriminator that knows nothing. Zero when a batch has nothing near or nothing far.
    """

    def __init__(self, width: int, hidden: int = 64, weight: float = 0.05) -> None:
        super().__init__()
        self.weight = weight
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(width, hidden, bias=False)
        self.read = nn.Linear(hidden, 1)

    def logits(self, h_BD: Tensor) -> Tensor:
        """Log odds of D for every ordered pair, (B, B)."""
        hidden_BBH = nn.functional.relu(self.first(h_BD)[:, None] + self.second(h_BD)[None, :])
        out: Tensor = self.read(hidden_BBH)[..., 0]
        return out

    def forward(self, h_BD: Tensor, sequence_B: Tensor) -> Tensor:
        same = sequence_B[:, None] == sequence_B[None, :]
        near, far = same & ~torch.eye(len(h_BD), dtype=torch.bool), ~same
        if not bool(near.any()) or not bool(far.any()):
            return h_BD.sum() * 0.0
        logit_BB = self.logits(h_BD)
        yes, no = nn.functional.softplus(-logit_BB), nn.functional.softplus(logit_BB)
        return yes[near].mean() + (self.weight * yes + (1.0 - self.weight) * no)[far].mean()
