"""What the model makes of every subset of its modalities, on the same held-out instants.

Legend: B instants, D shared width, Y classes.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from aligner.evaluation import macro_f1
from aligner.model import Model
from aligner.trainset import UNKNOWN_LABEL, TrainSet


@dataclass(frozen=True)
class Instants:
    """Moments at which every modality has a window: modality -> row, and the label that any of the windows has."""

    rows: dict[str, NDArray[np.int64]]
    label_B: NDArray[np.int64]

    @classmethod
    def of(cls, windows: TrainSet, names: tuple[str, ...]) -> Self:
        """Joins the pairs of the first modality with each other one; instants without a label are left out."""
        first, *others = names
        partners = [_partners(windows, first, other) for other in others]
        known = set(range(len(windows.modalities[first]))).intersection(*partners)
        anchor = np.array(sorted(known), dtype=np.int64)
        rows = {first: anchor}
        for other, partner in zip(others, partners, strict=True):
            rows[other] = np.array([partner[row] for row in anchor.tolist()], dtype=np.int64)
        label_B = np.full(len(anchor), UNKNOWN_LABEL, dtype=np.int64)
        for name in names:
            own_B = windows.modalities[name].label_B[rows[name]]
            label_B = np.where(label_B == UNKNOWN_LABEL, own_B, label_B)
        labelled = label_B != UNKNOWN_LABEL
        return cls({name: row_B[labelled] for name, row_B in rows.items()}, label_B[labelled])


def score_subsets(model: Model, held_out: TrainSet) -> list[dict[str, Any]]:
    """`{"modalities", "macro_f1", "windows"}` of each subset, the largest first; empty without a labelled instant.

    The same instants for all of them, so that the difference of two rows is what a missing modality costs.
    """
    names = tuple(model.front_ends)
    instants = Instants.of(held_out, names)
    if not len(instants.label_B):
        return []
    u = {name: model.shared(name, held_out.modalities[name].x_BCN[instants.rows[name]]) for name in names}
    found: list[dict[str, Any]] = []
    for size in range(len(names), 0, -1):
        for subset in combinations(names, size):
            u_BD = np.mean([u[name] for name in subset], axis=0)
            f1 = macro_f1(instants.label_B, predict(model, u_BD), len(model.classes))
            found.append({"modalities": list(subset), "macro_f1": f1, "windows": len(instants.label_B)})
    return found


@torch.no_grad()
def predict(model: Model, u_BD: NDArray[np.float32]) -> NDArray[np.int64]:
    """The head's class of each u."""
    out: NDArray[np.int64] = model.head(torch.from_numpy(u_BD)).argmax(dim=1).numpy().astype(np.int64)
    return out


def _partners(windows: TrainSet, first: str, other: str) -> dict[int, int]:
    """Row of `first` -> row of `other`, by the pairs of the two in either order."""
    if (first, other) in windows.pairs:
        return dict(windows.pairs[(first, other)].tolist())
    return {row: anchor for anchor, row in windows.pairs.get((other, first), np.zeros((0, 2), np.int64)).tolist()}
