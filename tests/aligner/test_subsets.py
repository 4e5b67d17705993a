from __future__ import annotations

import numpy as np
import pytest
import torch

from aligner.config import FrontEndConfig, TrainConfig
from aligner.evaluation import macro_f1
from aligner.model import Model
from aligner.subsets import Instants, score_subsets
from aligner.train import front_end_for
from aligner.trainset import ModalityWindows, TrainSet

NAMES = ("chest_imu", "phone_imu", "watch_imu")
CLASSES = ("rest", "walk", "run")
TINY = {"encoder": {"width": 16, "depths": [1, 1], "heads": 2}, "align": {"shared_width": 8, "private_width": 8}}
ROWS = 12


def windows(name: str, label_B: np.ndarray) -> ModalityWindows:
    rows = np.arange(len(label_B))
    x_BCN = np.random.default_rng(len(name)).normal(0, 1, (len(rows), 6, 200)).astype(np.float32)
    return ModalityWindows(name, 100.0, x_BCN, rows, np.full(len(rows), "s10"), rows * 0, label_B)


@pytest.fixture
def held_out() -> TrainSet:
    """Chest and phone meet in rows 0-9, chest and watch in 2-11 (the watch's rows run backwards); labels on two."""
    labels = np.arange(ROWS) % 3
    phone, watch = labels.copy(), np.full(ROWS, -1)
    phone[[4, 5]] = -1
    watch[ROWS - 1 - 5] = 2
    return TrainSet(
        {
            "chest_imu": windows(NAMES[0], watch * 0 - 1),
            "phone_imu": windows(NAMES[1], phone),
            "watch_imu": windows(NAMES[2], watch),
        },
        {
            ("chest_imu", "phone_imu"): np.array([[row, row] for row in range(10)]),
            ("watch_imu", "chest_imu"): np.array([[ROWS - 1 - row, row] for row in range(2, 12)]),
        },
        CLASSES,
    )


@pytest.fixture
def model(held_out: TrainSet) -> Model:
    torch.manual_seed(0)
    fronts = {name: front_end_for(w, FrontEndConfig()) for name, w in held_out.modalities.items()}
    made = Model(fronts, CLASSES, TrainConfig.model_validate(TINY)).eval()
    for name in fronts:  # as if it had been fitted: untrained it is zero
        torch.nn.init.normal_(made.part(name).compress.weight)
    return made


def test_an_instant_is_where_every_modality_has_a_window_and_one_has_a_label(held_out: TrainSet) -> None:
    instants = Instants.of(held_out, NAMES)
    assert instants.rows["chest_imu"].tolist() == [2, 3, 5, 6, 7, 8, 9]  # 4 has no label in any of them
    assert instants.rows["phone_imu"].tolist() == [2, 3, 5, 6, 7, 8, 9]
    assert instants.rows["watch_imu"].tolist() == [9, 8, 6, 5, 4, 3, 2]
    assert instants.label_B.tolist() == [2, 0, 2, 0, 1, 2, 0]


def test_every_subset_is_scored_on_the_same_instants(model: Model, held_out: TrainSet) -> None:
    instants = Instants.of(held_out, NAMES)
    found = score_subsets(model, held_out)
    assert len({row["macro_f1"] for row in found}) > 3
    assert [len(row["modalities"]) for row in found] == [3, 2, 2, 2, 1, 1, 1]
    assert len({tuple(row["modalities"]) for row in found}) == 7
    for row in found:
        x = {name: held_out.modalities[name].x_BCN[instants.rows[name]] for name in row["modalities"]}
        predicted = model.scores(x).argmax(axis=1).astype(np.int64)
        assert row["macro_f1"] == macro_f1(instants.label_B, predicted, len(CLASSES))
        assert row["windows"] == 7


def test_without_pairs_nothing_is_measured(model: Model, held_out: TrainSet) -> None:
    assert score_subsets(model, TrainSet(held_out.modalities, {}, CLASSES)) == []
