"""ModAlign's conditional density ratio (Li et al., ICCV 2025; METHOD 5), from a matrix of log ratios of a batch.

    h* = p(z1,z2|T) / (p(z1,z2|T) + r p(z1|T) p(z2|T)),   so   logit h* = log ratio - log r
    critic:  minimise  - E_pos log h - r E_neg log(1 - h);      I(Z1;Z2|T) = E_pos[logit h + log r]

Positives are rows of one moment, negatives rows of another recording in the same context T. *choice*: all of them in
the batch serve, and r weighs their mean; a row without a negative is left out. The mean is over each row's negatives
first: else large contexts had more negatives a positive, and the ratio were off by a constant of the context.
Legend: B batch; row i and column j are the moments of z1 and z2; logits_BB holds the log ratio.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus


def negatives(context_B: Tensor, sequence_B: Tensor) -> Tensor:
    """Boolean (B, B): same context, another recording."""
    same = context_B[:, None] == context_B[None, :]
    return same & (sequence_B[:, None] != sequence_B[None, :])


def critic_loss(log_ratio_BB: Tensor, negative_BB: Tensor, r: float) -> Tensor:
    """The two-term loss, in nats a positive; zero (with a gradient) when no row has a negative."""
    logits = log_ratio_BB - math.log(r)
    counts = negative_BB.sum(dim=1)
    usable = counts > 0
    if not bool(usable.any()):
        return log_ratio_BB.sum() * 0.0
    positive = softplus(-logits.diagonal())
    negative = (softplus(logits) * negative_BB).sum(dim=1) / counts.clamp(min=1)
    return (positive + r * negative)[usable].mean()


def shortfall(log_ratio_BB: Tensor, negative_BB: Tensor, context_B: Tensor, margin: float) -> tuple[Tensor, float]:
    """Mean over contexts of max(0, margin log B_T - I_T), and the mean of I over its rows.

    B_T counts the context's usable rows: of no more than log B_T nats can a batch tell. The hinge is the protective
    margin: a context that shares enough is pulled no further.
    """
    usable = negative_BB.any(dim=1)
    if not bool(usable.any()):
        return log_ratio_BB.sum() * 0.0, 0.0
    information = log_ratio_BB.diagonal()[usable]
    _, place, counts = torch.unique(context_B[usable], return_inverse=True, return_counts=True)
    mean_T = torch.zeros(len(counts)).to(information).index_add(0, place, information) / counts
    missing = (margin * counts.to(information).log() - mean_T).clamp(min=0.0)
    return missing.mean(), float(information.detach().mean())
