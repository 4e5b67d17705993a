"""What benchmarks/detect.py compares: the reference's two-sided, padded layout against ours, on the same windows."""

import numpy as np
import torch

from aligner.config import TrainConfig
from benchmarks import detect_models as models


def test_the_two_sided_spectrum_is_the_whole_fourier_transform() -> None:
    rng = np.random.default_rng(0)
    for samples in (8, 9):
        x_BCTN = rng.normal(size=(2, 3, 4, samples))
        one, whole = np.fft.rfft(x_BCTN), np.fft.fft(x_BCTN)
        x_BKTF = np.concatenate([one.real, one.imag], axis=1).astype(np.float32)
        want = np.concatenate([whole.real, whole.imag], axis=1)
        np.testing.assert_allclose(models.two_sided(x_BKTF, samples), want, atol=1e-5)


def test_the_reference_has_twice_the_tokens_and_padding_and_tells_the_same_classes() -> None:
    torch.set_num_threads(1)
    config = TrainConfig.model_validate({"preset": "har"})
    data = models.draw("har", 2, 0)
    reference, ours = (models.untrained(kind, data, config).eval() for kind in ("reference", "ours"))
    for name in data.windows:
        assert reference.parts[name].encoder.grid == (12, 36)
        assert ours.parts[name].encoder.grid == (9, 13)
    x = models.all_inputs(reference, data)["light"]
    assert not x[:, :, 9:].any() and not x[:, :, :, 50:].any() and x[:, :, :9, 49].all()
    with torch.no_grad():
        for model in (reference, ours):
            assert models.logits(model, models.all_inputs(model, data)).shape == (2, 8)


def test_har_has_four_sensors() -> None:
    data = models.draw("har", 2, 0)
    assert {name: w.x_BCN.shape for name, w in data.windows.items()} == {
        "accelerometer": (2, 3, 250),
        "gyroscope": (2, 3, 250),
        "light": (2, 1, 250),
        "magnetometer": (2, 3, 250),
    }
