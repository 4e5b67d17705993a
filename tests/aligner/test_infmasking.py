"""CoMM and InfMasking: the masked term against its slow forms, the fusion, and what they learn."""

import math

import numpy as np
import pytest
import torch

from aligner.fusion import Fusion
from aligner.losses.infmasking import masked_term, masked_term_mc
from aligner.model import Model
from aligner.objectives.comm import Comm
from aligner.objectives.infmasking import InfMasking
from aligner.progress import silent
from aligner.train import align_and_fit
from aligner.trainset import TrainSet
from infomae_stream.errors import ConfigError
from tests.aligner.laws import gap, generator, planted, small_config

TAU = 0.1
STRANGERS = ~torch.eye(6, dtype=torch.bool)


def unit_rows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draws = generator(seed)
    q, z = torch.randn(6, 5, generator=draws).double(), torch.randn(6, 4, 5, generator=draws).double()
    return q / q.norm(dim=1, keepdim=True), z / z.norm(dim=2, keepdim=True)


def negatives_of(q: np.ndarray, z: np.ndarray, i: int, strangers: np.ndarray) -> float:
    total = 0.0
    for j in range(len(q)):
        if strangers[i, j]:
            total += sum(math.exp(float(q[i] @ z[j, k]) / TAU) for k in range(z.shape[1]))
            total += math.exp(float(q[i] @ q[j]) / TAU)
    return total


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_masked_term_equals_the_covariance_form(share: float) -> None:
    q, z = (rows.numpy() for rows in unit_rows())
    total = 0.0
    for i in range(6):
        mean_D = z[i].mean(axis=0)
        covariance_DD = sum(np.outer(row - mean_D, row - mean_D) for row in z[i]) / 4
        m, v = float(q[i] @ mean_D) / TAU, float(q[i] @ covariance_DD @ q[i]) / TAU**2
        total += -m + math.log(math.exp(m + share * v / 2) + negatives_of(q, z, i, STRANGERS.numpy()))
    assert masked_term(*unit_rows(), TAU, share, STRANGERS).item() == pytest.approx(total / 6, abs=1e-12)


def test_the_mean_of_exact_terms_equals_the_slow_loop() -> None:
    q, z = (rows.numpy() for rows in unit_rows())
    strangers = STRANGERS.clone()
    strangers[0, 1] = strangers[1, 0] = False
    total = 0.0
    for i in range(6):
        for k in range(4):
            own = float(q[i] @ z[i, k]) / TAU
            total += -own + math.log(math.exp(own) + negatives_of(q, z, i, strangers.numpy()))
    assert masked_term_mc(*unit_rows(), TAU, strangers).item() == pytest.approx(total / 24, abs=1e-12)


def test_masks_that_change_nothing_make_both_estimators_one_and_a_gradient_is_numeric() -> None:
    q, z = unit_rows()
    same = z[:, :1].expand(-1, 4, -1)
    exact = masked_term_mc(q, same, TAU, STRANGERS)
    assert masked_term(q, same, TAU, 1.0, STRANGERS).item() == pytest.approx(exact.item(), abs=1e-12)
    assert torch.autograd.gradcheck(
        lambda x: masked_term(x, z[:3], 1.0, 0.5, STRANGERS[:3, :3]), (q[:3].requires_grad_(),)
    )


def test_lonely_rows_are_finite() -> None:
    q, z = unit_rows()
    q.requires_grad_()
    none = torch.zeros(6, 6, dtype=torch.bool)
    loss = masked_term(q, z, TAU, 0.0, none) + masked_term_mc(q, z, TAU, none)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert q.grad is not None
    assert bool(torch.isfinite(q.grad).all())


def fusion() -> Fusion:
    torch.manual_seed(0)
    return Fusion({"a": (3, 2), "b": (3, 2), "c": (3, 2)}, tokens=8, width=16, heads=8, head_width=16, width_out=6)


def test_masks_hide_their_share_of_tokens_position_and_all() -> None:
    part = fusion()
    tokens = part.tokenise("a", torch.randn(20, 3), torch.randn(20, 2))
    hidden = (part.masked(tokens, 0.7, generator()) == part.mask_token).all(dim=2)
    assert hidden.sum(dim=1).tolist() == [6] * 20
    assert len(hidden.unique(dim=0)) > 5


def test_one_u_gives_the_same_shared_tokens_from_every_modality_and_any_number_is_fused() -> None:
    part = fusion()
    u, v = torch.randn(5, 3), torch.randn(5, 2)
    tokens = {name: part.tokenise(name, u, v) for name in "abc"}
    assert torch.equal(tokens["a"][:, :4], tokens["b"][:, :4])
    assert not torch.allclose(tokens["a"][:, 4:], tokens["b"][:, 4:])
    for names in ("a", "ab", "abc"):
        z = part([tokens[name] for name in names])
        torch.testing.assert_close(z.norm(dim=1), torch.ones(5))


def test_the_contrast_equals_the_slow_loop(stage_one: Model) -> None:
    objective = Comm.build(stage_one, [("a", "b")], {"width": 16, "head_width": 16, "width_out": 6}, generator())
    draws = generator(4)
    views = [[torch.randn(6, 8, 16, generator=draws) for _ in range(2)] for _ in range(2)]
    sequence = [0, 0, 1, 2, 3, 3]
    same = torch.tensor([[i == j for j in sequence] for i in sequence])
    with torch.no_grad():
        joint = [objective.fusion(tokens) for tokens in views]
        singles = [[objective.fusion([tokens]) for tokens in view] for view in views]
        got = objective.contrast_term(views, joint, same)

    def nce(left: torch.Tensor, right: torch.Tensor) -> float:
        total = 0.0
        for i in range(6):
            allowed = [j for j in range(6) if j == i or sequence[j] != sequence[i]]
            for x, y in ((left, right), (right, left)):
                similar = {j: math.exp(float(x[i] @ y[j]) / TAU) for j in allowed}
                total -= math.log(similar[i] / sum(similar.values())) / 12
        return total

    terms = [(nce(singles[0][i], joint[1]) + nce(singles[1][i], joint[0])) / 2 for i in range(2)]
    terms.append(nce(joint[0], joint[1]))
    assert got.item() == pytest.approx(sum(terms) / 3, rel=1e-4)


SIZES = {"width": 16, "head_width": 32, "width_out": 16}
LEARNING = {"start": "random", "head_rate": 1e-2, "steps": 40, "critic_warm_up": 0}


@pytest.mark.parametrize("name", ["comm", "infmasking"])
def test_the_objective_learns_the_planted_relation(name: str, train: TrainSet, stage_one: Model) -> None:
    unseen = planted(people=2, seed=9, first_person=50)
    config = small_config(objective=name, options=SIZES, **LEARNING)
    model, report = align_and_fit(stage_one, train, config, silent)
    assert gap(stage_one, unseen) < 0.0
    assert gap(model, unseen) > 0.25
    assert report.monitors.warnings == []
    assert set(report.losses) == ({"contrast", "masked"} if name == "infmasking" else {"contrast"})


def test_the_mean_of_exact_terms_falls_when_it_has_a_weight(train: TrainSet, stage_one: Model) -> None:
    losses = {}
    for masking in (1e-9, 1.0):
        options = {**SIZES, "masking": masking, "mask_estimator": "mc"}
        config = small_config(objective="infmasking", options=options, **(LEARNING | {"steps": 20}))
        losses[masking] = align_and_fit(stage_one, train, config, silent)[1].losses["masked"] / masking
    assert losses[1.0] < 0.85 * losses[1e-9]


@pytest.mark.parametrize("name", ["comm", "infmasking"])
def test_shrinking_norms_that_the_contrast_cannot_see_are_told(name: str, train: TrainSet, stage_one: Model) -> None:
    """The fusion's output has unit norm: no loss objects when the projections decay."""
    config = small_config(objective=name, options=SIZES, **(LEARNING | {"steps": 15, "weight_decay": 30.0}))
    _, report = align_and_fit(stage_one, train, config, silent)
    assert {w.split(":")[0] for w in report.monitors.warnings if "norms shrink" in w} >= {"a.u", "b.u"}


def test_options_of_the_masks_belong_to_infmasking(stage_one: Model) -> None:
    assert InfMasking.build(stage_one, [("a", "b")], {"rho": 0.5}, generator()).critic_parameters() == []
    with pytest.raises(ConfigError, match="rho"):
        Comm.build(stage_one, [("a", "b")], {"rho": 0.5}, generator())
    with pytest.raises(ConfigError, match="mask_estimator"):
        InfMasking.build(stage_one, [("a", "b")], {"mask_estimator": "exact"}, generator())
