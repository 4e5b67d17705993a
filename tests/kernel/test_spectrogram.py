"""The signal front end: shapes, units, invariances, and refusal of what is wrong."""

import json

import numpy as np
import pytest

from infomae_stream.errors import ConfigError, DataError
from infomae_stream.spectrogram import FrontEnd, SpectrogramSpec, gravity_frame, spectrogram

SPEC = SpectrogramSpec(rate_hz=100.0, window_s=2.0, interval_s=0.4, interval_hop_s=0.2, channels=2)
IMU = SpectrogramSpec(rate_hz=100.0, window_s=2.0, interval_s=0.4, interval_hop_s=0.2, channels=6, max_hz=17.5)


def windows(channels: int, count: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, channels, 200)).astype(np.float32)


def test_intervals_and_bins_follow_from_the_lengths() -> None:
    assert (SPEC.n_intervals, SPEC.n_bins) == (9, 21)
    assert IMU.n_bins == 7
    acoustic = SpectrogramSpec(rate_hz=8000.0, window_s=2.0, interval_s=0.2, interval_hop_s=0.2, channels=1)
    assert (acoustic.n_intervals, acoustic.n_bins) == (10, 801)


def test_equals_the_slow_form_sample_by_sample() -> None:
    x = windows(2, count=2)
    got = spectrogram(x, SPEC)
    assert got.shape == (2, 4, 9, 21)
    assert got.dtype == np.float32
    for t in range(9):
        piece = x[:, :, t * 20 : t * 20 + 40].astype(np.float64)
        for f in range(21):
            wave = np.exp(-2j * np.pi * f * np.arange(40) / 40)
            slow = (piece * wave).sum(axis=2) / 40
            np.testing.assert_allclose(got[:, :2, t, f], slow.real, atol=1e-5)
            np.testing.assert_allclose(got[:, 2:, t, f], slow.imag, atol=1e-5)


def test_a_tone_lands_in_its_bin_with_half_its_amplitude() -> None:
    time = np.arange(200) / 100.0
    x = np.stack([3.0 * np.cos(2 * np.pi * 10.0 * time), np.full(200, 7.0)])[None].astype(np.float32)
    got = spectrogram(x, SPEC)
    magnitude = np.hypot(got[0, :2], got[0, 2:])
    np.testing.assert_allclose(magnitude[0, :, 4], 1.5, atol=1e-4)
    np.testing.assert_allclose(magnitude[1, :, 0], 7.0, atol=1e-4)
    assert magnitude[0, :, [0, 1, 2, 6]].max() < 1e-3


def test_gravity_frame_does_not_change_when_the_device_is_turned() -> None:
    x = windows(6)
    x[:, 2] += 9.81
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    turned = np.concatenate([np.einsum("ij,bjn->bin", turn, x[:, i : i + 3]) for i in (0, 3)], axis=1)
    np.testing.assert_allclose(gravity_frame(turned.astype(np.float32)), gravity_frame(x), atol=1e-4)


@pytest.mark.parametrize("content", ["complex", "magnitude"])
@pytest.mark.parametrize("orientation", ["none", "gravity", "gravity_only"])
def test_front_end_survives_json_bit_for_bit(orientation: str, content: str) -> None:
    x = windows(6)
    front = FrontEnd.fit(x, IMU, orientation=orientation, content=content)
    again = FrontEnd.from_dict(json.loads(json.dumps(front.to_dict())))
    assert front(x).shape == (8, *front.shape_KTF)
    np.testing.assert_array_equal(again(x), front(x))


def test_normalised_input_has_median_zero_and_about_unit_spread_in_any_unit() -> None:
    x = windows(6, count=64)
    front = FrontEnd.fit(x, IMU)
    np.testing.assert_allclose(np.median(front(x), axis=(0, 2))[:, 1:6], 0.0, atol=1e-3)
    assert 0.5 < front(x)[..., 1:].std() < 1.5
    milli = FrontEnd.fit(1000.0 * x, IMU)
    np.testing.assert_allclose(milli(1000.0 * x), front(x), atol=1e-3)


def test_an_outlier_is_clipped_and_a_dead_channel_stays_finite() -> None:
    x = windows(6)
    x[:, 5] = 0.25
    front = FrontEnd.fit(x, IMU, content="magnitude")
    spike = x.copy()
    spike[0, 0, 100] = 1e6
    assert np.abs(front(spike)).max() <= front.clip
    assert np.isfinite(front(spike)).all()


def test_magnitude_ignores_the_sign_but_keeps_the_signed_mean() -> None:
    x = windows(6) + 2.0
    front = FrontEnd.fit(windows(6), IMU, content="magnitude", clip=100.0)
    there, back = front(x), front(-x)
    np.testing.assert_allclose(there[..., 1:], back[..., 1:], atol=1e-4)
    assert np.abs(there[..., 0] - back[..., 0]).min() > 1.0


def test_bad_input_is_refused_with_a_reason() -> None:
    front = FrontEnd.fit(windows(6), IMU)
    with pytest.raises(DataError, match="200 samples"):
        front(windows(6)[:, :, :150])
    with pytest.raises(DataError, match="6 channels"):
        front(windows(4))
    with pytest.raises(DataError, match="acceleration xyz"):
        gravity_frame(windows(3))
    broken = windows(6)
    broken[0, 0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        FrontEnd.fit(broken, IMU)
    with pytest.raises(ConfigError, match="does not fit"):
        SpectrogramSpec(rate_hz=100.0, window_s=1.0, interval_s=2.0, interval_hop_s=0.5, channels=1)
    with pytest.raises(ConfigError, match="unknown keys"):
        SpectrogramSpec.from_dict({**IMU.to_dict(), "hop": 1})
    with pytest.raises(ConfigError, match="unknown 'down'"):
        FrontEnd.fit(windows(6), IMU, orientation="down")
