"""How many principal directions of a set of rows are more than chance (Horn 1965, by permutations).

Legend: B rows, R columns.
"""

import torch
from torch import Tensor

ROWS = 512


def parallel_rank(r_BR: Tensor, generator: torch.Generator, draws: int = 5) -> int:
    """Leading eigenvalues of the correlation matrix above the largest that any of `draws` null sets has at its place.

    A null set has each column permuted on its own, so that columns keep their law and lose their relation. At most
    512 rows are looked at, drawn by `generator`. At least 1; constant columns do not count.
    """
    rows = torch.randperm(len(r_BR), generator=generator)[:ROWS]
    r = r_BR[rows].double()
    std = r.std(dim=0)
    r = ((r - r.mean(dim=0)) / std.clamp(min=1e-9))[:, std > 1e-6]
    if not r.shape[1]:
        return 1
    null = torch.zeros(min(r.shape), dtype=torch.double)
    for _ in range(draws):
        order = torch.rand(r.shape, generator=generator).argsort(dim=0)
        null = torch.maximum(null, _spectrum(r.gather(0, order)))
    above = _spectrum(r) > null
    return max(1, int(above.long().cumprod(dim=0).sum()))


def _spectrum(r: Tensor) -> Tensor:
    """Eigenvalues of r^T r / B, largest first, by the smaller of the two Gram matrices."""
    gram = r @ r.T if len(r) < r.shape[1] else r.T @ r
    out: Tensor = torch.linalg.eigvalsh(gram / len(r)).flip(0)
    return out
