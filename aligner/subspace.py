"""Coordinates of a part in its principal subspace, each margin brought to unit scale first.

Legend: N rows fitted, B rows mapped, D width of a part, k kept directions.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

EXACT_UP_TO = 256  # wider parts take a randomised decomposition (Halko et al., SIAM Review 2011)
RANK_TOLERANCE = 1e-9


class Margins(Protocol):
    """A map of every coordinate alone, fitted to (N, D); it takes (B, D) and lets gradients through."""

    def __call__(self, rows_BD: Tensor) -> Tensor: ...


class Standard:
    """Mean 0, variance 1, so that no unit of measurement rules; a constant coordinate becomes 0."""

    def __init__(self, rows_ND: Tensor) -> None:
        self.mean_D = rows_ND.mean(dim=0)
        std_D = rows_ND.std(dim=0)
        varies_D = std_D > 1e-9 * (1.0 + self.mean_D.abs())
        self.factor_D = torch.where(varies_D, 1.0 / std_D.clamp(min=1e-30), 0.0)

    def __call__(self, rows_BD: Tensor) -> Tensor:
        return (rows_BD - self.mean_D) * self.factor_D


class RankNormal:
    """Normal scores: the standard normal quantile of rank / (N + 1), ties at their mean rank.

    Ranks have no derivative; the gradient takes the slope of the map over sqrt(N) ranks on either side, which is the
    coordinate's density over that of the normal law.
    """

    def __init__(self, rows_ND: Tensor) -> None:
        self.sorted_DN = rows_ND.detach().T.contiguous().sort(dim=1).values

    def __call__(self, rows_BD: Tensor) -> Tensor:
        values_DB = rows_BD.detach().T.contiguous()
        below_DB = torch.searchsorted(self.sorted_DN, values_DB)
        up_to_DB = torch.searchsorted(self.sorted_DN, values_DB, right=True)
        count = self.sorted_DN.shape[1]
        rank_DB = (0.5 * (below_DB + up_to_DB + 1)).clamp(0.5, count + 0.5)
        score_DB = _normal_quantile(rank_DB, count).where(values_DB.isfinite(), math.nan)
        if not rows_BD.requires_grad:
            return score_DB.T
        reach = math.ceil(math.sqrt(count))
        low_DB, high_DB = (below_DB - reach).clamp(min=0), (below_DB + reach).clamp(max=count - 1)
        rise_DB = _normal_quantile(high_DB + 1.0, count) - _normal_quantile(low_DB + 1.0, count)
        run_DB = self.sorted_DN.gather(1, high_DB) - self.sorted_DN.gather(1, low_DB)
        slope_DB = torch.where(run_DB > 0, rise_DB / run_DB.clamp(min=1e-30), 0.0)
        # Zero in value; its derivative is the slope.
        return score_DB.T + slope_DB.T * (rows_BD - rows_BD.detach())


def _normal_quantile(rank: Tensor, count: int) -> Tensor:
    score: Tensor = torch.special.ndtri(rank.double() / (count + 1))
    return score


class Subspace:
    """The `width` leading principal directions of fitted margins, scaled to variance 1; fewer when the rank is less."""

    def __init__(self, rows_ND: Tensor, width: int, margins: type[Standard] | type[RankNormal] = Standard) -> None:
        self.margins: Margins = margins(rows_ND)
        z_ND = self.margins(rows_ND.detach())
        self.mean_D = z_ND.mean(dim=0)
        values, vectors_Dk = _principal(z_ND - self.mean_D, width)
        kept = values > RANK_TOLERANCE * max(float(values.max()), 1e-30)
        self.map_Dk = vectors_Dk[:, kept] / values[kept].sqrt()

    def __call__(self, rows_BD: Tensor) -> Tensor:
        return (self.margins(rows_BD) - self.mean_D) @ self.map_Dk


def _principal(z_ND: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Variances and directions, largest first, `width` of them at most."""
    count, wide = z_ND.shape
    width = min(width, wide)
    if wide <= EXACT_UP_TO:
        values, vectors = torch.linalg.eigh(z_ND.T @ z_ND / count)
        return values.flip(0)[:width], vectors.flip(1)[:, :width]
    # Its own seed: the draws of a training stay what they are, and the same rows give the same subspace.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, singular, vectors = torch.svd_lowrank(z_ND, q=min(width + 8, count, wide), niter=4)
    return singular[:width].square() / count, vectors[:, :width]
