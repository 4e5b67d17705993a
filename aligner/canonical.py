"""Canonical correlation from sufficient statistics: any number of modalities, one more pair at a time (METHOD 4).

Whitened by their own ridge covariance, the cross-covariances of the modalities stand in one symmetric matrix K with
zero blocks on its diagonal. Its leading eigenvectors are the canonical directions, its eigenvalues, divided by M - 1,
their mean correlation. With M = 2 that is ridge CCA (Hotelling 1936; for more sets Kettenring 1971, MAXVAR).

Legend: P pairs, E embedding width of a modality, D shared width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_CORRELATION = 1e-6


class PairStatistics:
    """Count, sums and sums of products of pairs (float64): all that canonical correlation needs of them."""

    def __init__(self, first_width: int, second_width: int) -> None:
        self.count = 0
        self.first_width = first_width
        width = first_width + second_width
        self._sum = torch.zeros(width, dtype=torch.double)
        self._products = torch.zeros(width, width, dtype=torch.double)

    def add(self, first_PE: Tensor, second_PE: Tensor) -> None:
        """Take in more pairs, one or many: row i of both is the same moment."""
        rows = torch.cat([first_PE, second_PE], dim=1).double()
        self.count += len(rows)
        self._sum += rows.sum(dim=0)
        self._products += rows.T @ rows

    def mean(self) -> tuple[Tensor, Tensor]:
        """Mean of either side, (E,) each."""
        mean = self._sum / self.count
        return mean[: self.first_width], mean[self.first_width :]

    def covariance(self) -> tuple[Tensor, Tensor, Tensor]:
        """Biased covariances (first, first), (second, second), (first, second)."""
        mean, cut = self._sum / self.count, self.first_width
        whole = self._products / self.count - torch.outer(mean, mean)
        return whole[:cut, :cut], whole[cut:, cut:], whole[:cut, cut:]


@dataclass(frozen=True)
class CanonicalMaps:
    """`shared[m]`, `private[m]`: weight and bias of u = w e + b and of v, by modality; `rho_D`: the correlations."""

    shared: dict[str, tuple[Tensor, Tensor]]
    private: dict[str, tuple[Tensor, Tensor]]
    rho_D: Tensor


def canonical_maps(
    statistics: Mapping[tuple[str, str], PairStatistics], shared_width: int, private_width: int, ridge: float
) -> CanonicalMaps:
    """U: canonical variates weighted by their correlation. V: what is left of e when U, read back, is taken away.

    `ridge` is added to each covariance as a share of its mean diagonal. In whitened coordinates, with directions a_k
    of correlation rho_k, U keeps rho_k a_k and V the remainder (1 - rho_k) a_k, on its leading principal directions.
    Dimensions of U beyond the rank, and of V beyond the width of e, are zero.
    """
    whole, means = _covariances(statistics)
    names = sorted(whole)
    roots = {name: _inverse_root(whole[name], ridge) for name in names}
    cuts = torch.cumsum(torch.tensor([0, *(len(whole[name]) for name in names)]), dim=0).tolist()
    place = {name: slice(a, b) for name, a, b in zip(names, cuts[:-1], cuts[1:], strict=True)}
    matrix = torch.zeros(cuts[-1], cuts[-1], dtype=torch.double)
    for (first, second), pairs in statistics.items():
        block = roots[first] @ pairs.covariance()[2] @ roots[second]
        matrix[place[first], place[second]] = block
        matrix[place[second], place[first]] = block.T
    values, vectors = torch.linalg.eigh(matrix / (len(names) - 1))
    keep = min(shared_width, int((values > SMALLEST_CORRELATION).sum()))
    rho, directions = values.flip(0)[:keep], vectors.flip(1)[:, :keep] * len(names) ** 0.5
    directions = _signed(directions)
    shared, private = {}, {}
    for name in names:
        own = directions[place[name]]
        shared[name] = _affine((roots[name] @ (own * rho)).T, means[name], shared_width)
        private[name] = _affine(_remainder(whole[name], roots[name], own, rho), means[name], private_width)
    return CanonicalMaps(shared, private, rho)


def _covariances(
    statistics: Mapping[tuple[str, str], PairStatistics],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Covariance and mean of each modality, over all sets of pairs that it is in, weighted by their size."""
    counts: dict[str, int] = {}
    whole: dict[str, Tensor] = {}
    means: dict[str, Tensor] = {}
    for names, pairs in statistics.items():
        for side, name in enumerate(names):
            counts[name] = counts.get(name, 0) + pairs.count
            share = pairs.count / counts[name]
            covariance, mean = pairs.covariance()[side], pairs.mean()[side]
            whole[name] = torch.lerp(whole.get(name, covariance), covariance, share)
            means[name] = torch.lerp(means.get(name, mean), mean, share)
    return whole, means


def _inverse_root(covariance: Tensor, ridge: float) -> Tensor:
    added = ridge * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.double)
    values, vectors = torch.linalg.eigh(covariance + added)
    root: Tensor = (vectors / values.clamp(min=1e-9).sqrt()) @ vectors.T
    return root


def _remainder(covariance: Tensor, root: Tensor, own: Tensor, rho: Tensor) -> Tensor:
    """Weights of the remainder's principal directions, leading ones first."""
    values, vectors = torch.linalg.eigh((own * rho) @ own.T)
    # With M > 2 a modality may take more than its share of a direction: no more than all of it is taken away.
    kept = (vectors * (1.0 - values.clamp(0.0, 1.0))) @ vectors.T
    weight = torch.linalg.solve(root, kept @ root)
    _, principal = torch.linalg.eigh(weight @ covariance @ weight.T)
    out: Tensor = _signed(principal.flip(1)).T @ weight
    return out


def _signed(vectors: Tensor) -> Tensor:
    """Each column's largest entry positive: a solver's choice of sign must not show."""
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return vectors * torch.sign(largest)


def _affine(weight: Tensor, mean: Tensor, width: int) -> tuple[Tensor, Tensor]:
    whole = torch.zeros(width, len(mean), dtype=torch.double)
    rows = min(width, len(weight))
    whole[:rows] = weight[:rows]
    return whole, -(whole @ mean)
