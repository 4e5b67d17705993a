"""Closed-form alignment: canonical correlation from sums, its rank, and the objective `cca`."""

import copy

import numpy as np
import pytest
import scipy.linalg
import torch

from aligner.canonical import CanonicalMaps, PairStatistics, canonical_maps
from aligner.closed_form import ridge_cca
from aligner.model import Model
from aligner.objectives.cca import Cca
from aligner.parallel_analysis import parallel_rank
from aligner.progress import silent
from aligner.train import align_and_fit
from aligner.trainset import TrainSet
from infomae_stream.errors import ConfigError, DataError
from tests.aligner.laws import gap, generator, planted, small_config

RHO = (0.9, 0.6, 0.3)


def correlated(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sides of 4 and 5 mixed coordinates whose canonical correlations are RHO (and zero)."""
    draws = generator(seed)
    common = torch.randn(count, 3, generator=draws, dtype=torch.double)
    rho = torch.tensor(RHO, dtype=torch.double)
    sides = []
    for width in (4, 5):
        own = torch.randn(count, width, generator=draws, dtype=torch.double)
        own[:, :3] = rho.sqrt() * common + (1 - rho).sqrt() * own[:, :3]
        sides.append(own @ torch.randn(width, width, generator=generator(width), dtype=torch.double) + 3.0)
    return sides[0], sides[1]


def maps_of(a: torch.Tensor, b: torch.Tensor, ridge: float = 0.1) -> CanonicalMaps:
    statistics = PairStatistics(a.shape[1], b.shape[1])
    statistics.add(a, b)
    return canonical_maps({("a", "b"): statistics}, 4, 5, ridge)


def applied(affine: tuple[torch.Tensor, torch.Tensor], e: torch.Tensor) -> torch.Tensor:
    return e.double() @ affine[0].T + affine[1]


def test_correlations_are_the_planted_ones() -> None:
    assert maps_of(*correlated(20000), ridge=1e-9).rho_D[:3].tolist() == pytest.approx(RHO, abs=0.02)


def test_correlations_and_variates_equal_the_generalised_eigenproblem_in_numpy() -> None:
    a, b = (side.numpy() for side in correlated(60))
    whole = np.cov(np.concatenate([a, b], axis=1).T, bias=True)
    own = [whole[:4, :4] + 0.1 * np.trace(whole[:4, :4]) / 4 * np.eye(4)]
    own.append(whole[4:, 4:] + 0.1 * np.trace(whole[4:, 4:]) / 5 * np.eye(5))
    left = whole[:4, 4:] @ np.linalg.inv(own[1]) @ whole[4:, :4]
    squares, vectors = scipy.linalg.eigh(left, own[0])
    got = maps_of(*correlated(60))
    np.testing.assert_allclose(got.rho_D.numpy(), np.sqrt(squares[::-1]), rtol=1e-9)
    expected = (a - a.mean(axis=0)) @ vectors[:, ::-1] * np.sqrt(squares[::-1])
    np.testing.assert_allclose(
        np.abs(applied(got.shared["a"], torch.from_numpy(a)).numpy()), np.abs(expected), atol=1e-9
    )


def test_two_modalities_give_what_the_start_by_cca_gives() -> None:
    a, b = correlated(80)
    w1, b1, w2, b2, rho = ridge_cca(a, b, 4, 0.1)
    got = maps_of(a, b)
    torch.testing.assert_close(got.rho_D.float(), rho)
    u1, u2 = applied(got.shared["a"], a).float(), applied(got.shared["b"], b).float()
    sign = torch.sign((u1 * (a.float() @ w1.T + b1)).sum(dim=0))
    torch.testing.assert_close(u1 * sign, a.float() @ w1.T + b1, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(u2 * sign, b.float() @ w2.T + b2, atol=1e-4, rtol=1e-4)


def test_pairs_one_by_one_equal_the_batch() -> None:
    a, b = correlated(50)
    batch, single = PairStatistics(4, 5), PairStatistics(4, 5)
    batch.add(a, b)
    for i in range(50):
        single.add(a[i : i + 1], b[i : i + 1])
    at_once, grown = (canonical_maps({("a", "b"): s}, 4, 5, 0.1) for s in (batch, single))
    torch.testing.assert_close(grown.rho_D, at_once.rho_D, atol=1e-12, rtol=0)
    for name in ("a", "b"):
        for one, other in ((grown.shared, at_once.shared), (grown.private, at_once.private)):
            for part in (0, 1):
                torch.testing.assert_close(one[name][part], other[name][part], atol=1e-9, rtol=0)


def test_shared_read_back_and_the_private_remainder_make_the_embedding() -> None:
    a, b = correlated(400)
    got = maps_of(a, b, ridge=1e-9)
    u, v = applied(got.shared["a"], a), applied(got.private["a"], a)
    both, centred = torch.cat([u, v], dim=1), a - a.mean(dim=0)
    back = torch.linalg.pinv(both, rtol=1e-9) @ centred
    torch.testing.assert_close(both @ back, centred, atol=1e-5, rtol=0)
    fully = maps_of(a, torch.cat([a, b[:, :1]], dim=1), ridge=1e-9)
    assert applied(fully.private["a"], a).abs().max() < 1e-4 * a.std()


def test_three_modalities_find_what_all_share() -> None:
    draws = generator(3)
    common = torch.randn(500, 1, generator=draws)
    e = {n: torch.cat([common, torch.randn(500, 3, generator=draws)], dim=1) for n in "abc"}
    e = {n: rows + 0.2 * torch.randn(rows.shape, generator=draws) for n, rows in e.items()}
    statistics = {}
    for first, second in (("a", "b"), ("a", "c"), ("b", "c")):
        statistics[(first, second)] = PairStatistics(4, 4)
        statistics[(first, second)].add(e[first], e[second])
    got = canonical_maps(statistics, 4, 4, 1e-3)
    assert 0.9 < float(got.rho_D[0]) <= 1.0
    u = {name: applied(got.shared[name], rows)[:, 0] for name, rows in e.items()}
    for name in "abc":
        assert torch.corrcoef(torch.stack([u[name], common[:, 0].double()]))[0, 1].abs() > 0.9
    assert torch.corrcoef(torch.stack(list(u.values()))).min() > 0.85


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_parallel_analysis_counts_planted_directions(rank: int) -> None:
    draws = generator(rank)
    mixing = torch.randn(rank, 40, generator=draws)
    rows = torch.randn(300, rank, generator=draws) @ mixing + 0.7 * torch.randn(300, 40, generator=draws)
    assert parallel_rank(rows, draws) == rank
    assert parallel_rank(torch.randn(60, 200, generator=draws), draws) <= 8


def test_the_objective_learns_the_planted_relation_without_a_step(train: TrainSet, stage_one: Model) -> None:
    unseen = planted(people=2, seed=9, first_person=50)
    encoder = copy.deepcopy(stage_one.part("a").encoder.state_dict())
    model, report = align_and_fit(stage_one, train, small_config(objective="cca"), silent)
    assert abs(gap(stage_one, unseen)) < 0.3
    assert gap(model, unseen) > 0.6
    assert report.monitors.warnings == []
    assert 0.0 < report.losses["uncorrelated"] < 1.0
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in model.part("a").encoder.state_dict().items())


def test_later_pairs_move_the_model_to_what_all_pairs_give(train: TrainSet, stage_one: Model) -> None:
    x = {name: stage_one.spectrograms(name, train.modalities[name].x_BCN) for name in ("a", "b")}
    few = TrainSet(train.modalities, {("a", "b"): train.pairs[("a", "b")][:60]}, train.classes)
    models = []
    for windows in (few, train):
        model = copy.deepcopy(stage_one)
        objective = Cca.build(model, [("a", "b")], {}, generator())
        objective.solve(windows, x)
        models.append((model, objective))
    grown, objective = models[0]
    late = train.pairs[("a", "b")][60:]
    e = [grown.part(n).embed(x[n][torch.from_numpy(late[:, i])]).detach() for i, n in enumerate(("a", "b"))]
    before = grown.part("b").shared.linear.weight.clone()
    for i in range(len(late)):
        objective.add(("a", "b"), e[0][i : i + 1], e[1][i : i + 1])
    objective.apply()
    assert not torch.allclose(grown.part("b").shared.linear.weight, before, atol=1e-3)
    for name in ("a", "b"):
        for kind in ("shared", "private"):
            got, expected = (getattr(m.part(name), kind).linear.weight for m in (grown, models[1][0]))
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)


def test_a_rank_of_one_is_told_as_collapse_and_shuffled_pairs_as_nothing_shared(
    train: TrainSet, stage_one: Model
) -> None:
    _, report = align_and_fit(stage_one, train, small_config(objective="cca", options={"rank": 1}), silent)
    assert any("few directions" in warning for warning in report.monitors.warnings)
    index = train.pairs[("a", "b")].copy()
    index[:, 1] = np.random.default_rng(0).permutation(index[:, 1])
    wrong = TrainSet(train.modalities, {("a", "b"): index}, train.classes)
    unseen = planted(people=2, seed=9, first_person=50)
    model, _ = align_and_fit(stage_one, wrong, small_config(objective="cca"), silent)
    assert gap(model, unseen) < 0.3


def test_what_cca_cannot_use_is_refused(train: TrainSet, stage_one: Model) -> None:
    single = TrainSet(train.modalities, {("a", "b"): train.pairs[("a", "b")][:1]}, train.classes)
    with pytest.raises(DataError, match="two pairs"):
        align_and_fit(stage_one, single, small_config(objective="cca"), silent)
    with pytest.raises(ConfigError, match="ridge"):
        align_and_fit(stage_one, train, small_config(objective="cca", options={"ridge": 0.0}), silent)
