"""Contrast of queries with fixed keys (MoCo v3, Chen, Xie, He, ICCV 2021, algorithm 1).

Legend: B batch, D width.
"""

import torch
from torch import Tensor, nn


class QueryContrast(nn.Module):
    """2 tau times the mean of -log softmax over the keys of the batch; cosine over `temperature`, one direction.

    The factor keeps the gradient's size when tau changes. Nats times 2 tau; chance is 2 tau log B.
    """

    def __init__(self, temperature: float = 0.2) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, q_BD: Tensor, k_BD: Tensor) -> Tensor:
        q, k = nn.functional.normalize(q_BD, dim=1), nn.functional.normalize(k_BD, dim=1)
        loss = nn.functional.cross_entropy(q @ k.T / self.temperature, torch.arange(len(q)))
        return 2.0 * self.temperature * loss
