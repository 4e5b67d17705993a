"""Information terms: the signs, the ratios, the negatives."""

import math

import numpy as np
import pytest
import torch

from aligner.critics import Critic, frozen, ratio_loss, soft_clamp
from aligner.information.bottleneck import BottleneckEstimator
from aligner.information.discriminator import DiscriminatorEstimator, PairSamples
from aligner.negatives import sequence_derangements
from infomae_stream.errors import DataError
from tests.aligner.laws import DiscreteLaw, generator

X1, X2, U1, U2 = 0, 1, 2, 3
AXES = {"a1": (X1, X2, U1), "a2": (X1, X2, U2), "b11": (X1, U1), "b12": (X2, U1), "b21": (X1, U2), "b22": (X2, U2)}
SHAPE = (1, 2, 2)


def estimator(cls: type[DiscriminatorEstimator] = DiscriminatorEstimator) -> DiscriminatorEstimator:
    torch.manual_seed(0)
    return cls((SHAPE, SHAPE), 2, 2, hidden=16, layers=3, vector_width=4)


def exact_ratios(law: DiscreteLaw) -> dict[str, torch.Tensor]:
    """Every ratio at 6000 draws that follow the law exactly, so that a mean is an expectation."""
    repeat = law.counts(6000).ravel()
    return {name: torch.from_numpy(np.repeat(law.log_ratio(*axes).ravel(), repeat)) for name, axes in AXES.items()}


@pytest.mark.parametrize("beta", [0.0, 0.05, 0.3])
def test_shared_loss_has_the_right_signs_on_a_law_with_known_information(beta: float) -> None:
    law = DiscreteLaw.example()
    truth = sum(
        law.information((X1,), (X2,), (u,)) + beta * law.information((x,), (u,)) for x, u in ((X1, U1), (X2, U2))
    )
    ratio = exact_ratios(law)
    assert estimator().shared(ratio, beta).item() == pytest.approx(truth, abs=1e-9)
    printed = ratio["a1"] + ratio["a2"] + (1 - beta) * (ratio["b11"] + ratio["b22"]) + ratio["b12"] + ratio["b21"]
    assert printed.mean().item() > truth + 0.5


def test_the_bottleneck_equals_the_shared_loss_up_to_the_information_of_the_inputs() -> None:
    law, beta = DiscreteLaw.example(), 0.3
    ratio = exact_ratios(law)
    whole = estimator().shared(ratio, beta)
    short = estimator(BottleneckEstimator).shared(ratio, beta)
    assert (whole - short).item() == pytest.approx(2.0 * law.information((X1,), (X2,)), abs=1e-9)


def test_a_minus_b_is_the_information_of_the_inputs_whatever_u_is() -> None:
    law = DiscreteLaw.example()
    expected = law.information((X1,), (X2,))
    checks = estimator().constancy(exact_ratios(law))
    assert checks == {"a_minus_b1": pytest.approx(expected, abs=1e-9), "a_minus_b2": pytest.approx(expected, abs=1e-9)}
    blind = np.repeat(law.table.sum(axis=2, keepdims=True) / 2.0, 2, axis=2)
    checks = estimator().constancy(exact_ratios(DiscreteLaw(blind)))
    assert checks["a_minus_b1"] == pytest.approx(expected, abs=1e-9)


def test_private_loss_weighs_own_and_overlapping_information() -> None:
    values = {"xv1": 1.0, "xv2": 2.0, "uv1": 3.0, "uv2": 5.0}
    ratio = {name: torch.tensor([value]) for name, value in values.items()}
    assert estimator().private(ratio, gamma=0.5, epsilon=0.1).item() == pytest.approx(0.5 * 3.0 + 0.1 * 8.0)


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_a_critic_finds_the_information_of_gaussians(rho: float) -> None:
    torch.manual_seed(1)
    draws = generator(2)
    critic = Critic([1, 1], hidden=48, layers=3)
    optimiser = torch.optim.Adam(critic.parameters(), lr=3e-3)

    def sample(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(count, 1, generator=draws)
        return x, rho * x + math.sqrt(1 - rho**2) * torch.randn(count, 1, generator=draws)

    for _ in range(500):
        loss = ratio_loss(critic, sample(256), torch.arange(256), draws)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        estimate = critic(sample(20000)).mean().item()
    assert estimate == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.1)


def test_the_ten_critics_find_what_is_planted_and_nothing_else() -> None:
    torch.manual_seed(0)
    draws = generator(5)
    critics = estimator()
    optimiser = torch.optim.Adam(critics.parameters(), lr=3e-3)

    def sample(count: int) -> PairSamples:
        common = torch.randn(count, 1, generator=draws)
        x = [torch.cat([common, torch.randn(count, 3, generator=draws)], dim=1) for _ in range(2)]
        noise = [torch.randn(count, 2, generator=draws) for _ in range(4)]
        u = [common + 0.3 * noise[0], torch.randn(count, 2, generator=draws)]
        return PairSamples(
            x[0].view(-1, *SHAPE), x[1].view(-1, *SHAPE), u[0], u[1], noise[2], noise[3], torch.arange(count)
        )

    for _ in range(200):
        losses = critics.critic_loss(sample(192), draws)
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
    with torch.no_grad():
        held_out = {name: float(loss) for name, loss in critics.critic_loss(sample(2000), draws).items()}
    assert set(held_out) == set(DiscriminatorEstimator.ratios)
    for informed in ("a1", "b11", "b12"):
        assert held_out[informed] < 0.55, informed
    for blind in ("b21", "b22", "xv1", "xv2", "uv1", "uv2"):
        assert 0.67 < held_out[blind] < 0.72, blind


def test_in_the_model_step_gradients_reach_u_and_no_critic() -> None:
    critics = estimator()
    x = torch.randn(8, *SHAPE)
    u, v = torch.randn(8, 2, requires_grad=True), torch.randn(8, 2, requires_grad=True)
    ratio = critics.log_ratios(PairSamples(x, x, u, u, v, v, torch.arange(8)))
    (critics.shared(ratio, 0.05) + critics.private(ratio, 0.1, 0.1)).backward()
    assert u.grad is not None
    assert u.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in critics.parameters())


def test_in_the_critic_step_u_is_data() -> None:
    critics = estimator()
    x, u = torch.randn(8, *SHAPE), torch.randn(8, 2, requires_grad=True)
    sum(critics.critic_loss(PairSamples(x, x, u, u, u, u, torch.arange(8)), generator()).values()).backward()
    assert u.grad is None
    assert all(p.grad is not None for p in critics.parameters())


def test_frozen_restores_what_was_trainable() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    with frozen(layer):
        assert not layer.weight.requires_grad
    assert (layer.weight.requires_grad, layer.bias.requires_grad) == (True, False)


def test_soft_clamp_is_the_identity_near_zero_and_bounded() -> None:
    x = torch.tensor([-100.0, -0.01, 0.01, 100.0], dtype=torch.double)
    torch.testing.assert_close(soft_clamp(x, 5.0)[1:3], x[1:3], atol=1e-6, rtol=0)
    assert soft_clamp(x, 5.0).abs().max() <= 5.0


@pytest.mark.parametrize("seed", range(20))
def test_derangements_move_every_row_to_another_sequence_and_differ_everywhere(seed: int) -> None:
    sequence = torch.from_numpy(np.random.default_rng(seed).permutation(np.repeat(np.arange(6), [4, 4, 3, 2, 4, 1])))
    first, second = sequence_derangements(sequence, 2, generator(seed))
    for permutation in (first, second):
        assert sorted(permutation.tolist()) == list(range(18))
        assert bool((sequence[permutation] != sequence).all())
    assert bool((sequence[first] != sequence[second]).all())


def test_a_batch_of_too_few_sequences_is_refused() -> None:
    with pytest.raises(DataError, match="more sequences"):
        sequence_derangements(torch.tensor([0, 0, 0, 1, 1]), 1, generator())
