"""NT-Xent between two views (Chen et al., SimCLR 2020; InfoMAE eq. 9 with its missing minus; METHOD 3.4).

Legend: B batch, D width.
"""

import torch
from torch import Tensor, nn


class NtXent(nn.Module):
    """Mean over both views of -log softmax of the positive; cosine similarity over `temperature`.

    The denominator of an anchor holds its positive and all 2 (B - 1) others, of its own view and of the other. In
    nats; chance is log(2B - 1).
    """

    def __init__(self, temperature: float = 0.2) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, a_BD: Tensor, b_BD: Tensor) -> Tensor:
        batch = len(a_BD)
        both = nn.functional.normalize(torch.cat([a_BD, b_BD]), dim=1)
        logits = both @ both.T / self.temperature
        logits = logits.masked_fill(torch.eye(2 * batch, dtype=torch.bool), float("-inf"))
        positive = torch.arange(2 * batch).roll(batch)
        return nn.functional.cross_entropy(logits, positive)


class CrossNce(nn.Module):
    """Symmetric cross-modal NCE over the pairs of a batch (CMC form): the other modality's rows are the negatives.

    `same_BB` marks rows that must not count as each other's negatives (neighbours in time of one recording).
    """

    def __init__(self, temperature: float = 0.2) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, a_BD: Tensor, b_BD: Tensor, same_BB: Tensor | None = None) -> Tensor:
        a, b = nn.functional.normalize(a_BD, dim=1), nn.functional.normalize(b_BD, dim=1)
        logits = a @ b.T / self.temperature
        if same_BB is not None:
            others = same_BB & ~torch.eye(len(a), dtype=torch.bool)
            logits = logits.masked_fill(others, float("-inf"))
        target = torch.arange(len(a))
        forward = nn.functional.cross_entropy(logits, target)
        return 0.5 * (forward + nn.functional.cross_entropy(logits.T, target))
