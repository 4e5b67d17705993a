"""ModAlign: the conditional ratio, its margin, contexts, the guard of each modality's own loss."""

import math

import numpy as np
import pytest
import torch

from aligner.contexts import Contexts, onset
from aligner.losses.conditional_ratio import critic_loss, negatives, shortfall
from aligner.model import Model
from aligner.objectives.modalign import ModAlign, ModAlignOptions, SeparableCritic
from aligner.progress import silent
from aligner.train import align_and_fit
from aligner.trainset import TrainSet
from infomae_stream.errors import ConfigError, TrainingError
from tests.aligner.laws import gap, generator, planted, small_config

CONTEXT = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2])
SEQUENCE = torch.tensor([0, 0, 1, 2, 3, 3, 4, 5])


def log_ratios(seed: int = 0) -> torch.Tensor:
    return 2.0 * torch.randn(8, 8, generator=generator(seed), dtype=torch.double)


def test_negatives_share_the_context_and_are_of_another_recording() -> None:
    got = negatives(CONTEXT, SEQUENCE)
    for i in range(8):
        for j in range(8):
            assert bool(got[i, j]) == (CONTEXT[i] == CONTEXT[j] and SEQUENCE[i] != SEQUENCE[j])
    assert not got[7].any()


@pytest.mark.parametrize("r", [1.0, 4.0, 16.0])
def test_the_critics_loss_equals_the_slow_loop(r: float) -> None:
    ratio, terms = log_ratios(), []
    for i in range(7):
        others = [j for j in range(8) if CONTEXT[j] == CONTEXT[i] and SEQUENCE[j] != SEQUENCE[i]]
        h = {j: 1.0 / (1.0 + r * math.exp(-float(ratio[i, j]))) for j in [i, *others]}
        terms.append(-math.log(h[i]) - r * sum(math.log(1.0 - h[j]) for j in others) / len(others))
    got = critic_loss(ratio, negatives(CONTEXT, SEQUENCE), r)
    assert got.item() == pytest.approx(sum(terms) / 7, rel=1e-12)


@pytest.mark.parametrize("margin", [0.5, 3.0])
def test_the_shortfall_equals_the_slow_loop_and_stops_at_the_margin(margin: float) -> None:
    ratio, missing = log_ratios(), []
    for rows in ([0, 1, 2], [3, 4, 5, 6]):
        information = sum(float(ratio[i, i]) for i in rows) / len(rows)
        missing.append(max(0.0, margin * math.log(len(rows)) - information))
    got, information = shortfall(ratio, negatives(CONTEXT, SEQUENCE), CONTEXT, margin)
    assert got.item() == pytest.approx(sum(missing) / 2, rel=1e-12)
    assert information == pytest.approx(float(ratio.diagonal()[:7].mean()), rel=1e-12)
    enough = torch.full((8, 8), 9.0, requires_grad=True)
    lacking, _ = shortfall(enough, negatives(CONTEXT, SEQUENCE), CONTEXT, margin)
    lacking.backward()
    assert enough.grad is not None
    assert (lacking.item(), float(enough.grad.abs().sum())) == (0.0, 0.0)


def test_a_batch_without_negatives_teaches_nothing_and_is_finite() -> None:
    ratio = log_ratios().requires_grad_()
    none = torch.zeros(8, 8, dtype=torch.bool)
    (critic_loss(ratio, none, 4.0) + shortfall(ratio, none, CONTEXT, 0.5)[0]).backward()
    assert ratio.grad is not None
    assert float(ratio.grad.abs().sum()) == 0.0


def test_the_critic_finds_the_information_of_each_context() -> None:
    """Four symbols that agree with probability 0.85 in context 0; in context 1 the second tells nothing of the first,
    and both are symbol 0 more often: without the context that alone would inform."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    draws = generator(1)
    critic = SeparableCritic(4, 2)
    optimiser = torch.optim.Adam(critic.parameters(), lr=1e-2)
    law = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1]])

    def sample(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        context = torch.arange(count) % 2
        first, second = (torch.multinomial(law[context], 1, generator=draws)[:, 0] for _ in range(2))
        copied = (torch.rand(count, generator=draws) < 0.8) & (context == 0)
        second = torch.where(copied, first, second)
        return *(torch.nn.functional.one_hot(s, 4).float() for s in (first, second)), context

    for _ in range(120):
        x, y, context = sample(128)
        loss = critic_loss(critic(x, y, context), negatives(context, torch.arange(128)), 4.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x, y, context = sample(2000)
    with torch.no_grad():
        information = critic(x, y, context).diagonal()
    truth = 0.85 * math.log(4 * 0.85) + 0.15 * math.log(4 * 0.05)
    assert information[context == 0].mean().item() == pytest.approx(truth, abs=0.15)
    assert information[context == 1].mean().item() == pytest.approx(0.0, abs=0.15)


def test_the_loudest_interval_against_the_mean_of_all() -> None:
    x = torch.zeros(2, 1, 4, 3)
    x[1, 0, 2, 1:] = 2.0
    x[:, :, :, 0] = 77.0
    assert onset(x, "magnitude").tolist() == pytest.approx([0.0, 1.5])
    steady, burst = torch.ones(1, 2, 4, 3), torch.ones(1, 2, 4, 3)
    burst[:, :, 0] = math.sqrt(math.e)
    assert onset(torch.cat([steady, burst]), "complex").tolist() == pytest.approx([0.0, 0.75], abs=1e-4)


@pytest.mark.parametrize(("pairs", "count"), [(128, 8), (64, 4), (48, 2), (31, 1)])
def test_contexts_are_as_many_as_the_pairs_carry(pairs: int, count: int) -> None:
    node = np.array([f"n{i % 4}" for i in range(pairs)])
    sequence, loud = np.arange(pairs) % 4 + 100, torch.arange(pairs).float()
    contexts = Contexts(node, sequence, loud)
    assert contexts.count == count
    got = contexts.of(torch.from_numpy(sequence), loud)
    assert sorted(set(got.tolist())) == list(range(count))
    if count == 8:
        assert got[:4].tolist() == [0, 2, 4, 6]
        assert got[-4:].tolist() == [1, 3, 5, 7]


LEARNING = {"objective": "modalign", "start": "random", "head_rate": 3e-3, "critic_rate": 3e-3}


def test_the_objective_learns_the_planted_relation(train: TrainSet, stage_one: Model) -> None:
    unseen = planted(people=2, seed=9, first_person=50)
    options = {"alpha": 1.0, "margin": 2.0}
    config = small_config(steps=80, critic_warm_up=20, options=options, **LEARNING)
    model, report = align_and_fit(stage_one, train, config, silent)
    assert abs(gap(stage_one, unseen)) < 0.3
    assert gap(model, unseen) > 0.6
    assert report.monitors.warnings == []
    assert set(report.losses) == {"task", "alignment", "guard"}
    assert {"critic_a|b", "information_a|b"} <= set(report.monitors.critics)


def test_shrinking_norms_that_the_critic_cannot_see_are_told(train: TrainSet, stage_one: Model) -> None:
    """Z is normalised and the task reads directions: no loss objects when the weights decay."""
    config = small_config(steps=40, critic_warm_up=0, weight_decay=80.0, **LEARNING)
    _, report = align_and_fit(stage_one, train, config, silent)
    assert {w.split(":")[0] for w in report.monitors.warnings if "norms shrink" in w} >= {"a.u", "b.u"}


def test_the_guard_holds_a_modalitys_own_loss_near_its_value_before_alignment(
    train: TrainSet, stage_one: Model
) -> None:
    """Without a task, pulling without end costs each modality its own views; the guard forbids it."""
    losses = {}
    for eta in (0.0, 10.0):
        options = {"task": 1e-9, "alpha": 1.0, "eta": eta, "margin": 100.0}
        config = small_config(steps=40, critic_warm_up=5, options=options, **LEARNING)
        losses[eta] = align_and_fit(stage_one, train, config, silent)[1].losses["task"]
    assert losses[10.0] < 0.85 * losses[0.0]


def test_what_is_asked_too_early_or_out_of_range_is_refused(train: TrainSet, stage_one: Model) -> None:
    objective = ModAlign(stage_one, [("a", "b")], ModAlignOptions())
    with pytest.raises(TrainingError, match="prepare first"):
        objective.critic_parameters()
    with pytest.raises(TrainingError, match="critic step first"):
        objective.reference("a")
    with pytest.raises(ConfigError, match=r"align.options.r\b"):
        align_and_fit(stage_one, train, small_config(objective="modalign", options={"r": 17.0}), silent)
