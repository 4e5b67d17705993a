"""Information of jointly Gaussian parts in closed form: no critic, no training (METHOD 4).

    I(X;Y|U) = -1/2 sum_k log(1 - rho_k^2),   rho_k: partial canonical correlations in principal subspaces
    E[estimate] - I = 1/2 ( g(dX+dU) + g(dY+dU) - g(dX+dY+dU) - g(dU) ),   g(d) = sum_{i<d} digamma((n - 1 - i) / 2)

The second line is exact for Gaussians of any correlation, since E log det of a Wishart matrix minus log det of its
mean depends on n and d alone (Muirhead, Aspects of Multivariate Statistical Theory, 1982, 3.2); it is subtracted.
METHOD 4 prints its first order, dX dY / (2 (n - dU - max d)), which is 4-9 % short where d is a quarter of n.

**Inside a batch loop.** log r(z) = log N(z; S) - sum_k log N(z_k; S_kk) is the same quantity a sample: its mean over
the rows that S came from is the closed form (the quadratic forms cancel). Its gradient with S held fixed is the
gradient of the closed form, S included: d/dS of mean log N(z; S) is zero at the sample's own S, for the joint and
for every part. So `log_ratios` takes S from all pairs seen (`PairMemory`) as data, lets gradients through the batch's
u and v only, and a batch's gradient is an unbiased share of the whole set's: no batch of 32 has to carry a covariance
of 96 dimensions. What is approximate: rows outside the batch hold u and v of the previous pass, and the principal
subspace is held fixed where it is narrower than u. It is right for jointly Gaussian parts; otherwise it is the
information of linear dependence alone, which can be more than the truth or less.

x enters by its mean and its log mean square over the intervals, for each channel and bin: a spectrum's phase is
random, so u depends on it by its power. Legend: B batch, N pairs, D width, K T F spectrogram.
"""

import itertools
from functools import lru_cache

import torch
from torch import Tensor, nn

from aligner.information.discriminator import DiscriminatorEstimator, PairSamples
from aligner.negatives import sequence_derangements
from aligner.pair_memory import PairMemory
from aligner.subspace import RankNormal, Standard, Subspace
from infomae_stream.errors import DataError

MIN_PAIRS = 12
MANY_PAIRS = 100
RIDGE = 1e-6  # of unit variances: no correlation counts for more than 6.6 nats
REFIT = 1.1  # the subspaces of x are fitted anew when the known pairs have grown by this factor


def subspace_width(pairs: int) -> int:
    """Directions kept of a part: 16 below 100 pairs, 32 from there on, and never more than a quarter of the pairs."""
    return max(1, min(16 if pairs < MANY_PAIRS else 32, pairs // 4))


def wishart_bias(pairs: int, widths: list[int], given: int = 0) -> float:
    """What the plug-in estimate of the parts' (conditional) total correlation is too large by, in nats."""
    whole = sum(_g(pairs, width + given) for width in widths) - (len(widths) - 1) * _g(pairs, given)
    return 0.5 * (whole - _g(pairs, sum(widths) + given))


@lru_cache(maxsize=1024)
def _g(pairs: int, width: int) -> float:
    return float(torch.special.digamma((pairs - 1 - torch.arange(width, dtype=torch.double)) / 2.0).sum())


def gaussian_information(
    x_ND: Tensor,
    y_ND: Tensor,
    given_ND: Tensor | None = None,
    *,
    width: int | None = None,
    margins: type[Standard] | type[RankNormal] = Standard,
) -> float:
    """I(X;Y) or I(X;Y|given) in nats, the bias subtracted (so it may fall below zero); rows are independent samples.

    `width`: directions kept of each part, by default `subspace_width`. Raises DataError for rows that do not match,
    are not finite, or are too few for the directions kept.
    """
    count = len(x_ND)
    parts = [part.detach().double() for part in (x_ND, y_ND, given_ND) if part is not None]
    if any(len(part) != count or not bool(part.isfinite().all()) for part in parts):
        raise DataError("rows differ in number or are not finite", where="information", fix="pass the same finite rows")
    keep = subspace_width(count) if width is None else width
    z = [Subspace(part, keep, margins)(part) if count > 1 else part for part in parts]
    if count < MIN_PAIRS or sum(part.shape[1] for part in z) > count - 2:
        raise DataError(
            f"{count} rows for {keep} directions of each part", where="information", fix="more pairs or a smaller width"
        )
    held = 0
    if given_ND is not None:
        u = z.pop()
        held = u.shape[1]
        z = [part - u @ torch.linalg.lstsq(u, part).solution for part in z]
    rho = torch.linalg.svdvals(torch.linalg.qr(z[0]).Q.T @ torch.linalg.qr(z[1]).Q)
    plug_in = -0.5 * float(torch.log1p(-rho.square().clamp(max=1.0 - 2.0 * RIDGE)).sum())
    return plug_in - wishart_bias(count, [part.shape[1] for part in z], held)


class GaussianEstimator(DiscriminatorEstimator):
    """The discriminators' ratios in closed form over all pairs seen. It has no parameters: nothing is to be trained.

    Zero, with zero gradients, until 12 distinct pairs were seen (`constancy` tells how many). Beyond `capacity` pairs
    the newest count. Not clamped: the ratio's gradient is linear in u, and the noise on u bounds the information.
    """

    margins: type[Standard] | type[RankNormal] = Standard

    def __init__(
        self,
        shapes_KTF: tuple[tuple[int, int, int], tuple[int, int, int]],
        shared_width: int,
        private_width: int,
        *,
        capacity: int = 4096,
    ) -> None:
        # The terms are the discriminators', the critics are not.
        nn.Module.__init__(self)
        self.memory = PairMemory(capacity)
        self._x_charts: dict[str, Subspace] = {}
        self._x_rows: dict[str, Tensor] = {}
        self._fitted = self._mapped = 0

    def critic_loss(self, samples: PairSamples, generator: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropy of telling joint rows from deranged ones by each ratio: a number to log, without gradient."""
        losses = {}
        with torch.no_grad():
            known, batch = self._coordinates(samples)
            for name, parts in self.ratios.items():
                shuffles = sequence_derangements(samples.sequence_B, len(parts) - 1, generator)
                z = [batch[part] for part in parts]
                product = [z[0], *(part[shuffle] for part, shuffle in zip(z[1:], shuffles, strict=True))]
                rows = [known[part] for part in parts]
                softplus = nn.functional.softplus
                joint, apart = self._ratio(rows, z), self._ratio(rows, product)
                losses[name] = 0.5 * (softplus(-joint).mean() + softplus(apart).mean())
        return losses

    def log_ratios(self, samples: PairSamples) -> dict[str, Tensor]:
        """log ratio of every set of parts at the batch's rows, (B,) each, less its bias; remembers the rows.

        Gradients reach u and v only.
        """
        known, batch = self._coordinates(samples)
        return {
            name: self._ratio([known[part] for part in parts], [batch[part] for part in parts]).to(samples.u1_BD.dtype)
            for name, parts in self.ratios.items()
        }

    def constancy(self, ratio: dict[str, Tensor]) -> dict[str, float]:
        """E[A_i - B_ii] = I(X1;X2), and how many distinct pairs the estimate rests on."""
        return {**super().constancy(ratio), "known_pairs": float(len(self.memory))}

    def _coordinates(self, samples: PairSamples) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Coordinates of every part, of all known pairs (data) and of the batch."""
        parts = {
            "x1": _power(samples.x1_BKTF),
            "x2": _power(samples.x2_BKTF),
            "u1": samples.u1_BD,
            "u2": samples.u2_BD,
            "v1": samples.v1_BD,
            "v2": samples.v2_BD,
        }
        memory = self.memory
        memory.put(samples.x1_BKTF, samples.x2_BKTF, parts)
        if len(memory) < MIN_PAIRS:
            empty = {name: part.new_zeros(len(memory), 0) for name, part in parts.items()}
            # Width 0 that still hangs on u and v, so that the step has a gradient: zero.
            return empty, {name: part.double()[:, :0] for name, part in parts.items()}
        width = subspace_width(len(memory))
        if memory.added >= REFIT * self._fitted:
            self._x_charts = {name: Subspace(memory.rows(name), width, self.margins) for name in ("x1", "x2")}
            self._fitted, self._mapped = memory.added, 0
        if memory.added > self._mapped:
            self._x_rows = {name: chart(memory.rows(name)) for name, chart in self._x_charts.items()}
            self._mapped = memory.added
        moving = {name: Subspace(memory.rows(name), width, self.margins) for name in ("u1", "u2", "v1", "v2")}
        known = {**self._x_rows, **{name: chart(memory.rows(name)) for name, chart in moving.items()}}
        charts = {**self._x_charts, **moving}
        return known, {name: chart(parts[name].double()) for name, chart in charts.items()}

    def _ratio(self, known: list[Tensor], batch: list[Tensor]) -> Tensor:
        """log N(all parts) - sum log N(part), (B,), under the covariance of `known`, less the bias."""
        count = len(self.memory)
        widths = [part.shape[1] for part in known]
        rows_ND, z_BD = torch.cat(known, dim=1), torch.cat(batch, dim=1)
        mean_D = rows_ND.mean(dim=0)
        rows_ND, z_BD = rows_ND - mean_D, z_BD - mean_D
        covariance_DD = rows_ND.T @ rows_ND / max(1, count) + RIDGE * torch.eye(sum(widths), dtype=torch.double)
        edges = [0, *itertools.accumulate(widths)]
        slices = [slice(low, high) for low, high in itertools.pairwise(edges)]
        ratio_B = _log_normal(z_BD, covariance_DD) - sum(
            (_log_normal(z_BD[:, s], covariance_DD[s, s]) for s in slices), torch.zeros(())
        )
        return ratio_B - (wishart_bias(count, widths) if count >= MIN_PAIRS else 0.0)


def _log_normal(z_BD: Tensor, covariance_DD: Tensor) -> Tensor:
    """Logarithm of the normal density at `z`, (B,), less the constant in 2 pi, which cancels in a ratio."""
    root_DD = torch.linalg.cholesky(covariance_DD)
    white_DB = torch.linalg.solve_triangular(root_DD, z_BD.T, upper=False)
    log_density_B: Tensor = -0.5 * white_DB.square().sum(dim=0) - root_DD.diagonal().log().sum()
    return log_density_B


def _power(x_BKTF: Tensor) -> Tensor:
    """Mean and log mean square over the intervals, (B, 2 K F)."""
    x = x_BKTF.detach().double()
    return torch.cat([x.mean(dim=2).flatten(1), (x.square().mean(dim=2) + 1e-6).log().flatten(1)], dim=1)
