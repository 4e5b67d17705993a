"""Closed-form alignment (METHOD 4): ridge CCA of the pairs in the subspace of all windows. No step is taken.

    U = rho_k a_k, canonical variates weighted by their correlation;   V = e - what U reads back;   nothing is minimised
    by gradients, and the statistics are sums over pairs, so that one more pair is one more addition.

Choices: the subspace is the leading coordinates of the embedding, which are the principal directions of all windows of
stage 1, paired or not; their number is by parallel analysis of the encoder's outputs. The whitening is by the pairs'
covariance: by that of all windows it was worse. More than two modalities: aligner/canonical.py.
Legend: B windows, K T F spectrogram, E embedding, P pairs.
"""

from typing import Self

import torch
from pydantic import Field
from torch import Tensor

from aligner.canonical import PairStatistics, canonical_maps
from aligner.model import Model
from aligner.parallel_analysis import parallel_rank
from aligner.trainset import TrainSet
from infomae_stream.config import Settings, validate
from infomae_stream.errors import DataError

SMALLEST_PAIRS = 2


class CcaOptions(Settings):
    """`ridge`: share of the mean variance; `rank`: directions of each modality, by parallel analysis when left out."""

    ridge: float = Field(0.3, gt=0)
    rank: int | None = Field(None, ge=1)


class Cca:
    """Sets the linear paths of the projections of `model`; their MLPs then add nothing.

    `statistics`, by pair of modalities, stay after `solve`: `add` and `apply` take in what comes later.
    """

    def __init__(self, model: Model, options: CcaOptions, generator: torch.Generator) -> None:
        self.model, self.options, self.generator = model, options, generator
        self.ranks: dict[str, int] = {}
        self.statistics: dict[tuple[str, str], PairStatistics] = {}

    @classmethod
    def build(
        cls, model: Model, pairs: list[tuple[str, str]], options: dict[str, object], generator: torch.Generator
    ) -> Self:
        """Check `options` and construct; raises ConfigError for an unknown option or a value out of range."""
        return cls(model, validate(options, CcaOptions, where="train", prefix=("align", "options")), generator)

    @torch.no_grad()
    def solve(self, train: TrainSet, x_BKTF: dict[str, Tensor]) -> dict[str, float]:
        """Ranks from all windows, statistics from all pairs, then the projections.

        Returns "uncorrelated": 1 - mean correlation of the shared variates. Raises DataError for fewer than two pairs.
        """
        e_BE = {}
        for name, x in x_BKTF.items():
            part = self.model.part(name)
            r_BR = torch.cat([part.encoder(piece) for piece in x.split(256)])  # type: ignore[no-untyped-call]
            e_BE[name] = part.compress(r_BR)
            rank = self.options.rank or parallel_rank(r_BR, self.generator)
            self.ranks[name] = min(rank, e_BE[name].shape[1])
        for names, index_P2 in train.pairs.items():
            if len(index_P2):
                index = torch.from_numpy(index_P2)
                self.add(names, e_BE[names[0]][index[:, 0]], e_BE[names[1]][index[:, 1]])
        return self.apply()

    def add(self, names: tuple[str, str], first_PE: Tensor, second_PE: Tensor) -> None:
        """Take in pairs of embeddings of the two modalities, after `solve` set the ranks."""
        ranks = [self.ranks[name] for name in names]
        statistics = self.statistics.setdefault(names, PairStatistics(ranks[0], ranks[1]))
        statistics.add(first_PE[:, : ranks[0]], second_PE[:, : ranks[1]])

    @torch.no_grad()
    def apply(self) -> dict[str, float]:
        """Set the projections to what the statistics say now; modalities without pairs stay as they are."""
        for names, statistics in self.statistics.items():
            if statistics.count < SMALLEST_PAIRS:
                raise DataError(f"{statistics.count} pair", where="|".join(names), fix="cca needs two pairs at least")
        align = self.model.config.align
        maps = canonical_maps(self.statistics, align.shared_width, align.private_width, self.options.ridge)
        for name in maps.shared:
            part = self.model.part(name)
            for projection, (weight, bias) in ((part.shared, maps.shared[name]), (part.private, maps.private[name])):
                whole = torch.zeros_like(projection.linear.weight)
                whole[:, : weight.shape[1]] = weight.float()
                projection.start_from(whole, bias.float())
        return {"uncorrelated": 1.0 - float(maps.rho_D.mean()) if len(maps.rho_D) else 1.0}
