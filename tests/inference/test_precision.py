"""int8 serves where the golden vectors prove it, and fp32 where they do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inference.detector import TOLERANCE, Detector, check_golden
from inference.precision import prove
from inference.runtimes import make_runtime
from infomae_stream.bundle import Bundle, open_bundle
from infomae_stream.errors import BundleError
from infomae_stream.golden import Golden
from tests.tiny_bundle import PUBLIC_KEY, TinyBundle, int8_encoder_graph

RUNTIME = make_runtime("onnx", threads=1)


def opened(tiny: TinyBundle, folder: Path, **replaced: bytes) -> Bundle:
    info = tiny.write(folder / "b.zip", **replaced)
    return open_bundle(info.path, [PUBLIC_KEY], now_ns=0, min_version=0)


@pytest.fixture(scope="module")
def tiny() -> TinyBundle:
    return TinyBundle(int8=True, n_golden=8)


def test_int8_serves_when_its_golden_scores_are_near_enough(tiny: TinyBundle, tmp_path: Path) -> None:
    proven = prove(opened(tiny, tmp_path), RUNTIME, "auto")
    assert proven.detector.precision == "int8" and proven.int8_refused is None
    worst = check_golden(proven.detector)
    # Another graph than fp32 did run, and it is not far from it.
    assert TOLERANCE["fp32"] < worst < TOLERANCE["int8"]


def test_fp32_is_taken_where_it_is_asked_for_or_there_is_nothing_else(tiny: TinyBundle, tmp_path: Path) -> None:
    asked = prove(opened(tiny, tmp_path), RUNTIME, "fp32")
    assert asked.detector.precision == "fp32" and check_golden(asked.detector) < 1e-5
    old = opened(TinyBundle(), tmp_path)
    assert prove(old, RUNTIME, "auto").detector.precision == "fp32"
    with pytest.raises(BundleError, match="has no int8 graphs"):
        prove(old, RUNTIME, "int8")


def wrong_weights(tiny: TinyBundle) -> bytes:
    return int8_encoder_graph(tiny.front_ends["watch_imu"].shape_KTF, -tiny.weights["watch_imu"])


def wrong_shape(tiny: TinyBundle) -> bytes:
    k, t, f = tiny.front_ends["watch_imu"].shape_KTF
    return int8_encoder_graph((k, t, f + 1), np.ones((k * t * (f + 1), 8), dtype=np.float32))


@pytest.mark.parametrize(("spoil", "reason"), [(wrong_weights, "golden"), (wrong_shape, "contract")])
def test_int8_that_is_not_right_leaves_fp32_serving_and_says_why(
    tiny: TinyBundle, tmp_path: Path, spoil: object, reason: str
) -> None:
    bundle = opened(tiny, tmp_path, encoder_watch_imu_int8_onnx=spoil(tiny))  # type: ignore[operator]
    proven = prove(bundle, RUNTIME, "auto")
    assert proven.detector.precision == "fp32"
    assert proven.int8_refused is not None and proven.int8_refused.reason == reason
    with pytest.raises(BundleError) as caught:
        prove(bundle, RUNTIME, "int8")
    assert caught.value.reason == reason


@pytest.mark.parametrize(("shift", "passes"), [((0.02, -0.01), True), ((0.045, -0.03), False)])
def test_a_label_may_change_only_where_it_hardly_led(tmp_path: Path, shift: tuple[float, float], passes: bool) -> None:
    tiny = TinyBundle(int8=True)
    tiny.weights["head"] *= np.float32(1e-2)  # all scores are a third, nearly
    scores = tiny._golden_scores()
    third, second, first = np.argsort(scores["all"][0])
    scores["all"][0, [second, first]] += shift  # the second leads now; within the tolerance of what the graphs give
    scores["all"][0, third] -= 0.03
    tiny.golden = Golden(tiny.golden.windows, scores)
    detector = Detector(opened(tiny, tmp_path), RUNTIME, "int8")
    if passes:
        assert 0.025 < check_golden(detector) < 0.035
    else:
        with pytest.raises(BundleError, match="1 golden windows get another label"):
            check_golden(detector)


def test_a_bundle_whose_fp32_is_wrong_too_is_refused(tiny: TinyBundle, tmp_path: Path) -> None:
    scores = {name: s[:, ::-1] for name, s in tiny.golden.scores.items()}
    bundle = opened(tiny, tmp_path, golden_npz=Golden(tiny.golden.windows, scores).dump())
    with pytest.raises(BundleError) as caught:
        prove(bundle, RUNTIME, "auto")
    assert caught.value.reason == "golden" and "fp32" in str(caught.value)
