"""Variance and decorrelation of an embedding, against collapse to few directions (VICReg, Bardes et al., ICLR 2022).

Legend: B batch, D width.
"""

import torch
from torch import Tensor


def variance_hinge(u_BD: Tensor, target: float = 1.0) -> Tensor:
    """Mean over dimensions of max(0, target - std): zero when every dimension varies by at least `target`."""
    std_D = (u_BD.var(dim=0) + 1e-4).sqrt()
    return (target - std_D).clamp(min=0.0).mean()


def decorrelation(u_BD: Tensor) -> Tensor:
    """Sum of squared off-diagonal covariances divided by D; zero when all dimensions are uncorrelated."""
    centred = u_BD - u_BD.mean(dim=0)
    covariance = centred.T @ centred / (len(u_BD) - 1)
    off = covariance - torch.diag(torch.diagonal(covariance))
    return off.square().sum() / u_BD.shape[1]
