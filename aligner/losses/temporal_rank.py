"""Temporal rank: a sequence is tighter than it is near to any other (FOCAL, Liu et al., NeurIPS 2023, section 3.4).

Legend: B batch, D width, S sequences.
"""

import torch
from torch import Tensor, nn


class TemporalRank(nn.Module):
    """Hinge of every ordered pair of sequences: mean distance within s + margin <= mean distance from s to t.

    `TemporalLocality` compares with the mean over all strangers; here each other sequence has to keep away by itself.
    Euclidean distances of unit vectors (METHOD 3.4), distances to oneself left out, sequences of one window only
    as the other one. Zero when nothing can be compared.
    """

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, h_BD: Tensor, sequence_B: Tensor) -> Tensor:
        h = nn.functional.normalize(h_BD, dim=1)
        # The epsilon keeps the root's gradient finite where two windows coincide.
        distance_BB = (2.0 - 2.0 * h @ h.T).clamp(min=1e-8).sqrt()
        distance_BB = distance_BB.masked_fill(torch.eye(len(h), dtype=torch.bool), 0.0)
        member_SB = (torch.unique(sequence_B)[:, None] == sequence_B[None, :]).to(h.dtype)
        count_S = member_SB.sum(dim=1)
        summed_SS = member_SB @ distance_BB @ member_SB.T
        within_S = summed_SS.diagonal() / (count_S * (count_S - 1.0)).clamp(min=1.0)
        between_SS = summed_SS / (count_S[:, None] * count_S[None, :])
        compared = (count_S > 1)[:, None] & ~torch.eye(len(count_S), dtype=torch.bool)
        if not bool(compared.any()):
            return h_BD.sum() * 0.0
        hinge_SS: Tensor = (within_S[:, None] - between_SS + self.margin).clamp(min=0.0)
        return hinge_SS[compared].mean()
