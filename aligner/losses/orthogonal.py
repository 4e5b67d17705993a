"""Orthogonality of two parts of an embedding (FOCAL, Liu et al., NeurIPS 2023, section 3.3).

Legend: B batch, D and P widths.
"""

from torch import Tensor, nn


def orthogonality(a_BD: Tensor, b_BP: Tensor) -> Tensor:
    """Mean |cosine| of row i of a with row i of b: zero when they are orthogonal, one when parallel either way.

    The minimum of the paper's bare cosine is antiparallel, which tells as much of a as parallel does: hence the
    absolute value. The narrower of the two counts as padded with zeros.
    """
    width = min(a_BD.shape[1], b_BP.shape[1])
    a, b = nn.functional.normalize(a_BD, dim=1), nn.functional.normalize(b_BP, dim=1)
    return (a[:, :width] * b[:, :width]).sum(dim=1).abs().mean()
