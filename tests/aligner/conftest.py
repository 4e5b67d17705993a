from __future__ import annotations

from pathlib import Path

import pytest

from aligner.model import Model
from aligner.progress import silent
from aligner.train import pretrain_all
from aligner.trainset import TrainSet
from infomae_stream.clock import ManualClock
from storage.lake import Lake
from tests.aligner.laws import planted, small_config


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake", ManualClock())


@pytest.fixture(scope="module")
def train() -> TrainSet:
    return planted()


@pytest.fixture(scope="module")
def stage_one(train: TrainSet) -> Model:
    return pretrain_all(train, small_config(), silent)
