"""Temporal locality: windows of one sequence lie nearer to each other than to other sequences (InfoMAE eq. 10).

Legend: B batch, D width.
"""

import torch
from torch import Tensor, nn


class TemporalLocality(nn.Module):
    """Hinge: mean distance within a sequence + margin <= mean distance to other sequences, averaged over anchors.

    Euclidean distances of unit vectors, so the margin cannot be met by growing norms; an anchor's distance to itself
    does not count; anchors without a neighbour or without a stranger are left out (zero when none is left).
    """

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, h_BD: Tensor, sequence_B: Tensor) -> Tensor:
        h = nn.functional.normalize(h_BD, dim=1)
        # The epsilon keeps the root's gradient finite where two windows coincide.
        distance_BB = (2.0 - 2.0 * h @ h.T).clamp(min=1e-8).sqrt()
        same = sequence_B[:, None] == sequence_B[None, :]
        strangers = ~same
        mates = same & ~torch.eye(len(h), dtype=torch.bool)
        usable = mates.any(dim=1) & strangers.any(dim=1)
        if not bool(usable.any()):
            return h_BD.sum() * 0.0
        near = (distance_BB * mates).sum(dim=1) / mates.sum(dim=1).clamp(min=1)
        far = (distance_BB * strangers).sum(dim=1) / strangers.sum(dim=1).clamp(min=1)
        return (near - far + self.margin).clamp(min=0.0)[usable].mean()
