"""Information of parts whose copula is Gaussian: `gaussian` on normal scores of the coordinates' ranks (METHOD 4).

Mutual information does not change when a coordinate goes through a monotone map, and neither does this estimate; the
plain Gaussian one does. The price: ranks of few rows are coarse, so strong dependence comes out too small. Of 0.673
nats left by a condition that holds four fifths of the variance it finds 0.44 at 60 rows, 0.60 at 300, 0.65 at 1000
(`gaussian` 0.67 at 60). Legend: N rows, D width.
"""

from torch import Tensor

from aligner.information.gaussian import GaussianEstimator, gaussian_information
from aligner.subspace import RankNormal


def copula_information(
    x_ND: Tensor, y_ND: Tensor, given_ND: Tensor | None = None, *, width: int | None = None
) -> float:
    """As `gaussian_information`, whatever the margins; the same value for any monotone rising map of a coordinate."""
    return gaussian_information(x_ND, y_ND, given_ND, width=width, margins=RankNormal)


class CopulaEstimator(GaussianEstimator):
    """The Gaussian estimator on normal scores, ranks taken over all pairs seen."""

    margins = RankNormal
