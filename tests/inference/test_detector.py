from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inference.detector import Detector, check_golden
from inference.runtimes import make_runtime
from infomae_stream.bundle import Bundle, open_bundle
from infomae_stream.errors import BundleError
from infomae_stream.golden import Golden
from infomae_stream.types import ClockQuality, StreamId, StreamSpec, Window
from tests.tiny_bundle import IMU_CHANNELS, IMU_UNITS, PUBLIC_KEY, TinyBundle, encoder_graph, head_graph

START_NS = 1_700_000_000 * 10**9
RUNTIME = make_runtime("onnx", threads=1)


def opened(tiny: TinyBundle, folder: Path, **replaced: bytes) -> Bundle:
    info = tiny.write(folder / "b.zip", **replaced)
    return open_bundle(info.path, [PUBLIC_KEY], now_ns=0, min_version=0)


def window(modality: str, x_CN: np.ndarray, *, coverage: float = 1.0, stream: str = "imu") -> Window:
    spec = StreamSpec(StreamId("s01", "s01-n", stream), "imu", 100.0, IMU_CHANNELS, IMU_UNITS, (1.0,) * 6, modality)
    return Window(spec, START_NS, x_CN, coverage, ClockQuality("test"))


@pytest.fixture(scope="module")
def tiny() -> TinyBundle:
    return TinyBundle(version=7)


@pytest.fixture(scope="module")
def detector(tiny: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return Detector(opened(tiny, tmp_path_factory.mktemp("bundle")), RUNTIME)


def test_every_subset_of_modalities_scores_as_the_slow_way_does(tiny: TinyBundle, detector: Detector) -> None:
    x = {name: golden[0] for name, golden in tiny.golden.windows.items()}
    for names in (("phone_imu",), ("watch_imu",), ("phone_imu", "watch_imu")):
        look = detector.look([window(name, x[name], stream=name) for name in names])
        assert look.seen is not None and not look.dropped
        want_Y = tiny.scores({name: x[name][None] for name in names})[0]
        np.testing.assert_allclose(list(look.seen.scores.values()), want_Y, atol=1e-5)
        assert look.seen.modalities == names
        assert look.seen.missing == tuple(sorted({"phone_imu", "watch_imu"} - set(names)))
        assert sum(look.seen.scores.values()) == pytest.approx(1)
        assert (look.seen.start_ns, look.seen.end_ns) == (START_NS, START_NS + 2 * 10**9)


def test_badly_covered_and_broken_windows_are_counted_and_the_rest_is_used(
    tiny: TinyBundle, detector: Detector
) -> None:
    x_CN = tiny.golden.windows["phone_imu"][0]
    broken_CN = x_CN.copy()
    broken_CN[2, 17] = np.nan
    look = detector.look(
        [
            window("phone_imu", x_CN, coverage=0.5, stream="a"),
            window("phone_imu", broken_CN, stream="b"),
            window("watch_imu", x_CN, coverage=0.96, stream="c"),
            window("watch_imu", x_CN, coverage=0.99, stream="d"),
        ]
    )
    assert look.seen is not None and look.seen.modalities == ("watch_imu",)
    assert look.dropped == {"coverage": 1, "not_finite": 1, "same_modality": 1}
    nothing = detector.look([window("phone_imu", x_CN, coverage=0.5)])
    assert nothing.seen is None and nothing.dropped == {"coverage": 1}


def test_golden_vectors_pass_on_the_bundle_they_came_with(detector: Detector) -> None:
    assert check_golden(detector) < 1e-5


@pytest.mark.parametrize("spoilt", ["watch_imu", "all"])
def test_a_golden_score_that_is_off_refuses_the_bundle(tiny: TinyBundle, tmp_path: Path, spoilt: str) -> None:
    scores = {name: s.copy() for name, s in tiny.golden.scores.items()}
    scores[spoilt][1] = np.roll(scores[spoilt][1], 1)
    content = Golden(tiny.golden.windows, scores).dump()
    with pytest.raises(BundleError) as caught:
        check_golden(Detector(opened(tiny, tmp_path, golden_npz=content), RUNTIME))
    assert caught.value.reason == "golden"


@pytest.mark.parametrize(("off", "passes"), [(0.0005, True), (0.002, False)])
def test_scores_must_be_as_near_as_the_tolerance_says_though_no_label_changes(
    tiny: TinyBundle, tmp_path: Path, off: float, passes: bool
) -> None:
    scores = {name: s.copy() for name, s in tiny.golden.scores.items()}
    scores["watch_imu"][0, scores["watch_imu"][0].argmax()] += off
    content = Golden(tiny.golden.windows, scores).dump()
    detector = Detector(opened(tiny, tmp_path, golden_npz=content), RUNTIME)
    if passes:
        assert check_golden(detector) == pytest.approx(off, abs=1e-5)
    else:
        with pytest.raises(BundleError, match=r"differ from the golden ones by 0\.002"):
            check_golden(detector)


def test_a_graph_of_another_shape_is_refused_before_it_serves(tiny: TinyBundle, tmp_path: Path) -> None:
    k, t, f = tiny.front_ends["phone_imu"].shape_KTF
    bad = encoder_graph((k, t, f + 1), np.zeros((k * t * (f + 1), 8), dtype=np.float32))
    for replaced in ({"encoder_phone_imu_onnx": bad}, {"head_onnx": head_graph(np.zeros((8, 2), dtype=np.float32))}):
        with pytest.raises(BundleError) as caught:
            Detector(opened(tiny, tmp_path, **replaced), RUNTIME)
        assert caught.value.reason == "contract"


def test_scores_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    tiny = TinyBundle()
    huge = head_graph(np.full((8, 3), 3e38, dtype=np.float32))
    detector = Detector(opened(tiny, tmp_path, head_onnx=huge), RUNTIME)
    with pytest.raises(BundleError) as caught:
        detector.look([window("phone_imu", tiny.golden.windows["phone_imu"][0] * 1000)])
    assert caught.value.reason == "runtime"


def test_one_modality_whose_encoder_breaks_does_not_silence_the_other(tmp_path: Path) -> None:
    tiny = TinyBundle()
    x = {name: golden[0] for name, golden in tiny.golden.windows.items()}
    shape = tiny.front_ends["watch_imu"].shape_KTF
    infinite = encoder_graph(shape, np.full((int(np.prod(shape)), 8), 3e38, dtype=np.float32))
    detector = Detector(opened(tiny, tmp_path, encoder_watch_imu_onnx=infinite), RUNTIME)
    both = [window(name, x_CN, stream=name) for name, x_CN in x.items()]
    look = detector.look(both)
    assert look.seen is not None and look.broken == ("watch_imu",) and look.dropped == {"encoder": 1}
    assert (look.seen.modalities, look.seen.missing) == (("phone_imu",), ("watch_imu",))
    want_Y = tiny.scores({"phone_imu": x["phone_imu"][None]})[0]
    np.testing.assert_allclose(list(look.seen.scores.values()), want_Y, atol=1e-5)
    with pytest.raises(BundleError, match="encoder of watch_imu"):
        detector.look([window("watch_imu", x["watch_imu"])])


def test_attribution_is_what_the_highest_score_loses_without_a_modality(tiny: TinyBundle, detector: Detector) -> None:
    x = {name: golden[1] for name, golden in tiny.golden.windows.items()}
    look = detector.look([window(name, x_CN, stream=name) for name, x_CN in x.items()])
    assert look.seen is not None
    whole_Y = tiny.scores({name: x_CN[None] for name, x_CN in x.items()})[0]
    y = int(whole_Y.argmax())
    want = {
        "phone_imu": whole_Y[y] - tiny.scores({"watch_imu": x["watch_imu"][None]})[0][y],
        "watch_imu": whole_Y[y] - tiny.scores({"phone_imu": x["phone_imu"][None]})[0][y],
    }
    assert look.seen.attribution == pytest.approx(want, abs=1e-5)
    assert min(abs(v) for v in want.values()) > 1e-3
    alone = detector.look([window("phone_imu", x["phone_imu"])])
    assert alone.seen is not None and alone.seen.attribution == {}


def test_encoders_run_once_an_instant_whatever_is_asked_of_them(tiny: TinyBundle, tmp_path: Path) -> None:
    class Counting:
        def __init__(self, threads: int) -> None:
            self.runs: list[str] = []

        def load(self, model: bytes, **declared: object) -> object:
            graph = RUNTIME.load(model, **declared)  # type: ignore[arg-type]
            name = str(declared["where"]).rpartition(" ")[2]
            return lambda x: (self.runs.append(name), graph(x))[1]

    runtime = Counting(1)
    detector = Detector(opened(tiny, tmp_path), runtime)  # type: ignore[arg-type]
    detector.look([window(name, x[0], stream=name) for name, x in tiny.golden.windows.items()])
    assert sorted(runtime.runs) == ["encoder_phone_imu.onnx", "encoder_watch_imu.onnx"] + ["head.onnx"] * 3


def test_a_loaded_detector_holds_no_second_copy_of_the_weights(detector: Detector) -> None:
    assert not detector.bundle.files and not detector.bundle.content
