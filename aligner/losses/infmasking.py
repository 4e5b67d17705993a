"""InfMasking's masked term (Wen et al., NeurIPS 2025, arXiv 2509.25270; METHOD 5): many masks in closed form.

For an anchor q_i and its K masked versions z_ik, with l_ik = q_i . z_ik / tau, m and v their mean and biased variance,

    L_i = -m_i + log( exp(m_i + lambda v_i / 2) + sum_{j != i} ( sum_k exp(q_i . z_jk / tau) + exp(q_i . q_j / tau) ) )

At lambda 1 the first exponent is the log of E exp(l) for normal l: the positive of infinitely many masks. The authors
write m = q . mean(z) / tau and v = q^T Cov(z) q / tau^2; equal, but D^2 a sample where this needs K. Minimised.
`masked_term_mc` averages the K terms with their own positive instead: no law of l is assumed.
Legend: B batch, K masks, D width; q and z have unit norm.
"""

import torch
from torch import Tensor


def masked_term(q_BD: Tensor, z_BKD: Tensor, temperature: float, share: float, negative_BB: Tensor) -> Tensor:
    """Mean over i of L_i, lambda = `share`; `negative_BB` marks the j that are strangers to i (never i itself)."""
    positive_BK, others_B = _logits(q_BD, z_BKD, temperature, negative_BB)
    mean_B, variance_B = positive_BK.mean(dim=1), positive_BK.var(dim=1, unbiased=False)
    return (torch.logaddexp(mean_B + 0.5 * share * variance_B, others_B) - mean_B).mean()


def masked_term_mc(q_BD: Tensor, z_BKD: Tensor, temperature: float, negative_BB: Tensor) -> Tensor:
    """Mean over i and k of -l_ik + log( exp(l_ik) + the same negatives )."""
    positive_BK, others_B = _logits(q_BD, z_BKD, temperature, negative_BB)
    return (torch.logaddexp(positive_BK, others_B[:, None]) - positive_BK).mean()


def _logits(q_BD: Tensor, z_BKD: Tensor, temperature: float, negative_BB: Tensor) -> tuple[Tensor, Tensor]:
    """l_BK of the positives, and the log of the negatives' sum, (B,); -inf where there is none."""
    positive_BK = torch.einsum("bd,bkd->bk", q_BD, z_BKD) / temperature
    masked_BBK = torch.einsum("bd,jkd->bjk", q_BD, z_BKD) / temperature
    plain_BB1 = (q_BD @ q_BD.T / temperature)[:, :, None]
    every = torch.cat([masked_BBK, plain_BB1], dim=2).masked_fill(~negative_BB[:, :, None], float("-inf"))
    return positive_BK, every.flatten(1).logsumexp(dim=1)
