"""The cross-modal bottleneck: no three-way critic (METHOD 3.1).

For deterministic U, E[A_i - B_ii] = I(X1;X2) does not depend on U, so L(U1) = I(X1;X2) - I(U1;X2) + beta I(U1;X1):
up to a constant, minimise -B_12 + beta B_11.
"""

from torch import Tensor

from aligner.information.discriminator import DiscriminatorEstimator


class BottleneckEstimator(DiscriminatorEstimator):
    """The same critics without a1 and a2; one cooperative and one adversarial ratio a modality."""

    ratios = {k: v for k, v in DiscriminatorEstimator.ratios.items() if len(v) == 2}

    def shared(self, ratio: dict[str, Tensor], beta: float) -> Tensor:
        """L(U1) + L(U2) - 2 I(X1;X2)."""
        first = beta * ratio["b11"] - ratio["b12"]
        second = beta * ratio["b22"] - ratio["b21"]
        return (first + second).mean()

    def constancy(self, ratio: dict[str, Tensor]) -> dict[str, float]:
        """Nothing to check: there is no three-way ratio."""
        return {}
