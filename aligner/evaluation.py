"""Scores and monitors: macro-F1 with its interval over people, effective rank, spread (METHOD 3.5, 7).

Legend: B windows, D width, Y classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Score:
    """Macro-F1 with a 95 % bootstrap interval over groups, F1 a class (NaN where the class does not occur), windows."""

    macro_f1: float
    low: float
    high: float
    per_class: dict[str, float]
    windows: int

    @property
    def interval(self) -> tuple[float, float]:
        return (self.low, self.high)


def confusion(truth_B: Labels, predicted_B: Labels, classes: int) -> NDArray[np.int64]:
    """`count_YY`: rows truth, columns prediction."""
    flat = np.bincount(truth_B * classes + predicted_B, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def f1_by_class(count_YY: NDArray[np.int64]) -> NDArray[np.float64]:
    """F1 of each class; NaN for one that neither occurs nor is predicted."""
    hits = np.diag(count_YY).astype(np.float64)
    total = count_YY.sum(axis=0) + count_YY.sum(axis=1)
    return np.where(total > 0, 2.0 * hits / np.maximum(total, 1), np.nan)


def macro_f1(truth_B: Labels, predicted_B: Labels, classes: int) -> float:
    """Mean F1 over the classes that occur in the truth; NaN when there is no window."""
    return _macro(confusion(truth_B, predicted_B, classes))


def _macro(count_YY: NDArray[np.int64]) -> float:
    present = count_YY.sum(axis=1) > 0
    return float(f1_by_class(count_YY)[present].mean()) if present.any() else float("nan")


def score(
    truth_B: Labels,
    predicted_B: Labels,
    group_B: NDArray[np.str_],
    classes: tuple[str, ...],
    *,
    draws: int = 400,
    seed: int = 0,
) -> Score:
    """Score the windows with known truth. The interval resamples groups (people), since windows of one are alike."""
    known = truth_B >= 0
    truth_B, predicted_B, group_B = truth_B[known], predicted_B[known], group_B[known]
    count = len(classes)
    whole = confusion(truth_B, predicted_B, count)
    groups = np.unique(group_B)
    by_group = [confusion(truth_B[group_B == g], predicted_B[group_B == g], count) for g in groups]
    low = high = float("nan")
    if len(groups):
        rng = np.random.default_rng(seed)
        stacked = np.stack(by_group)
        drawn = [_macro(stacked[rng.integers(len(groups), size=len(groups))].sum(axis=0)) for _ in range(draws)]
        low, high = (float(v) for v in np.percentile(drawn, [2.5, 97.5]))
    per_class = dict(zip(classes, f1_by_class(whole).tolist(), strict=True))
    return Score(_macro(whole), low, high, per_class, int(known.sum()))


def effective_rank(u_BD: NDArray[np.float32]) -> float:
    """exp of the entropy of the normalised singular values of the centred embedding (Roy and Vetterli, 2007).

    D for D equal uncorrelated dimensions, 1 for one direction, 0 for a constant, NaN when a value is not finite.
    """
    if not np.isfinite(u_BD).all():
        return float("nan")
    u = u_BD.astype(np.float64)
    singular = np.linalg.svd(u - u.mean(axis=0), compute_uv=False)
    total = singular.sum()
    if total <= 1e-9 * max(1.0, float(np.abs(u_BD).max())) * len(u_BD):
        return 0.0
    share = singular / total
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def mean_cosine(a_BD: NDArray[np.float32], b_BD: NDArray[np.float32]) -> float:
    """Mean cosine of row i of a with row i of b, after centring each."""
    a, b = a_BD - a_BD.mean(axis=0), b_BD - b_BD.mean(axis=0)
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / np.maximum(scale, 1e-12)).mean())
