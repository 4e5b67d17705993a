"""The contrastive baselines: each equals a slow form, learns what is planted, and its collapse is seen."""

import copy
import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from aligner.align import align
from aligner.augment import augment
from aligner.batches import AlignBatch, ModalityBatch
from aligner.losses.contrast import NtXent
from aligner.losses.orthogonal import orthogonality
from aligner.losses.temporal_rank import TemporalRank
from aligner.model import Model
from aligner.objectives import objective_class
from aligner.principal_start import start_from_principal
from aligner.progress import silent
from aligner.train import front_end_for, pretrain_all
from aligner.trainset import TrainSet
from infomae_stream.errors import ConfigError
from tests.aligner.laws import generator, planted, small_config

PAIRED = ("cmc", "gmc", "focal")
ALONE = ("simclr", "moco", "tnc")
UNPAIRED = ("concat", *ALONE)
SEQUENCE = np.array([0, 0, 0, 1, 1, 2, 3, 3])


def three(people: int, seed: int, first_person: int = 0) -> TrainSet:
    """`planted` with a third sensor "c" of the same classes, each pair of sensors paired."""
    train = planted(people, seed, first_person)
    other = planted(people, seed + 100, first_person)
    modalities = {**train.modalities, "c": replace(other.modalities["b"], modality="c")}
    pairs = {names: train.pairs[("a", "b")] for names in combinations("abc", 2)}
    return TrainSet(modalities, pairs, train.classes)


@pytest.fixture(scope="module")
def train() -> TrainSet:
    return three(people=4, seed=0)


@pytest.fixture(scope="module")
def stage_one(train: TrainSet) -> Model:
    return pretrain_all(train, small_config(), silent)


@pytest.fixture(scope="module")
def batch() -> AlignBatch:
    """Random embeddings of eight windows: three pairs of modalities, three modalities alone."""
    draws, sequence = generator(3), torch.from_numpy(SEQUENCE)

    def side() -> ModalityBatch:
        e, a, b = (torch.randn(8, 24, generator=draws) for _ in range(3))
        return ModalityBatch(torch.zeros(8, 1, 1, 1), e, a, b, e, torch.zeros(8, 1, 1, dtype=torch.bool), sequence)

    return AlignBatch({names: (side(), side()) for names in combinations("abc", 2)}, {name: side() for name in "abc"})


@pytest.fixture(scope="module")
def blank(train: TrainSet) -> Model:
    torch.manual_seed(4)
    config = small_config(private_width=5)
    fronts = {name: front_end_for(windows, config.front_end) for name, windows in train.modalities.items()}
    return Model(fronts, train.classes, config).eval()


def loss_of(name: str, model: Model, batch: AlignBatch, **options: object) -> dict[str, float]:
    objective = objective_class(name).build(model, sorted(batch.pairs), options, generator())
    terms, _ = objective.model_loss(batch, 0.5)
    return {key: float(term.detach()) for key, term in terms.items()}


# Slow forms, in float64, written from the equations.


def doubles(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [tensor.detach().numpy().astype(np.float64) for tensor in tensors]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))


def slow_cross(a: np.ndarray, b: np.ndarray, tau: float, neighbours: bool = False) -> float:
    total, count = 0.0, len(a)
    for i in range(count):
        for anchor, others in ((a[i], b), (b[i], a)):
            allowed = [j for j in range(count) if j == i or neighbours or SEQUENCE[j] != SEQUENCE[i]]
            similar = {j: math.exp(cosine(anchor, others[j]) / tau) for j in allowed}
            total -= math.log(similar[i] / sum(similar.values()))
    return total / (2 * count)


def slow_nt_xent(a: np.ndarray, b: np.ndarray, tau: float) -> float:
    rows, count, total = [*a, *b], len(a), 0.0
    for i in range(2 * count):
        similar = [math.exp(cosine(rows[i], rows[j]) / tau) for j in range(2 * count)]
        total -= math.log(similar[(i + count) % (2 * count)] / (sum(similar) - similar[i]))
    return total / (2 * count)


def slow_rank(h: np.ndarray) -> float:
    def apart(s: int, t: int) -> float:
        found = [
            math.sqrt(max(0.0, 2.0 - 2.0 * cosine(h[i], h[j])))
            for i in np.flatnonzero(s == SEQUENCE)
            for j in np.flatnonzero(t == SEQUENCE)
            if i != j
        ]
        return sum(found) / len(found)

    hinges = [max(0.0, apart(s, s) - apart(s, t) + 1.0) for s in (0, 1, 3) for t in (0, 1, 2, 3) if t != s]
    return sum(hinges) / len(hinges)


def slow_overlap(a: np.ndarray, b: np.ndarray) -> float:
    """The narrower one gets zeros behind it."""
    width = max(a.shape[1], b.shape[1])
    a, b = (np.pad(rows, ((0, 0), (0, width - rows.shape[1]))) for rows in (a, b))
    return sum(abs(cosine(x, y)) for x, y in zip(a, b, strict=True)) / len(a)


@pytest.mark.parametrize("neighbours", [False, True])
def test_cmc_equals_the_slow_loop_over_three_modalities(blank: Model, batch: AlignBatch, neighbours: bool) -> None:
    expected = 0.0
    for (m1, m2), (one, other) in batch.pairs.items():
        u1, u2 = doubles(blank.part(m1).shared(one.view_a_BE), blank.part(m2).shared(other.view_a_BE))
        expected += slow_cross(u1, u2, 0.07, neighbours) / 2
    assert loss_of("cmc", blank, batch, neighbours=neighbours) == {"cross": pytest.approx(expected, rel=1e-4)}


def test_gmc_equals_the_slow_loop_over_three_modalities(blank: Model, batch: AlignBatch) -> None:
    torch.manual_seed(5)
    objective = objective_class("gmc").build(blank, sorted(batch.pairs), {}, generator())
    expected = 0.0
    for (m1, m2), (one, other) in batch.pairs.items():
        joint = objective.joint[f"{m1}|{m2}"](torch.cat([one.view_a_BE, other.view_a_BE], dim=1))
        u1, u2, z = doubles(blank.part(m1).shared(one.view_a_BE), blank.part(m2).shared(other.view_a_BE), joint)
        expected += (slow_nt_xent(u1, z, 0.1) + slow_nt_xent(u2, z, 0.1)) / 2
    assert objective.model_loss(batch, 0.0)[0]["joint"].item() == pytest.approx(expected, rel=1e-4)
    assert len(objective.model_parameters()) == len(list(objective.joint.parameters())) > 0


def test_focal_equals_the_slow_loop_over_three_modalities(blank: Model, batch: AlignBatch) -> None:
    expected = dict.fromkeys(("shared", "private", "orthogonal", "temporal"), 0.0)
    for (m1, m2), (one, other) in batch.pairs.items():
        for e1, e2 in ((one.view_a_BE, other.view_a_BE), (one.view_b_BE, other.view_b_BE)):
            u1, u2 = doubles(blank.part(m1).shared(e1), blank.part(m2).shared(e2))
            v1, v2 = doubles(blank.part(m1).private(e1), blank.part(m2).private(e2))
            expected["shared"] += slow_cross(u1, u2, 0.07) / 4
            expected["orthogonal"] += 3.0 * slow_overlap(v1, v2) / 4
    for name, windows in batch.windows.items():
        views = (windows.view_a_BE, windows.view_b_BE)
        u = doubles(*(blank.part(name).shared(e) for e in views))
        v = doubles(*(blank.part(name).private(e) for e in views))
        expected["private"] += slow_nt_xent(v[0], v[1], 0.07)
        for u_BD, v_BP in zip(u, v, strict=True):
            expected["orthogonal"] += 3.0 * slow_overlap(u_BD, v_BP) / 2
            expected["temporal"] += 5.0 * slow_rank(np.concatenate([u_BD, v_BP], axis=1)) / 2
    assert loss_of("focal", blank, batch) == {key: pytest.approx(v, rel=1e-4) for key, v in expected.items()}


def test_simclr_equals_the_slow_loop_and_sees_no_pair(blank: Model, batch: AlignBatch) -> None:
    model, expected = copy.deepcopy(blank), 0.0
    got = loss_of("simclr", model, AlignBatch({}, batch.windows))
    for name, windows in batch.windows.items():
        part = model.part(name)
        h = [torch.cat([part.shared(e), part.private(e)], dim=1) for e in (windows.view_a_BE, windows.view_b_BE)]
        expected += slow_nt_xent(*doubles(*h), 0.2)
    assert got == {"augmentation": pytest.approx(expected, rel=1e-4)}


def test_moco_equals_the_slow_loop_and_its_teacher_follows(blank: Model, batch: AlignBatch) -> None:
    model, expected = copy.deepcopy(blank), 0.0
    torch.manual_seed(6)
    objective = objective_class("moco").build(model, [], {"momentum": 0.9}, generator())
    before = model.part("a").shared.linear.weight.detach().clone()
    with torch.no_grad():
        model.part("a").shared.linear.weight += 1.0
    got = objective.model_loss(AlignBatch({}, batch.windows), 0.0)[0]["augmentation"]
    slow = objective.teachers["a"][0].linear.weight
    torch.testing.assert_close(slow, before + 0.1)
    for name, windows in batch.windows.items():
        part, views = model.part(name), (windows.view_a_BE, windows.view_b_BE)
        q = doubles(*(objective.predictors[name](torch.cat([part.shared(e), part.private(e)], dim=1)) for e in views))
        k = doubles(*(torch.cat([head(e) for head in objective.teachers[name]], dim=1) for e in views))
        for queries, keys in ((q[0], k[1]), (q[1], k[0])):
            for i in range(8):
                similar = [math.exp(cosine(queries[i], key) / 0.2) for key in keys]
                expected -= 0.4 * math.log(similar[i] / sum(similar)) / 8
    assert got.item() == pytest.approx(expected, rel=1e-4)
    got.backward()
    assert slow.grad is None
    assert len(objective.model_parameters()) == len(list(objective.predictors.parameters())) > 0


def test_tnc_equals_the_slow_loop(blank: Model, batch: AlignBatch) -> None:
    model, expected = copy.deepcopy(blank), 0.0
    torch.manual_seed(7)
    objective = objective_class("tnc").build(model, [], {"weight": 0.2}, generator())
    for name, windows in batch.windows.items():
        judge = objective.neighbourhoods[name]
        first, bias, second, read, threshold = doubles(
            judge.first.weight, judge.first.bias, judge.second.weight, judge.read.weight[0], judge.read.bias[0]
        )
        (h,) = doubles(torch.cat([model.part(name).shared(windows.e_BE), model.part(name).private(windows.e_BE)], 1))
        near, far = [], []
        for i in range(8):
            for j in range(8):
                odds = read @ np.maximum(first @ h[i] + bias + second @ h[j], 0.0) + threshold
                chance = 1.0 / (1.0 + math.exp(-odds))
                if SEQUENCE[i] != SEQUENCE[j]:
                    far.append(-0.2 * math.log(chance) - 0.8 * math.log(1.0 - chance))
                elif i != j:
                    near.append(-math.log(chance))
        expected += sum(near) / len(near) + sum(far) / len(far)
    got = objective.model_loss(AlignBatch({}, batch.windows), 0.0)[0]["neighbourhood"]
    assert got.item() == pytest.approx(expected, rel=1e-4)


def test_orthogonality_at_known_angles() -> None:
    east, north, west = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]]), torch.tensor([[-3.0, 0.0]])
    assert orthogonality(east, north).item() == pytest.approx(0.0, abs=1e-7)
    assert orthogonality(east, west).item() == pytest.approx(1.0)
    assert orthogonality(torch.ones(1, 4), east[:, :1]).item() == pytest.approx(0.5)


def test_temporal_rank_at_known_values_and_without_anything_to_compare() -> None:
    tight = torch.tensor([[1.0, 0.0], [9.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    assert TemporalRank()(tight, torch.tensor([0, 0, 1, 1])).item() == 0.0
    assert TemporalRank()(torch.ones(4, 2), torch.tensor([0, 0, 1, 1])).item() == pytest.approx(1.0)
    lonely = torch.randn(3, 2, requires_grad=True)
    TemporalRank()(lonely, torch.tensor([0, 1, 2])).backward()
    assert lonely.grad is not None
    assert not lonely.grad.any()


def test_temporal_rank_has_the_numeric_gradient() -> None:
    h = torch.randn(6, 3, generator=generator(6), dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: TemporalRank()(x, torch.tensor([0, 0, 1, 1, 2, 2])), (h,))


# What they learn, and what the monitors see.


def same_class_found(model: Model, unseen: TrainSet) -> float:
    """Share of windows whose nearest window of the next sensor, by cosine of u, is of the same class; worst pair."""
    truth = unseen.modalities["a"].label_B
    shares = []
    for m1, m2 in combinations("abc", 2):
        u = [model.shared(name, unseen.modalities[name].x_BCN) for name in (m1, m2)]
        a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in u)
        shares.append(float((truth[(a @ b.T).argmax(axis=1)] == truth).mean()))
    return min(shares)


@pytest.mark.parametrize("name", PAIRED)
def test_the_planted_relation_of_three_sensors_is_found_on_unseen_people(
    name: str, train: TrainSet, stage_one: Model
) -> None:
    model, unseen = copy.deepcopy(stage_one), three(people=2, seed=9, first_person=50)
    before = same_class_found(model, unseen)
    report = align(model, train, small_config(objective=name, start="random", steps=30, head_rate=1e-2), silent)
    assert before < 0.45
    assert same_class_found(model, unseen) > 0.7
    assert report.monitors.warnings == []
    for pair, gap in report.monitors.cosine_pairs.items():
        assert gap > report.monitors.cosine_shuffled[pair] + 0.3, pair


@pytest.mark.parametrize("name", PAIRED)
def test_shuffled_pairs_are_seen_to_share_nothing(name: str, train: TrainSet, stage_one: Model) -> None:
    shuffled = np.random.default_rng(0).permutation(train.pairs[("a", "b")][:, 1])
    index = np.stack([train.pairs[("a", "b")][:, 0], shuffled], axis=1)
    wrong = TrainSet(train.modalities, {("a", "b"): index}, train.classes)
    config = small_config(objective=name, start="random", steps=10)
    warnings = align(copy.deepcopy(stage_one), wrong, config, silent).monitors.warnings
    assert any(warning.startswith("a|b") for warning in warnings)


@pytest.mark.parametrize("name", [*PAIRED, "simclr", "moco"])
def test_shrinking_norms_which_no_cosine_feels_are_seen(name: str, train: TrainSet, stage_one: Model) -> None:
    config = small_config(objective=name, start="random", steps=30, head_rate=2e-2, weight_decay=45.0)
    warnings = align(copy.deepcopy(stage_one), train, config, silent).monitors.warnings
    assert {warning.split(":")[0] for warning in warnings if "norms shrink" in warning} >= {"a.u", "b.u", "c.u"}


def test_tnc_that_keeps_few_directions_is_seen(train: TrainSet, stage_one: Model) -> None:
    """Few directions are enough to tell recordings apart; a strong decay takes the others."""
    config = small_config(objective="tnc", steps=40, head_rate=2e-2, weight_decay=20.0)
    warnings = align(copy.deepcopy(stage_one), train, config, silent).monitors.warnings
    assert {warning.split(":")[0] for warning in warnings if "collapse to few" in warning} >= {"a.u", "b.u", "c.u"}


@pytest.mark.parametrize("name", UNPAIRED)
def test_a_control_learns_nothing_from_pairs_not_even_by_its_start(
    name: str, train: TrainSet, stage_one: Model
) -> None:
    rolled = {names: np.stack([index[:, 0], np.roll(index[:, 1], 17)], 1) for names, index in train.pairs.items()}
    unseen, states = three(people=2, seed=9, first_person=50), []
    for pairs in (train.pairs, rolled):
        model = copy.deepcopy(stage_one)
        config = small_config(objective=name, start="ridge", steps=5)
        align(model, TrainSet(train.modalities, pairs, train.classes), config, silent)
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert same_class_found(model, unseen) < 0.45


def test_concat_gives_the_leading_directions_of_stage_one_and_no_step_moves_them(
    train: TrainSet, stage_one: Model
) -> None:
    model, x = copy.deepcopy(stage_one), train.modalities["b"].x_BCN
    sizes = {"pair_batch": 8, "window_batch": 8}
    config = small_config(objective="concat", steps=1, weight_decay=1.0, encoder_rate=0.1, **sizes)
    report = align(model, train, config, silent)
    e = stage_one.embed("b", x)
    np.testing.assert_array_equal(model.embed("b", x), e)
    np.testing.assert_allclose(model.shared("b", x), e[:, :8], atol=1e-6)
    private = model.part("b").private(torch.from_numpy(e)).detach().numpy()
    np.testing.assert_allclose(private, e[:, 8:16], atol=1e-6)
    assert report.losses == {"none": 0.0}


@pytest.mark.parametrize("name", ["simclr", "moco"])
def test_views_of_unseen_windows_are_told_apart_better_than_at_the_start(
    name: str, train: TrainSet, stage_one: Model
) -> None:
    unseen = three(people=2, seed=9, first_person=50)

    def contrast(model: Model) -> float:
        part, x, draws = model.part("b"), model.spectrograms("b", unseen.modalities["b"].x_BCN), generator(8)
        with torch.no_grad():
            e = [part.embed(augment(x, small_config().align.augmentations, draws, probability=0.9)) for _ in range(2)]
            return NtXent(0.2)(*(torch.cat([part.shared(view), part.private(view)], dim=1) for view in e)).item()

    before, after = (contrast(model) for model in start_and_end(name, train, stage_one))
    assert after < before - 0.06, (before, after)


def test_tnc_draws_unseen_recordings_together(train: TrainSet, stage_one: Model) -> None:
    windows = three(people=2, seed=9, first_person=50).modalities["b"]
    same = windows.sequence_B[:, None] == windows.sequence_B[None, :]

    def tightness(model: Model) -> float:
        part = model.part("b")
        with torch.no_grad():
            e = part.embed(model.spectrograms("b", windows.x_BCN))
            h = torch.nn.functional.normalize(torch.cat([part.shared(e), part.private(e)], dim=1), dim=1)
        cosine_BB = (h @ h.T).numpy()
        return float(cosine_BB[same & ~np.eye(len(h), dtype=bool)].mean() - cosine_BB[~same].mean())

    before, after = (tightness(model) for model in start_and_end("tnc", train, stage_one))
    assert after > before + 0.1, (before, after)


def start_and_end(name: str, train: TrainSet, stage_one: Model) -> tuple[Model, Model]:
    """The start that all objectives without pairs have in common, and what `name` made of it."""
    plain, model = copy.deepcopy(stage_one), copy.deepcopy(stage_one)
    start_from_principal(plain)
    align(model, train, small_config(objective=name, steps=50, head_rate=5e-3), silent)
    return plain, model


@pytest.mark.parametrize("name", [*PAIRED, *UNPAIRED])
def test_an_unknown_option_is_refused_with_its_path(name: str, blank: Model) -> None:
    with pytest.raises(ConfigError, match=r"align\.options\.heat"):
        objective_class(name).build(copy.deepcopy(blank), [("a", "b")], {"heat": 1.0}, generator())
