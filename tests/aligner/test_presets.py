"""The presets: sizes as the paper tells them, one-sided spectra, and what is set beside a preset wins."""

import numpy as np
import pytest
import torch

from aligner.config import TrainConfig
from aligner.encoders.swin import SwinEncoder
from aligner.model import Model
from aligner.train import front_end_for
from aligner.trainset import ModalityWindows
from infomae_stream.config import validate
from infomae_stream.errors import ConfigError


def windows(channels: int, rate_hz: float, window_s: float) -> ModalityWindows:
    x_BCN = np.random.default_rng(0).normal(size=(4, channels, round(rate_hz * window_s))).astype(np.float32)
    rows = np.arange(4)
    return ModalityWindows("m", rate_hz, x_BCN, rows, np.array(["a"] * 4), rows, rows)


def parameters(shape_KTF: tuple[int, int, int], config: TrainConfig, modality: str) -> float:
    """Millions, with the map from the tokens to the feature."""
    encoder = SwinEncoder(shape_KTF, config.encoder.of(modality))
    feature = encoder.embedding_width * config.encoder.embedding_width
    return (sum(p.numel() for p in encoder.parameters()) + feature) / 1e6


def test_mod_has_the_papers_size_in_the_papers_layout() -> None:
    # Two-sided, and padded until windows and mergings fit: 12 x 48 and 12 x 24 patches.
    config = TrainConfig(preset="mod")
    assert parameters((2, 12, 48 * 40), config, "acoustic") == pytest.approx(6.22, rel=0.01)
    assert parameters((2, 12, 24), config, "seismic") == pytest.approx(5.02, rel=0.01)


def test_har_has_the_papers_size_in_the_papers_layout() -> None:
    config = TrainConfig(preset="har")
    three, light = (parameters((channels, 12, 72), config, "x") for channels in (6, 2))
    assert 4.0 < 3 * three + light < 4.67  # which is the whole model: heads and all


@pytest.mark.parametrize(
    ("preset", "modality", "channels", "rate_hz", "shape_KTF", "grid"),
    [
        ("mod", "acoustic", 1, 8000.0, (2, 10, 800), (10, 20)),
        ("mod", "seismic", 1, 100.0, (2, 10, 11), (10, 11)),
        ("har", "accelerometer", 3, 50.0, (6, 9, 26), (9, 13)),
        ("har", "light", 1, 50.0, (2, 9, 26), (9, 13)),
    ],
)
def test_the_spectrum_is_one_sided(
    preset: str, modality: str, channels: int, rate_hz: float, shape_KTF: tuple[int, int, int], grid: tuple[int, int]
) -> None:
    config = TrainConfig.model_validate({"preset": preset})
    front_end = front_end_for(windows(channels, rate_hz, config.front_end.window_s), config.front_end)
    model = Model({modality: front_end}, ("a", "b"), config).eval()
    assert model.part(modality).encoder.shape_KTF == shape_KTF
    assert model.part(modality).encoder.grid == grid
    with torch.no_grad():
        assert model.part(modality)(torch.zeros(1, *shape_KTF)).shape == (1, config.align.shared_width)


def test_what_is_set_beside_a_preset_wins() -> None:
    table = {"preset": "mod", "encoder": {"width": 32}, "front_end": {"window_s": 4.0}}
    config = validate(table, TrainConfig, where="test")
    assert (config.encoder.width, config.encoder.depths, config.front_end.window_s) == (32, (2, 2, 4), 4.0)
    again = validate(config.model_dump(mode="json"), TrainConfig, where="test")
    assert again == config
    assert TrainConfig(preset="small") == TrainConfig()


@pytest.mark.parametrize("preset", ["large", ["mod"], 3])
def test_an_unknown_preset_is_refused(preset: object) -> None:
    with pytest.raises(ConfigError, match="preset"):
        validate({"preset": preset}, TrainConfig, where="test")
