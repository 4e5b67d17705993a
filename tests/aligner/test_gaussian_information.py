"""Information in closed form: against known laws, inside a batch loop, and as a training signal."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from aligner.information.copula import CopulaEstimator, copula_information
from aligner.information.discriminator import PairSamples
from aligner.information.gaussian import GaussianEstimator, gaussian_information, subspace_width, wishart_bias
from aligner.negatives import sequence_derangements
from aligner.pair_memory import PairMemory
from aligner.progress import silent
from aligner.subspace import RankNormal, Subspace
from aligner.train import align_and_fit, pretrain_all
from infomae_stream.errors import DataError
from tests.aligner.laws import DiscreteLaw, generator, planted, small_config

BOTH = [(gaussian_information, 60, 0.0), (copula_information, 300, 0.09)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def correlated(count: int, width: int, rho: float, seed: int) -> tuple[Tensor, Tensor]:
    draws = generator(seed)
    x, noise = (torch.randn(count, width, generator=draws, dtype=torch.double) for _ in range(2))
    return x, rho * x + math.sqrt(1 - rho**2) * noise


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize(("count", "width"), [(22, 4), (110, 8)])
def test_gaussian_is_unbiased_at_few_pairs_and_the_uncorrected_estimate_is_not(
    count: int, width: int, rho: float
) -> None:
    truth = -0.5 * width * math.log(1 - rho**2)
    found = np.array([gaussian_information(*correlated(count, width, rho, seed), width=width) for seed in range(200)])
    error = found.std() / math.sqrt(len(found))
    assert abs(found.mean() - truth) < 4 * error
    bias = wishart_bias(count, [width, width])
    assert bias > 8 * error
    assert bias == pytest.approx(width**2 / (2 * (count - width)), rel=0.12)  # METHOD 4's first order
    # The spread of a log det ratio: 1 / n a direction that is fully shared, width^2 / 2 n^2 from chance alone.
    assert found.std() < math.sqrt((width * rho**2 + width**2 / count) / count) * 1.4


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_copula_is_near_the_truth_on_gaussians_and_on_any_monotone_map_of_them(rho: float) -> None:
    truth = -0.5 * 4 * math.log(1 - rho**2)
    pairs = [correlated(300, 4, rho, seed) for seed in range(40)]
    found = np.mean([copula_information(x, y, width=4) for x, y in pairs])
    assert found == pytest.approx(truth, abs=0.02 + 0.04 * truth)
    x, y = pairs[0]
    bent = (x.exp(), y.pow(3) + 5 * y)
    assert copula_information(*bent, width=4) == pytest.approx(copula_information(x, y, width=4), abs=1e-12)
    if rho:
        assert gaussian_information(*bent, width=4) < gaussian_information(x, y, width=4) - 0.1


@pytest.mark.parametrize(("estimate", "count", "slack"), BOTH)
@pytest.mark.parametrize("partial", [0.0, 0.7])
def test_conditional_information_leaves_out_what_the_condition_explains(
    estimate: Callable[..., float], count: int, slack: float, partial: float
) -> None:
    found, marginal = [], []
    for seed in range(60):
        x, y = correlated(count, 2, partial, seed)
        given = torch.randn(count, 3, generator=generator(1000 + seed), dtype=torch.double)
        x, y = x + 2.0 * given[:, :2], y - 2.0 * given[:, :2]
        found.append(estimate(x, y, given, width=3))
        marginal.append(estimate(x, y, width=3))
    error = np.std(found) / math.sqrt(len(found))
    # `slack`: ranks are coarse, so the copula is low where the condition explains most of the variance.
    assert abs(np.mean(found) + math.log(1 - partial**2)) < 4 * error + slack
    assert np.mean(marginal) == pytest.approx(-math.log(1 - ((partial - 4) / 5) ** 2), abs=0.15)


def test_the_conditional_estimate_is_that_of_determinants_less_the_bias_term_by_term() -> None:
    rng = np.random.default_rng(0)
    u = rng.normal(size=(22, 4))
    x, y = u[:, :2] + rng.normal(size=(22, 2)), u[:, 1:4] + rng.normal(size=(22, 3))

    def half_log_det(*parts: np.ndarray) -> float:
        """Half the log determinant of the covariance, less its expected excess, by a numeric digamma."""
        rows = np.concatenate(parts, axis=1)
        excess = 0.0
        for i in range(rows.shape[1]):
            at = (22 - 1 - i) / 2
            excess += (math.lgamma(at + 1e-4) - math.lgamma(at - 1e-4)) / 2e-4 - math.log(21 / 2)
        return 0.5 * (np.linalg.slogdet(np.cov(rows.T))[1] - excess)

    slow = half_log_det(x, u) + half_log_det(y, u) - half_log_det(x, y, u) - half_log_det(u)
    fast = gaussian_information(*(torch.from_numpy(part) for part in (x, y, u)), width=4)
    assert fast == pytest.approx(slow, abs=1e-6)


@pytest.mark.parametrize(("first", "second"), [(0, 1), (0, 2), (1, 2)])
def test_on_a_discrete_law_linear_dependence_of_one_hot_codes_is_what_is_measured(first: int, second: int) -> None:
    law = DiscreteLaw.example()
    joint = law.table.sum(axis=tuple(a for a in range(4) if a not in (first, second)))
    root = joint / np.sqrt(joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True))
    rho = np.linalg.svd(root, compute_uv=False)[1:]
    linear = -0.5 * np.log1p(-(rho**2)).sum()
    codes = np.repeat(np.array(law.cells()), law.counts(6000).ravel(), axis=0)
    one_hot = [
        torch.from_numpy(np.eye(law.table.shape[axis])[codes[:, axis]]).double()[:, 1:] for axis in (first, second)
    ]
    widths = [part.shape[1] for part in one_hot]
    found = gaussian_information(*one_hot) + wishart_bias(6000, widths)
    assert found == pytest.approx(linear, abs=1e-6)
    truth = law.information((first,), (second,))
    assert truth != pytest.approx(linear, rel=0.001)
    assert truth == pytest.approx(linear, rel=0.2)  # a good guide under weak dependence, not an estimate of the truth


def test_whole_numbers_as_codes_miss_what_is_not_monotone() -> None:
    rng = np.random.default_rng(0)
    symbol = rng.integers(-1, 2, size=(2000, 1))
    x, y = (torch.from_numpy(v + 0.01 * rng.normal(size=v.shape)) for v in (symbol, symbol**2))
    assert abs(gaussian_information(x, y)) < 0.02  # the truth is log 3 - 2/3 log 2 = 0.636
    assert abs(copula_information(x, y)) < 0.15


def pairs_of(count: int, seed: int) -> PairSamples:
    """x1 and x2 (three channels) show a common value beside their own; u is one direction of x, v another."""
    draws = generator(seed)
    common = torch.randn(count, 1, generator=draws)
    x = [
        torch.cat([common + 0.3 * torch.randn(count, 1, generator=draws), torch.randn(count, 2, generator=draws)], 1)
        for _ in range(2)
    ]
    noise = [0.1 * torch.randn(count, 2, generator=draws) for _ in range(4)]
    u = [part[:, :2] + noise[i] for i, part in enumerate(x)]
    v = [part[:, 1:] + noise[i + 2] for i, part in enumerate(x)]
    shaped = [part.reshape(count, 3, 1, 1) for part in x]
    return PairSamples(*shaped, *u, *v, torch.arange(count) // 4)


def some(samples: PairSamples, rows: slice) -> PairSamples:
    return PairSamples(**{name: part[rows] for name, part in vars(samples).items()})


@pytest.mark.parametrize("cls", [GaussianEstimator, CopulaEstimator])
def test_batches_give_the_estimate_of_the_whole_set_and_draws_of_one_pair_count_once(
    cls: type[GaussianEstimator],
) -> None:
    samples = pairs_of(120, 0)
    estimator = cls(((3, 1, 1), (3, 1, 1)), 2, 2)
    for _ in range(2):
        for start in range(0, 120, 20):
            estimator.log_ratios(some(samples, slice(start, start + 20)))
    assert len(estimator.memory) == 120
    batches = [estimator.log_ratios(some(samples, slice(start, start + 20))) for start in range(0, 120, 20)]
    ratio = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    estimate = gaussian_information if cls is GaussianEstimator else copula_information
    rows = estimator.memory.rows
    for name, parts in (("b12", ("x2", "u1")), ("xv1", ("x1", "v1")), ("uv2", ("v2", "u2"))):
        whole = estimate(*(rows(part) for part in parts))
        tolerance = 2e-3 if cls is GaussianEstimator else 1e-2  # the subspace of x was fitted at nine tenths of them
        assert ratio[name].mean().item() == pytest.approx(whole, abs=tolerance), name
    conditional = (ratio["a1"] - ratio["b11"] - ratio["b12"]).mean().item()
    assert conditional == pytest.approx(estimate(rows("x1"), rows("x2"), rows("u1")), abs=0.05)
    assert estimator.constancy(ratio)["known_pairs"] == 120.0


def test_the_gradient_with_fixed_statistics_is_that_of_the_closed_form() -> None:
    samples = pairs_of(64, 1)
    u = samples.u1_BD.double().requires_grad_()
    estimator = GaussianEstimator(((3, 1, 1), (3, 1, 1)), 2, 2)
    moving = PairSamples(**{**vars(samples), "u1_BD": u})
    estimator.log_ratios(moving)["b12"].mean().backward()
    x2 = estimator.memory.rows("x2")

    def closed(u_ND: Tensor) -> Tensor:
        z = [part - part.mean(dim=0) for part in (x2, u_ND)]
        both = torch.cat(z, dim=1)
        parts = sum(torch.logdet(part.T @ part) for part in z)
        return 0.5 * (parts - torch.logdet(both.T @ both))

    (expected,) = torch.autograd.grad(closed(u), u)
    assert u.grad is not None
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(u.grad, expected, atol=1e-5, rtol=1e-3)


def test_the_copula_gradient_is_the_gaussian_one_on_gaussians_and_follows_a_bent_coordinate() -> None:
    gradients = {}
    for cls, bend in ((GaussianEstimator, False), (CopulaEstimator, False), (CopulaEstimator, True)):
        samples = pairs_of(400, 2)
        u = samples.u1_BD.clone().requires_grad_()
        inner = u.sinh() if bend else u
        estimator = cls(((3, 1, 1), (3, 1, 1)), 2, 2)
        estimator.log_ratios(PairSamples(**{**vars(samples), "u1_BD": inner}))["b12"].mean().backward()
        assert u.grad is not None
        gradients[cls.__name__, bend] = u.grad.flatten()
    gauss, copula, bent = gradients.values()
    assert torch.cosine_similarity(gauss, copula, dim=0) > 0.9
    assert torch.cosine_similarity(gauss, bent, dim=0) > 0.9


@pytest.mark.parametrize("cls", [GaussianEstimator, CopulaEstimator])
def test_the_shared_loss_turns_u_to_what_both_modalities_see(cls: type[GaussianEstimator]) -> None:
    everything = pairs_of(160, 3)
    estimator = cls(((3, 1, 1), (3, 1, 1)), 1, 2)
    draws = generator(4)
    weights = [torch.tensor([[0.2], [1.0], [0.5]], requires_grad=True) for _ in range(2)]
    optimiser = torch.optim.Adam(weights, lr=0.05)

    def shared(x_BKTF: Tensor, weight: Tensor) -> Tensor:
        return (x_BKTF.flatten(1) @ weight) / weight.norm()

    def seen(which: int) -> float:
        x = (everything.x1_BKTF, everything.x2_BKTF)
        u = [shared(part, weight.detach())[:, 0] for part, weight in zip(x, weights, strict=True)]
        return abs(float(torch.corrcoef(torch.stack([u[which], x[1 - which][:, 0, 0, 0]]))[0, 1]))

    assert seen(0) < 0.5 and seen(1) < 0.5
    for _ in range(120):
        batch = some(everything, slice(40 * int(torch.randint(4, (1,), generator=draws)), None))
        batch = some(batch, slice(0, 40))
        u = [shared(x, w) for x, w in zip((batch.x1_BKTF, batch.x2_BKTF), weights, strict=True)]
        u = [part + 0.1 * torch.randn(part.shape, generator=draws) for part in u]
        moving = PairSamples(**{**vars(batch), "u1_BD": u[0], "u2_BD": u[1]})
        loss = estimator.shared(estimator.log_ratios(moving), beta=0.1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert seen(0) > 0.85 and seen(1) > 0.85  # x1 and x2 themselves correlate by 0.92
    for weight in weights:
        assert weight[0].abs() > 4 * weight[1:].abs().max()


def test_infomae_trains_with_it_on_the_whole_pair_set() -> None:
    train = planted(people=2)
    model = pretrain_all(train, small_config(), silent)
    config = small_config(steps=30, options={"estimator": "gaussian"})
    _, report = align_and_fit(model, train, config, silent)
    assert report.monitors.critics["known_pairs"] == len(train.pairs["a", "b"]) == 60
    assert report.monitors.skipped_steps == 0
    assert report.losses["shared"] != 0.0


@pytest.mark.parametrize("cls", [GaussianEstimator, CopulaEstimator])
def test_what_is_not_finite_is_not_remembered_and_shows_in_the_ratio(cls: type[GaussianEstimator]) -> None:
    samples = pairs_of(40, 5)
    estimator = cls(((3, 1, 1), (3, 1, 1)), 2, 2)
    estimator.log_ratios(some(samples, slice(0, 20)))
    broken = samples.u1_BD.clone()
    broken[25] = math.nan
    batch = some(PairSamples(**{**vars(samples), "u1_BD": broken}), slice(20, 40))
    assert not math.isfinite(estimator.log_ratios(batch)["b11"].sum())
    assert len(estimator.memory) == 39
    assert math.isfinite(estimator.log_ratios(samples)["b11"].sum())


def test_the_power_of_a_spectrum_counts_whatever_its_phase() -> None:
    draws = generator(10)
    level = torch.randn(200, 1, generator=draws)
    phase = 2 * math.pi * torch.rand(200, 1, 6, 1, generator=draws)
    x = torch.cat([phase.cos(), phase.sin()], dim=1) * level.exp()[:, :, None, None]
    noise = torch.randn(200, 2, generator=draws)
    samples = PairSamples(x, x, level + 0.1 * noise[:, :1], noise[:, :1], noise, noise, torch.arange(200) // 4)
    ratio = GaussianEstimator(((2, 6, 1), (2, 6, 1)), 1, 2).log_ratios(samples)
    assert ratio["b11"].mean() > 0.8
    assert abs(ratio["xv2"].mean()) < 0.1


def test_few_pairs_say_nothing_and_a_constant_u_holds_nothing() -> None:
    samples = pairs_of(40, 6)
    estimator = GaussianEstimator(((3, 1, 1), (3, 1, 1)), 2, 2)
    u = samples.u1_BD[:11].clone().requires_grad_()
    few = PairSamples(**{**vars(some(samples, slice(0, 11))), "u1_BD": u})
    ratio = estimator.log_ratios(few)
    sum(value.sum() for value in ratio.values()).backward()
    assert u.grad is not None and not u.grad.any()
    assert all(not value.any() for value in ratio.values())
    constant = PairSamples(**{**vars(samples), "u1_BD": torch.ones(40, 2)})
    fresh = GaussianEstimator(((3, 1, 1), (3, 1, 1)), 2, 2).log_ratios(constant)
    assert not fresh["b11"].any()
    assert fresh["b22"].mean() > 1.0


def test_logged_cross_entropies_tell_what_depends() -> None:
    samples = pairs_of(400, 7)
    draws = generator(8)
    apart = sequence_derangements(samples.sequence_B, 1, draws)[0]
    estimator = GaussianEstimator(((3, 1, 1), (3, 1, 1)), 2, 2)
    losses = estimator.critic_loss(PairSamples(**{**vars(samples), "u2_BD": samples.u2_BD[apart]}), draws)
    assert losses["b12"] < 0.6 < 0.68 < losses["b21"] < 0.73


def test_rows_that_cannot_be_estimated_are_refused() -> None:
    x = torch.randn(40, 3)
    for y, width in ((torch.randn(39, 3), 3), (torch.full((40, 3), math.nan), 3), (torch.randn(40, 40), 38)):
        with pytest.raises(DataError, match="rows"):
            gaussian_information(x, y, width=width)
    with pytest.raises(DataError, match="more pairs"):
        gaussian_information(x[:8], x[:8])
    assert [subspace_width(n) for n in (22, 64, 99, 110, 2000)] == [5, 16, 16, 27, 32]


def test_the_memory_forgets_the_oldest_pair_when_full() -> None:
    memory = PairMemory(4)
    x = torch.arange(6.0).reshape(6, 1, 1, 1)
    memory.put(x[:4], x[:4], {"u": x[:4, 0, 0]})
    memory.put(x[1:2], x[1:2], {"u": torch.tensor([[9.0]])})
    memory.put(x[4:], x[4:], {"u": x[4:, 0, 0]})
    assert sorted(memory.rows("u")[:, 0].tolist()) == [2.0, 3.0, 4.0, 5.0]
    memory.put(x[:1], x[:1], {"u": x[:1, 0, 0]})
    assert sorted(memory.rows("u")[:, 0].tolist()) == [0.0, 3.0, 4.0, 5.0]


def test_a_wide_part_is_reduced_to_its_principal_directions_and_leaves_the_generator_alone() -> None:
    draws = generator(9)
    factors = torch.randn(80, 4, generator=draws, dtype=torch.double)
    wide = factors @ torch.randn(4, 400, generator=draws, dtype=torch.double)
    wide += 0.05 * torch.randn(wide.shape, generator=draws, dtype=torch.double)
    state = torch.random.get_rng_state()
    coordinates = Subspace(wide, 4)(wide)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.testing.assert_close(coordinates.T @ coordinates / 80, torch.eye(4, dtype=torch.double), atol=1e-6, rtol=0)
    explained = torch.linalg.svdvals(torch.linalg.qr(factors - factors.mean(0)).Q.T @ torch.linalg.qr(coordinates).Q)
    assert explained.min() > 0.99


def test_normal_scores_are_the_quantiles_of_mean_ranks() -> None:
    rows = torch.tensor([[3.0], [1.0], [2.0], [2.0]], dtype=torch.double)
    quantiles = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor([4.0, 1.0, 2.5, 2.5]) / 5.0)
    torch.testing.assert_close(RankNormal(rows)(rows)[:, 0].float(), quantiles, atol=1e-6, rtol=0)
