"""What a gate reads of an alignment: spread and rank of u and v, cosine of pairs, and the warnings (METHOD 3.5)."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from aligner.evaluation import effective_rank, mean_cosine

RANK_FLOOR = 3.0
STD_FLOOR = 0.05
COSINE_GAP_FLOOR = 0.1


@dataclass(frozen=True)
class Monitors:
    """`effective_rank` and `std` by "modality.u" or "modality.v"; cosines of u1 and u2 over pairs and shuffled pairs,
    by "m1|m2"; E[A - B_ii] and the critics' cross-entropy by name, a running mean over fresh batches of the training
    pairs (0.693 = knows nothing; low says nothing of pairs that the critics never saw)."""

    effective_rank: dict[str, float]
    std: dict[str, float]
    cosine_pairs: dict[str, float]
    cosine_shuffled: dict[str, float]
    critics: dict[str, float] = field(default_factory=dict)
    skipped_steps: int = 0

    @property
    def warnings(self) -> list[str]:
        """Why this alignment should not be trusted; empty when nothing is wrong."""
        found = []
        for name, rank in self.effective_rank.items():
            if not rank >= RANK_FLOOR and name.endswith(".u"):
                found.append(f"{name}: effective rank {rank:.1f} is below {RANK_FLOOR}: collapse to few directions")
        for name, std in self.std.items():
            if not std >= STD_FLOOR:
                found.append(f"{name}: std {std:.3g} is below {STD_FLOOR}: norms shrink or a constant embedding")
        for name, cosine in self.cosine_pairs.items():
            if not cosine - self.cosine_shuffled[name] >= COSINE_GAP_FLOOR:
                found.append(f"{name}: cosine of pairs {cosine:.2f} is no better than shuffled: nothing is shared")
        return found


def measure(
    u: dict[str, NDArray[np.float32]],
    v: dict[str, NDArray[np.float32]],
    pairs: dict[tuple[str, str], NDArray[np.int64]],
    critics: dict[str, float],
    skipped_steps: int,
    seed: int,
) -> Monitors:
    """Measure over all windows' u and v by modality; `pairs` index their rows."""
    rng = np.random.default_rng(seed)
    ranks, stds, matched, shuffled = {}, {}, {}, {}
    for letter, embeddings in (("u", u), ("v", v)):
        for name, rows in embeddings.items():
            ranks[f"{name}.{letter}"] = effective_rank(rows)
            stds[f"{name}.{letter}"] = float(rows.std(axis=0).mean())
    for (first, second), index in pairs.items():
        if len(index):
            a, b = u[first][index[:, 0]], u[second][index[:, 1]]
            matched[f"{first}|{second}"] = mean_cosine(a, b)
            shuffled[f"{first}|{second}"] = mean_cosine(a, b[rng.permutation(len(b))])
    return Monitors(ranks, stds, matched, shuffled, critics, skipped_steps)
