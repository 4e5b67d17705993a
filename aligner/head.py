"""The linear head: class-weighted multinomial logistic regression, to its optimum.

Legend: B windows, D features, Y classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from infomae_stream.errors import DataError


@dataclass(frozen=True)
class LinearHead:
    """`logits = x weight^T + bias`; centring and scale of the features are folded in."""

    weight_YD: NDArray[np.float32]
    bias_Y: NDArray[np.float32]

    def logits(self, x_BD: NDArray[np.float32]) -> NDArray[np.float32]:
        out: NDArray[np.float32] = x_BD @ self.weight_YD.T + self.bias_Y
        return out

    def predict(self, x_BD: NDArray[np.float32]) -> NDArray[np.int64]:
        out: NDArray[np.int64] = self.logits(x_BD).argmax(axis=1).astype(np.int64)
        return out


def fit_linear_head(
    x_BD: NDArray[np.float32], label_B: NDArray[np.int64], classes: int, *, l2: float, iterations: int
) -> LinearHead:
    """Minimise class-weighted cross-entropy + l2 |W|^2 over centred features, by L-BFGS from zero.

    Features are scaled by one number, not each by its own: a dimension that carries little keeps carrying little.

    Rows with label -1 are left out. Every class present weighs the same; an absent class gets logit about -log B.
    Deterministic. Raises DataError when fewer than two classes have labels.
    """
    known = label_B >= 0
    if len(np.unique(label_B[known])) < 2:
        raise DataError("labels of fewer than two classes", where="linear head", fix="import labels first")
    x = torch.from_numpy(x_BD[known]).double()
    y = torch.from_numpy(label_B[known])
    mean = x.mean(dim=0)
    std = (x - mean).square().mean().sqrt().clamp(min=1e-6)
    x = (x - mean) / std
    counts = torch.bincount(y, minlength=classes).double()
    weight_Y = torch.where(counts > 0, len(y) / (counts.clamp(min=1) * (counts > 0).sum()), 0.0)
    weight = torch.zeros(classes, x.shape[1], dtype=torch.double, requires_grad=True)
    bias = torch.where(counts > 0, 0.0, -float(np.log(len(y)))).requires_grad_()
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, y, weight=weight_Y)
        loss = loss + l2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    folded = weight.detach() / std
    shifted = bias.detach() - folded @ mean
    return LinearHead(folded.float().numpy(), shifted.float().numpy())
