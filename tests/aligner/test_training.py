"""Training on planted data: the relation is found, collapse is seen, the same seed gives the same loss."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aligner.align import AlignmentReport
from aligner.config import TrainConfig
from aligner.export import disagreement, export_model
from aligner.model import Model
from aligner.pretrain import pretrain_modality
from aligner.progress import silent
from aligner.train import align_and_fit, evaluate, pretrain_all
from aligner.trainset import TrainSet
from infomae_stream.config import validate
from infomae_stream.errors import ConfigError, DataError, InfomaeError
from tests.aligner.laws import planted, small_config, with_labels


@pytest.fixture(scope="module")
def train() -> TrainSet:
    return planted()


@pytest.fixture(scope="module")
def stage_one(train: TrainSet) -> Model:
    return pretrain_all(train, small_config(), silent)


@pytest.fixture(scope="module")
def aligned(train: TrainSet, stage_one: Model) -> tuple[Model, AlignmentReport]:
    return align_and_fit(stage_one, train, small_config(), silent)


def truth(windows: TrainSet) -> np.ndarray:
    return windows.modalities["a"].label_B


def test_masked_pretraining_learns_what_is_predictable(train: TrainSet, stage_one: Model) -> None:
    config = small_config()
    x = stage_one.spectrograms("a", train.modalities["a"].x_BCN)
    config = config.model_copy(update={"pretrain": config.pretrain.model_copy(update={"epochs": 10})})
    torch.manual_seed(0)
    losses = pretrain_modality(Model(stage_one.front_ends, train.classes, config).part("a"), x, config, silent, "a")
    assert losses[-1] < 0.75 * losses[0]


def test_alignment_lets_a_head_read_the_modality_that_never_had_a_label(
    train: TrainSet, aligned: tuple[Model, AlignmentReport]
) -> None:
    unseen = planted(people=2, seed=9, first_person=50)
    held_out = with_labels(unseen, "b", truth(unseen))
    result = evaluate(aligned[0], train, held_out, {"b": truth(train)})
    assert (result.source, result.target) == ("a", "b")
    assert result.after.macro_f1 > 0.85
    assert result.unimodal.macro_f1 > 0.85
    assert result.multimodal is not None
    assert result.multimodal.macro_f1 > 0.85
    assert set(result.baselines) == {"pseudolabel", "ridge_map", "own_labels"}
    assert min(score.macro_f1 for score in result.baselines.values()) > 0.7
    assert result.people == ("p50", "p51")
    assert result.after.low <= result.after.macro_f1 <= result.after.high


def test_shuffled_pairs_teach_nothing(train: TrainSet, stage_one: Model) -> None:
    index = train.pairs[("a", "b")].copy()
    index[:, 1] = np.random.default_rng(0).permutation(index[:, 1])
    wrong = TrainSet(train.modalities, {("a", "b"): index}, train.classes)
    model, _ = align_and_fit(stage_one, wrong, small_config(), silent)
    unseen = planted(people=2, seed=9, first_person=50)
    assert evaluate(model, wrong, with_labels(unseen, "b", truth(unseen))).after.macro_f1 < 0.6


def test_the_report_counts_and_finds_nothing_wrong(aligned: tuple[Model, AlignmentReport]) -> None:
    report = aligned[1]
    assert (report.objective, report.pairs, report.unpaired_windows) == ("infomae", 120, 0)
    assert report.monitors.warnings == []
    assert report.monitors.skipped_steps == 0
    assert all(np.isfinite(value) for value in report.losses.values())
    expected = {
        "shared",
        "private",
        "distance",
        "augmentation",
        "temporal",
        "reconstruction",
        "variance",
        "decorrelation",
    }
    assert expected <= set(report.losses)
    assert {"critic_a1", "critic_b12", "a_minus_b1"} <= set(report.monitors.critics)
    assert report.monitors.cosine_pairs["a|b"] > report.monitors.cosine_shuffled["a|b"] + 0.3


def test_a_planted_collapse_is_seen(train: TrainSet, stage_one: Model) -> None:
    weights = {"alpha": 1000.0, "variance": 0.0, "decorrelation": 0.0, "shared": 0.0, "augmentation": 0.0}
    weights |= {"reconstruction": 0.0, "temporal": 0.0, "gamma": 0.0, "epsilon": 0.0, "cross": 0.0}
    config = small_config(options=weights, steps=300, head_rate=1e-2, start="random", critic_warm_up=0)
    _, report = align_and_fit(stage_one, train, config, silent)
    assert any(".u" in warning for warning in report.monitors.warnings)


def test_same_seed_same_loss_and_another_seed_another(train: TrainSet, stage_one: Model) -> None:
    config = small_config(steps=10, critic_warm_up=2)
    first = align_and_fit(stage_one, train, config, silent)
    again = align_and_fit(stage_one, train, config, silent)
    assert first[1].losses == again[1].losses
    for name, tensor in first[0].state_dict().items():
        assert torch.equal(tensor, again[0].state_dict()[name]), name
    other = align_and_fit(stage_one, train, config.model_copy(update={"seed": 7}), silent)
    assert other[1].losses != first[1].losses


def test_pretraining_is_a_function_of_its_seed(train: TrainSet, stage_one: Model) -> None:
    again = pretrain_all(train, small_config(), silent)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in stage_one.state_dict().items())


def test_stage_two_leaves_the_stage_one_model_as_it_was(train: TrainSet, stage_one: Model) -> None:
    before = {name: tensor.clone() for name, tensor in stage_one.state_dict().items()}
    align_and_fit(stage_one, train, small_config(steps=4, encoder_rate=1e-4), silent)
    assert all(torch.equal(tensor, before[name]) for name, tensor in stage_one.state_dict().items())


def test_encoders_learn_only_when_they_are_given_a_rate(train: TrainSet, stage_one: Model) -> None:
    for rate, moves in ((0.0, False), (1e-4, True)):
        model, _ = align_and_fit(stage_one, train, small_config(steps=4, critic_warm_up=1, encoder_rate=rate), silent)
        same = torch.equal(model.part("a").encoder.mask_token, stage_one.part("a").encoder.mask_token)
        weights = [p.part("a").encoder.embed.project.weight for p in (model, stage_one)]
        assert torch.equal(*weights) != moves
        assert same or moves


def test_target_labels_cannot_reach_training(train: TrainSet, stage_one: Model, aligned: tuple[Model, object]) -> None:
    """The head learns from the labelled modality; labels of held-out truth enter by `oracle_labels` only."""
    unseen = planted(people=1, seed=9, first_person=50)
    held_out = with_labels(unseen, "b", truth(unseen))
    without = evaluate(aligned[0], train, held_out)
    assert "own_labels" not in without.baselines
    nonsense = {"b": np.roll(truth(train), 7)}
    assert evaluate(aligned[0], train, held_out, nonsense).after == without.after


def test_a_model_survives_saving(aligned: tuple[Model, object], train: TrainSet, tmp_path: Path) -> None:
    model = aligned[0]
    model.save(tmp_path / "model.pt")
    again = Model.load(tmp_path / "model.pt")
    x = {name: train.modalities[name].x_BCN[:9] for name in ("a", "b")}
    np.testing.assert_array_equal(again.scores(x), model.scores(x))
    record = torch.load(tmp_path / "model.pt", weights_only=True)
    torch.save({**record, "state": {}}, tmp_path / "broken.pt")
    with pytest.raises(DataError, match="not a model"):
        Model.load(tmp_path / "broken.pt")


def test_onnx_agrees_with_torch_on_real_windows(aligned: tuple[Model, object], train: TrainSet, tmp_path: Path) -> None:
    model = aligned[0]
    written = export_model(model, tmp_path)
    assert set(written) == {"a", "b", "head"}
    for name in ("a", "b"):
        x = list(model.spectrograms(name, train.modalities[name].x_BCN[:20]).split(1))
        assert disagreement(model.part(name), written[name], x) < 1e-4
    changed = copy.deepcopy(model.part("a"))
    with torch.no_grad():
        changed.shared.linear.bias.add_(1.0)
    worst = disagreement(changed, written["a"], [torch.zeros(1, *model.front_ends["a"].shape_KTF)])
    assert worst == pytest.approx(1.0, abs=1e-3)
    assert np.isnan(disagreement(changed, written["a"], [torch.full((1, *model.front_ends["a"].shape_KTF), torch.nan)]))


def test_what_cannot_be_trained_is_refused_with_a_reason(train: TrainSet, stage_one: Model) -> None:
    no_pairs = planted(paired=False)
    with pytest.raises(DataError, match="no pairs"):
        align_and_fit(stage_one, no_pairs, small_config(), silent)
    unlabelled = {n: replace(w, label_B=np.full(len(w), -1)) for n, w in train.modalities.items()}
    with pytest.raises(DataError, match="import labels"):
        align_and_fit(stage_one, TrainSet(unlabelled, train.pairs, train.classes), small_config(steps=1), silent)
    with pytest.raises(DataError, match="in training and held-out set"):
        evaluate(stage_one, train, with_labels(train, "b", truth(train)))
    with pytest.raises(ConfigError, match="did you mean 'infomae'"):
        align_and_fit(stage_one, train, small_config(objective="infomea"), silent)
    with pytest.raises(ConfigError, match=r"align.options.beat.*did you mean 'beta'"):
        align_and_fit(stage_one, train, small_config(options={"beat": 0.1}), silent)
    with pytest.raises(InfomaeError, match="unknown key"):
        validate({"sead": 1}, TrainConfig, where="test")
    with pytest.raises(DataError, match="pair index"):
        TrainSet(train.modalities, {("a", "b"): np.array([[0, 999]])}, train.classes)
