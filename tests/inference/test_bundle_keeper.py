"""Which bundle serves when the one that is desired is bad, in its file, on this node or while it serves."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from inference.bundle_keeper import BundleKeeper
from inference.detector import Look
from inference.install import Desired, prepare
from inference.runtimes import make_runtime
from infomae_stream.bundle import BundleInfo, generate_keys, write_bundle
from infomae_stream.bundle_archive import unpack
from infomae_stream.bundle_store import MAX_UNCLEAN_ENDS, BundleStore
from infomae_stream.clock import ManualClock
from infomae_stream.errors import BundleError
from infomae_stream.golden import Golden
from infomae_stream.outbox import Outbox
from infomae_stream.telemetry import EventLog, Telemetry
from infomae_stream.types import ClockQuality, StreamId, StreamSpec, Window
from tests.kernel.test_bundle import resigned
from tests.tiny_bundle import (
    IMU_CHANNELS,
    IMU_UNITS,
    PUBLIC_KEY,
    TinyBundle,
    encoder_graph,
    head_graph,
    int8_encoder_graph,
)

RUNTIME = make_runtime("onnx", threads=1)
MS = 1_000_000
HOP_S = 0.5


class Node:
    def __init__(self, outbox: Outbox) -> None:
        self.outbox, self.observed, self.warnings = outbox, b"", 0

    def warn(self, event: str, error: Exception) -> None:
        self.warnings += 1


class Rig:
    """A node's outbox and bundle folder, and a keeper that can be started again."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder, self.settings = folder, settings
        self.clock = ManualClock()
        self.outbox = Outbox.open(folder / "outbox.sqlite", self.clock, max_bytes=10**8, reserve_bytes=0)
        self.nodes = [Node(self.outbox)]
        self.start()

    def start(self) -> None:
        """As after a kill."""
        self.telemetry = Telemetry()
        store = BundleStore(self.folder / "bundles")
        log = EventLog("test")
        self.keeper = BundleKeeper(
            store,
            [PUBLIC_KEY],
            RUNTIME,
            self.clock,
            self.telemetry,
            log,
            **self.settings,  # type: ignore[arg-type]
        )

    def close(self) -> None:
        self.outbox.close()

    def install(self, info: BundleInfo) -> None:
        desired = {"v": 1, "version": info.version, "sha256": info.sha256, "url": info.path.as_uri()}
        self.outbox.set_state("bundle_desired", json.dumps(desired).encode())
        self.clock.advance(2.0)
        self.keeper.tend(self.nodes)
        self.keeper.wait(60.0, self.nodes)

    def look(self, tiny: TinyBundle, *, taken_ms: float = 1.0, nodes: int = 1) -> bool:
        """One instant of both modalities, and what the keeper makes of how it went."""
        assert self.keeper.detector is not None
        windows = [window(name, x_BCN[0]) for name, x_BCN in tiny.golden.windows.items()]
        try:
            look = self.keeper.detector.look(windows)
        except BundleError as e:
            return self.keeper.failed(e, self.nodes)
        return self.keeper.passed(look, round(taken_ms * MS), self.nodes * nodes)

    @property
    def serving(self) -> int:
        return self.keeper.detector.bundle.version if self.keeper.detector else 0

    def observed(self) -> tuple[object, object]:
        told = json.loads(self.nodes[0].observed)
        return told["state"], told["reason"]

    def metric(self, name: str, **labels: str) -> float | None:
        return self.telemetry.registry.get_sample_value(name, labels)


def window(modality: str, x_CN: np.ndarray) -> Window:
    spec = StreamSpec(StreamId("s01", "n", modality), "imu", 100.0, IMU_CHANNELS, IMU_UNITS, (1.0,) * 6, modality)
    return Window(spec, 0, x_CN, 1.0, ClockQuality("test"))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with closing(Rig(tmp_path)) as made:
        yield made


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> BundleInfo:
    return TinyBundle(version=1, int8=True).write(tmp_path_factory.mktemp("one") / "1.zip")


def infinite_encoder(tiny: TinyBundle, name: str) -> bytes:
    """Finite weights, and products that are not."""
    shape = tiny.front_ends[name].shape_KTF
    return encoder_graph(shape, np.full((int(np.prod(shape)), 8), 3e38, dtype=np.float32))


# -- row 16: what a file, or its first run here, can show ------------------------------------------------------------


def _good(folder: Path, **fields: object) -> Path:
    tiny = TinyBundle(version=2, seed=5, int8=True)
    tiny.fields.update(fields)
    return tiny.write(folder / "2.zip").path


def _changed(folder: Path, change: Callable[[bytes], bytes]) -> Path:
    path = _good(folder)
    path.write_bytes(change(path.read_bytes()))
    return path


def _member_flipped(folder: Path, name: str) -> Path:
    def flip(data: bytes) -> bytes:
        content = bytes(next(m.content for m in unpack(data, "test") if m.name == name))
        at = data.index(content) + len(content) // 2
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return _changed(folder, flip)


def _signed_by_a_stranger(folder: Path) -> Path:
    tiny = TinyBundle(version=2)
    return write_bundle(folder / "2.zip", tiny.fields, tiny.files(), generate_keys()[0]).path


def _of_another_shape(folder: Path) -> Path:
    tiny = TinyBundle(version=2)
    return tiny.write(folder / "2.zip", head_onnx=head_graph(np.ones((8, 2), dtype=np.float32))).path


def _wrong_scores(folder: Path) -> Path:
    tiny = TinyBundle(version=2)
    scores = {name: s[:, ::-1] for name, s in tiny.golden.scores.items()}
    return tiny.write(folder / "2.zip", golden_npz=Golden(tiny.golden.windows, scores).dump()).path


def _infinite(folder: Path) -> Path:
    tiny = TinyBundle(version=2)
    return tiny.write(folder / "2.zip", encoder_watch_imu_onnx=infinite_encoder(tiny, "watch_imu")).path


def _nan_in_int8(folder: Path) -> Path:
    """Signed as it is: the writer would refuse it, so its scale is made NaN behind the writer's back."""
    tiny = TinyBundle(version=2, int8=True)
    nan = int8_encoder_graph(tiny.front_ends["phone_imu"].shape_KTF, tiny.weights["phone_imu"])
    scale = np.abs(tiny.weights["phone_imu"]).max(axis=0).astype(np.float32) / np.float32(63)
    assert nan.count(scale.tobytes()) == 1
    broken = scale.copy()
    broken[3] = np.nan
    files = {**tiny.files(), "encoder_phone_imu.int8.onnx": nan.replace(scale.tobytes(), broken.tobytes())}
    path = folder / "2.zip"
    path.write_bytes(resigned(tiny, {}, files))
    return path


def _climbing_out(folder: Path) -> Path:
    return _changed(folder, lambda data: data.replace(b"golden.npz", b"../den.npz"))


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "flipped bit in fp32": (lambda f: _member_flipped(f, "encoder_phone_imu.onnx"), "hash"),
    "flipped bit in int8": (lambda f: _member_flipped(f, "encoder_phone_imu.int8.onnx"), "hash"),
    "flipped bit in manifest": (lambda f: _member_flipped(f, "manifest.json"), "signature"),
    "truncated": (lambda f: _changed(f, lambda data: data[:-100]), "truncated"),
    "wrong key": (_signed_by_a_stranger, "signature"),
    "older": (lambda f: TinyBundle(version=1, seed=9).write(f / "1.zip").path, "older"),
    "expired": (lambda f: _good(f, expires_ns=ManualClock().now_ns()), "expired"),
    "NaN in int8": (_nan_in_int8, "not_finite"),
    "path tricks": (_climbing_out, "path"),
    "wrong shape": (_of_another_shape, "contract"),
    "infinite output": (_infinite, "runtime"),
    "wrong scores": (_wrong_scores, "golden"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_bundle_is_refused_and_the_old_one_goes_on(rig: Rig, one: BundleInfo, tmp_path: Path, name: str) -> None:
    rig.install(one)
    make, reason = BAD[name]
    path = make(tmp_path)
    content = path.read_bytes()
    version = 1 if name == "older" else 2
    rig.install(BundleInfo(version, hashlib.sha256(content).hexdigest(), len(content), path))
    assert rig.observed() == ("refused", reason)
    assert rig.serving == 1 and not rig.look(TinyBundle(version=1))
    rig.start()
    assert rig.serving == 1


# -- int8 on this node ------------------------------------------------------------------------------------------------


def test_the_node_says_which_graphs_serve_and_why_not_int8(rig: Rig, one: BundleInfo, tmp_path: Path) -> None:
    rig.install(one)
    assert rig.metric("infomae_bundle_precision", kind="int8") == 1
    tiny = TinyBundle(version=2, int8=True)
    wrong = int8_encoder_graph(tiny.front_ends["watch_imu"].shape_KTF, -tiny.weights["watch_imu"])
    rig.install(tiny.write(tmp_path / "2.zip", encoder_watch_imu_int8_onnx=wrong))
    assert rig.serving == 2 and rig.observed() == ("serving", "")
    assert rig.metric("infomae_bundle_precision", kind="fp32") == 1
    assert rig.metric("infomae_bundle_precision", kind="int8") is None
    assert rig.metric("infomae_int8_refused_total", reason="golden") == 1


def test_int8_alone_is_a_setting_under_which_a_bundle_without_it_is_refused(one: BundleInfo, tmp_path: Path) -> None:
    with closing(Rig(tmp_path, precision="int8")) as rig:
        rig.install(one)
        rig.install(TinyBundle(version=2).write(tmp_path / "2.zip"))
        assert rig.serving == 1 and rig.observed() == ("refused", "contract")


def test_what_a_missing_modality_costs_is_a_gauge(rig: Rig, tmp_path: Path) -> None:
    tiny = TinyBundle()
    tiny.fields["subsets"] = [
        {"modalities": ["phone_imu", "watch_imu"], "macro_f1": 0.9, "windows": 40},
        {"modalities": ["phone_imu"], "macro_f1": 0.875, "windows": 40},
        {"modalities": ["watch_imu"], "macro_f1": 0.5, "windows": 40},
    ]
    rig.install(tiny.write(tmp_path / "1.zip"))
    assert rig.metric("infomae_bundle_missing_loss", kind="watch_imu") == pytest.approx(0.025)
    assert rig.metric("infomae_bundle_missing_loss", kind="phone_imu") == pytest.approx(0.4)


# -- row 18: what only shows while it serves --------------------------------------------------------------------------


def test_a_slow_bundle_goes_back_to_the_one_before_it(rig: Rig, one: BundleInfo, tmp_path: Path) -> None:
    rig.install(one)
    assert not any(rig.look(TinyBundle(version=1)) for _ in range(10))
    tiny = TinyBundle(version=2, seed=5)
    rig.install(tiny.write(tmp_path / "2.zip"))
    assert [rig.look(tiny, taken_ms=1000 * HOP_S + 1) for _ in range(10)] == [False] * 9 + [True]
    assert rig.serving == 1 and rig.observed() == ("refused", "slow")
    assert rig.metric("infomae_bundle_rollbacks_total", reason="slow") == 1
    rig.start()
    rig.clock.advance(60.0)
    rig.keeper.tend(rig.nodes)
    rig.keeper.wait(60.0, rig.nodes)
    assert rig.serving == 1 and rig.observed() == ("refused", "runtime")  # for good, though the hub still desires it


def test_the_time_there_is_is_shared_by_the_nodes_of_the_process(rig: Rig, one: BundleInfo, tmp_path: Path) -> None:
    rig.install(one)
    assert not any(rig.look(TinyBundle(version=1), nodes=6) for _ in range(10))
    tiny = TinyBundle(version=2, seed=5)
    rig.install(tiny.write(tmp_path / "2.zip"))
    assert any(rig.look(tiny, taken_ms=100, nodes=6) for _ in range(10)) and rig.serving == 1


def test_a_busy_machine_is_no_reason_to_go_back(rig: Rig, one: BundleInfo, tmp_path: Path) -> None:
    rig.install(one)
    assert not any(rig.look(TinyBundle(version=1), taken_ms=600) for _ in range(10))
    tiny = TinyBundle(version=2, seed=5)
    rig.install(tiny.write(tmp_path / "2.zip"))
    assert not any(rig.look(tiny, taken_ms=700) for _ in range(30)) and rig.serving == 2


def test_a_first_bundle_that_is_slow_or_half_blind_is_better_than_none(
    rig: Rig, one: BundleInfo, tmp_path: Path
) -> None:
    rig.install(one)
    tiny = TinyBundle(version=1)
    assert rig.keeper.detector is not None
    seen = rig.keeper.detector.look([window("phone_imu", tiny.golden.windows["phone_imu"][0])])
    half_blind = Look(seen.seen, seen.dropped, ("watch_imu",))
    assert not any(rig.keeper.passed(half_blind, 5000 * MS, rig.nodes) for _ in range(30)) and rig.serving == 1


def test_a_bundle_is_confirmed_by_its_first_windows_and_slowness_is_no_reason_afterwards(
    rig: Rig, one: BundleInfo, tmp_path: Path
) -> None:
    rig.install(one)
    tiny = TinyBundle(version=2, seed=5)
    info = tiny.write(tmp_path / "2.zip")
    rig.install(info)
    for _ in range(20):
        assert rig.keeper.store.on_trial(info.sha256) and not rig.look(tiny)
    rig.clock.advance(2.0)
    rig.keeper.tend(rig.nodes)
    assert not rig.keeper.store.on_trial(info.sha256)
    assert not any(rig.look(tiny, taken_ms=5000) for _ in range(30)) and rig.serving == 2


def test_a_modality_that_breaks_in_the_trial_sends_the_bundle_back(rig: Rig, one: BundleInfo, tmp_path: Path) -> None:
    rig.install(one)
    tiny = TinyBundle(version=2, seed=5)
    rig.install(tiny.write(tmp_path / "2.zip"))
    assert rig.keeper.detector is not None
    seen = rig.keeper.detector.look([window("phone_imu", tiny.golden.windows["phone_imu"][0])])
    half_blind = Look(seen.seen, seen.dropped, ("watch_imu",))
    assert [rig.keeper.passed(half_blind, MS, rig.nodes) for _ in range(3)] == [False, False, True]
    assert rig.serving == 1 and rig.observed() == ("refused", "runtime")


class _KilledError(Exception):
    """Stands for the end of the process, in the middle of a graph."""


class DeadlyRuntime:
    """Ends the process as it loads a graph."""

    def __init__(self, threads: int) -> None:
        pass

    def load(self, model: bytes, **declared: object) -> object:
        raise _KilledError


def test_a_bundle_that_ends_every_process_that_loads_it_is_given_up(one: BundleInfo, tmp_path: Path) -> None:
    desired = Desired(one.version, one.sha256, one.path.as_uri())
    for _ in range(MAX_UNCLEAN_ENDS):
        with pytest.raises(_KilledError):
            prepare(desired, BundleStore(tmp_path), [PUBLIC_KEY], DeadlyRuntime(1), 0)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="ended without a word") as caught:
        prepare(desired, BundleStore(tmp_path), [PUBLIC_KEY], DeadlyRuntime(1), 0)  # type: ignore[arg-type]
    assert caught.value.reason == "runtime"


def test_a_bundle_that_ends_its_processes_while_it_serves_goes_back(rig: Rig, one: BundleInfo, tmp_path: Path) -> None:
    rig.install(one)
    rig.install(TinyBundle(version=2, seed=5).write(tmp_path / "2.zip"))
    for _ in range(MAX_UNCLEAN_ENDS - 1):
        rig.start()
        assert rig.serving == 2
    rig.start()
    assert rig.serving == 1 and rig.metric("infomae_bundle_rollbacks_total", reason="runtime") == 1


def test_a_process_that_ends_as_it_should_says_nothing_against_the_bundle(
    rig: Rig, one: BundleInfo, tmp_path: Path
) -> None:
    rig.install(one)
    info = TinyBundle(version=2, seed=5).write(tmp_path / "2.zip")
    rig.install(info)
    for _ in range(2 * MAX_UNCLEAN_ENDS):
        rig.keeper.close()
        rig.start()
    assert rig.serving == 2 and rig.keeper.store.on_trial(info.sha256)


def test_where_there_is_nothing_to_look_at_the_trial_ends_by_the_clock(
    rig: Rig, one: BundleInfo, tmp_path: Path
) -> None:
    rig.install(one)
    rig.clock.advance(601.0)
    rig.keeper.tend(rig.nodes)
    assert not rig.keeper.store.on_trial(one.sha256)


# -- a disk that takes nothing ----------------------------------------------------------------------------------------


def block(path: Path) -> None:
    """`path` cannot be replaced any more: its temporary file's name is taken by a folder."""
    path.with_name(f".{path.name}.{os.getpid()}.tmp").mkdir()


def test_a_trial_that_cannot_be_written_down_stops_no_detection(rig: Rig, one: BundleInfo, tmp_path: Path) -> None:
    rig.install(one)
    block(tmp_path / "bundles" / "trials" / one.sha256)
    rig.keeper.close()
    rig.start()
    assert rig.serving == 1 and not rig.look(TinyBundle(version=1))
    two = TinyBundle(version=2, seed=5).write(tmp_path / "2.zip")
    (tmp_path / "bundles" / "trials").rename(tmp_path / "elsewhere")
    (tmp_path / "bundles" / "trials").write_bytes(b"")
    rig.install(two)
    assert rig.serving == 1 and rig.observed() == ("refused", "download")  # which is tried again


def test_a_bundle_that_fails_on_a_disk_that_takes_nothing_serves_no_more(rig: Rig, tmp_path: Path) -> None:
    tiny = TinyBundle(version=1)
    rig.install(tiny.write(tmp_path / "1.zip"))
    block(tmp_path / "bundles" / "pointer.json")
    failure = BundleError("gives NaN", reason="runtime", where="head")
    assert [rig.keeper.failed(failure, rig.nodes) for _ in range(3)] == [False, False, True]
    assert rig.serving == 0 and rig.observed() == ("refused", "runtime")


# -- which modalities take part ---------------------------------------------------------------------------------------


def test_a_modality_that_goes_and_comes_back_is_a_gauge_and_a_line(
    rig: Rig, one: BundleInfo, caplog: pytest.LogCaptureFixture
) -> None:
    rig.install(one)
    tiny = TinyBundle(version=1)
    detector = rig.keeper.detector
    assert detector is not None
    both = [window(name, x_BCN[0]) for name, x_BCN in tiny.golden.windows.items()]

    def present() -> list[float | None]:
        return [
            rig.metric("infomae_modality_present", site="s01", node="n", kind=kind)
            for kind in ("phone_imu", "watch_imu")
        ]

    with caplog.at_level("INFO"):
        for _ in range(10):  # there is no watch here: that is no news
            rig.keeper.passed(detector.look(both[:1]), MS, rig.nodes)
        assert present() == [1, 0] and "modality_missing" not in caplog.text
        rig.keeper.passed(detector.look(both), MS, rig.nodes)
        assert present() == [1, 1]
        for _ in range(10):
            rig.keeper.passed(detector.look(both[:1]), MS, rig.nodes)
        assert present() == [1, 0] and caplog.text.count("modality_missing") == 1
        rig.keeper.passed(detector.look(both), MS, rig.nodes)
        assert present() == [1, 1] and caplog.text.count("modality_back") == 1
