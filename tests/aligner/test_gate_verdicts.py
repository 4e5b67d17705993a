from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aligner.align import AlignmentReport
from aligner.config import FrontEndConfig, TrainConfig
from aligner.evaluation import Score, macro_f1
from aligner.export import export_int8, export_model, outputs
from aligner.gates import GATES, Candidate, Verdict, judge_all
from aligner.model import Model
from aligner.monitors import Monitors
from aligner.subsets import predict
from aligner.train import Evaluation, front_end_for
from aligner.trainset import ModalityWindows, TrainSet
from infomae_stream.hub_config import GateSettings

SETTINGS = GateSettings(min_gain_over_unaligned=0.05, min_gain_over_serving=0.0, min_effective_rank=2.0)
TINY = {"encoder": {"width": 16, "depths": [1, 1], "heads": 2}, "align": {"shared_width": 8, "private_width": 8}}


def score(macro_f1: float) -> Score:
    return Score(macro_f1, macro_f1 - 0.1, macro_f1 + 0.1, {}, 20)


@pytest.fixture(scope="module")
def candidate(tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    config = TrainConfig.model_validate(TINY)
    windows = {
        name: ModalityWindows(
            name,
            100.0,
            rng.normal(0, 1, (20, 6, 200)).astype(np.float32),
            np.arange(20),
            np.full(20, "s10"),
            np.zeros(20, np.int64),
            np.arange(20) % 2,
        )
        for name in ("phone_imu", "watch_imu")
    }
    fronts = {name: front_end_for(w, FrontEndConfig()) for name, w in windows.items()}
    model = Model(fronts, ("rest", "walk"), config).eval()
    for name in fronts:  # as if it had been fitted: untrained it is zero
        torch.nn.init.normal_(model.part(name).compress.weight)
    monitors = Monitors({"phone_imu.u": 4.0, "watch_imu.u": 3.0, "watch_imu.v": 1.0}, {}, {}, {})
    report = AlignmentReport("infomae", 100, 500, 1.0, {"shared": 0.5}, monitors)
    evaluation = Evaluation("phone_imu", "watch_imu", score(0.2), score(0.6), score(0.7), score(0.7), {}, ("s10",))
    graphs = export_model(model, tmp_path_factory.mktemp("graphs"))
    validation = TrainSet(windows, {}, ("rest", "walk"))
    return Candidate(model, report, graphs, validation, evaluation, None)


def verdicts(candidate: Candidate) -> dict[str, Verdict]:
    return {v.gate: v for v in judge_all(candidate, SETTINGS)}


def failed(candidate: Candidate) -> set[str]:
    return {name for name, v in verdicts(candidate).items() if not v.passed}


def test_a_good_first_candidate_passes_every_gate(candidate: Candidate) -> None:
    found = verdicts(candidate)
    assert list(found) == list(GATES) and failed(candidate) == set()
    assert found["better_than_unaligned"].value == pytest.approx(0.4)
    assert found["better_than_serving"].reason == "nothing serves yet"
    assert found["not_collapsed"].value == 3.0  # the worst U; V may be what it likes
    assert found["onnx_agreement"].value <= found["onnx_agreement"].limit == 1e-4


def test_one_weight_that_is_no_number_fails(candidate: Candidate) -> None:
    weight = candidate.model.head.bias
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[0] = float("nan")
    try:
        assert "finite" in failed(candidate)
        assert verdicts(candidate)["finite"].value == 1
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_a_loss_that_is_no_number_fails(candidate: Candidate) -> None:
    report = replace(candidate.report, losses={"shared": float("nan")})
    assert failed(replace(candidate, report=report)) == {"finite"}


@pytest.mark.parametrize("ranks", [{"a.u": 1.9, "b.u": 8.0}, {"a.u": float("nan")}, {}])
def test_a_collapsed_modality_fails(candidate: Candidate, ranks: dict[str, float]) -> None:
    monitors = replace(candidate.report.monitors, effective_rank=ranks)
    assert failed(replace(candidate, report=replace(candidate.report, monitors=monitors))) == {"not_collapsed"}


@pytest.mark.parametrize(("after", "passes"), [(0.26, True), (0.24, False), (0.1, False), (float("nan"), False)])
def test_alignment_must_gain_over_unaligned(candidate: Candidate, after: float, passes: bool) -> None:
    changed = replace(candidate, evaluation=replace(candidate.evaluation, after=score(after)))
    assert verdicts(changed)["better_than_unaligned"].passed is passes


@pytest.mark.parametrize(("serving", "passes"), [(0.59, True), (0.6, False), (0.61, False)])
def test_a_later_candidate_must_beat_what_serves_equal_is_not_better(
    candidate: Candidate, serving: float, passes: bool
) -> None:
    verdict = verdicts(replace(candidate, serving_macro_f1=serving))["better_than_serving"]
    assert verdict.passed is passes and verdict.limit == serving


def test_a_graph_of_other_weights_fails(candidate: Candidate) -> None:
    with torch.no_grad():
        candidate.model.head.bias.add_(1e-3)
    try:
        assert failed(candidate) == {"onnx_agreement"}
    finally:
        with torch.no_grad():
            candidate.model.head.bias.sub_(1e-3)


def test_gates_see_the_validation_set_only(candidate: Candidate) -> None:
    assert not any("test" in name for name in Candidate.__dataclass_fields__)


@pytest.fixture
def sure(candidate: Candidate) -> Candidate:
    """The candidate with its own predictions for truth: fp32 scores 1, and every difference costs."""
    model = candidate.model
    windows = {
        name: replace(w, label_B=model.scores({name: w.x_BCN}).argmax(axis=1).astype(np.int64))
        for name, w in candidate.validation.modalities.items()
    }
    assert all(len(np.unique(w.label_B)) == 2 for w in windows.values())
    return replace(candidate, validation=TrainSet(windows, {}, model.classes))


def int8_verdict(candidate: Candidate, **int8: Path) -> Verdict:
    return verdicts(replace(candidate, int8=int8))["int8_accuracy"]


def test_int8_that_costs_nothing_goes_into_the_bundle(sure: Candidate) -> None:
    graphs = {name: path for name, path in sure.graphs.items() if name != "head"}
    verdict = int8_verdict(sure, **graphs)  # fp32 in the place of int8: not a window differs
    assert (verdict.passed, verdict.value, verdict.leaves_out) == (True, 0.0, ())


def test_int8_that_costs_too_much_stays_out_and_the_candidate_passes(sure: Candidate) -> None:
    swapped = {"phone_imu": sure.graphs["watch_imu"], "watch_imu": sure.graphs["watch_imu"]}
    windows = sure.validation.modalities["phone_imu"]
    u_BD = outputs(swapped["phone_imu"], sure.model.spectrograms("phone_imu", windows.x_BCN).numpy())
    cost = 1 - macro_f1(windows.label_B, predict(sure.model, u_BD), 2)
    verdict = int8_verdict(sure, **swapped)
    assert verdict.value == pytest.approx(cost) and cost > 0.005
    assert verdict.passed and verdict.leaves_out == ("int8",) and "phone_imu, so it is left out" in verdict.reason


def test_int8_that_nobody_could_measure_stays_out(candidate: Candidate, sure: Candidate) -> None:
    assert int8_verdict(sure).leaves_out == ("int8",)
    unlabelled = {n: replace(w, label_B=np.full(len(w), -1)) for n, w in sure.validation.modalities.items()}
    blind = replace(sure, validation=TrainSet(unlabelled, {}, sure.model.classes))
    assert int8_verdict(blind, phone_imu=sure.graphs["phone_imu"]).leaves_out == ("int8",)


def test_the_int8_twins_of_a_model_are_near_it(sure: Candidate, tmp_path: Path) -> None:
    graphs = {name: tmp_path / path.name for name, path in sure.graphs.items()}
    for name, path in graphs.items():
        path.write_bytes(sure.graphs[name].read_bytes())
    int8 = export_int8(graphs)
    assert set(int8) == {"phone_imu", "watch_imu"}
    for name, path in int8.items():
        x_BKTF = sure.model.spectrograms(name, sure.validation.modalities[name].x_BCN).numpy()
        u_BD, twin_BD = outputs(graphs[name], x_BKTF), outputs(path, x_BKTF)
        assert 0 < np.abs(u_BD - twin_BD).max() < 0.1 * np.abs(u_BD).max()
        assert path.stat().st_size < graphs[name].stat().st_size
