"""The plain baselines that an alignment has to beat, all from the same stage-1 embeddings (METHOD 6, 7).

Legend: P pairs, E embedding, B windows, Y classes.
"""

import numpy as np
from numpy.typing import NDArray

from aligner.head import LinearHead, fit_linear_head

Embedding = NDArray[np.float32]
Labels = NDArray[np.int64]

RIDGES = tuple(10.0**k for k in range(-3, 4))
FOLDS = 5


def before(head: LinearHead, e_target_BE: Embedding) -> Labels:
    """The labelled modality's head on the other modality's unaligned embedding: where everyone starts."""
    return head.predict(e_target_BE)


def pseudolabel(
    head: LinearHead,
    e_source_PE: Embedding,
    label_source_P: Labels,
    e_target_PE: Embedding,
    classes: int,
    *,
    l2: float,
    iterations: int,
) -> LinearHead:
    """Carry labels through the pairs: known ones where there are, the head's guess elsewhere; fit a target head."""
    carried = np.where(label_source_P >= 0, label_source_P, head.predict(e_source_PE))
    return fit_linear_head(e_target_PE, carried, classes, l2=l2, iterations=iterations)


def fit_ridge_map(
    e_target_PE: Embedding, e_source_PE: Embedding, sequence_P: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return `(weight_EE, bias_E)` with e_source ~ e_target @ weight + bias.

    The ridge, a share of the mean squared singular value, is the best of `RIDGES` over five folds of whole recordings:
    a fold of single windows would be answered by their overlapping neighbours.
    """
    x, y = e_target_PE.astype(np.float64), e_source_PE.astype(np.float64)
    fold_P = np.unique(sequence_P, return_inverse=True)[1] % FOLDS
    errors = np.zeros(len(RIDGES))
    for fold in np.unique(fold_P):
        rest, held = fold_P != fold, fold_P == fold
        if rest.any():
            for i, (weight, bias) in enumerate(_ridge_path(x[rest], y[rest])):
                errors[i] += ((x[held] @ weight + bias - y[held]) ** 2).sum()
    return _ridge_path(x, y)[int(errors.argmin())]


def _ridge_path(
    x_PE: NDArray[np.float64], y_PE: NDArray[np.float64]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """The map for every ridge of `RIDGES`, from one decomposition."""
    mean_x, mean_y = x_PE.mean(axis=0), y_PE.mean(axis=0)
    left, singular, right = np.linalg.svd(x_PE - mean_x, full_matrices=False)
    rotated = left.T @ (y_PE - mean_y)
    path = []
    for share in RIDGES:
        inverse = singular / (singular**2 + share * (singular**2).mean())
        weight = right.T @ (inverse[:, None] * rotated)
        path.append((weight, mean_y - mean_x @ weight))
    return path


def ridge_map(
    head: LinearHead,
    e_target_PE: Embedding,
    e_source_PE: Embedding,
    sequence_P: NDArray[np.int64],
    e_target_BE: Embedding,
) -> Labels:
    """Map the target's embedding onto the labelled modality's by ridge regression on the pairs, then its head."""
    weight, bias = fit_ridge_map(e_target_PE, e_source_PE, sequence_P)
    return head.predict((e_target_BE @ weight + bias).astype(np.float32))


def own_labels(e_target_BE: Embedding, oracle_B: Labels, classes: int, *, l2: float, iterations: int) -> LinearHead:
    """The ceiling: a head on the target's own labels, which the real path never sees."""
    return fit_linear_head(e_target_BE, oracle_B, classes, l2=l2, iterations=iterations)
