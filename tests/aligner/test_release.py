from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aligner.config import FrontEndConfig, TrainConfig
from aligner.export import export_int8, export_model
from aligner.model import Model
from aligner.release import Releases, Rollout
from aligner.run_files import CANDIDATE, GOLDEN, HEAD
from aligner.train import front_end_for
from aligner.training_run import golden_vectors
from aligner.trainset import ModalityWindows, TrainSet
from infomae_stream.bundle import generate_keys, open_bundle
from infomae_stream.errors import TrainingError, WireError
from infomae_stream.topics import node_topic
from tests.recordings import imu_spec

PRIVATE, PUBLIC = generate_keys()
SHA = "0" * 64


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training process leaves, of a model that has learned nothing."""
    folder = tmp_path_factory.mktemp("runs") / "000003"
    folder.mkdir()
    rng = np.random.default_rng(0)
    x_BCN = rng.normal(0, 1, (20, 6, 200)).astype(np.float32)
    rows = np.arange(20)
    windows = ModalityWindows("phone_imu", 100.0, x_BCN, rows, np.full(20, "s10"), rows * 0, rows % 2)
    torch.manual_seed(0)
    config = TrainConfig.model_validate(
        {"encoder": {"width": 16, "depths": [1, 1], "heads": 2}, "align": {"shared_width": 8, "private_width": 8}}
    )
    front_end = front_end_for(windows, FrontEndConfig())
    model = Model({"phone_imu": front_end}, ("rest", "walk"), config).eval()
    int8 = export_int8(export_model(model, folder))["phone_imu"].name
    golden = golden_vectors(model, TrainSet({"phone_imu": windows}, {}, model.classes))
    (folder / GOLDEN).write_bytes(golden.dump())
    spec = imu_spec("s01", "phone")
    contract = {
        "kind": spec.kind,
        "rate_hz": 100.0,
        "channels": list(spec.channels),
        "units": list(spec.units),
        "window_s": 2.0,
        "hop_s": 0.5,
        "min_coverage": 0.95,
        "max_gap_s": 0.2,
        "front_end": front_end.to_dict(),
        "encoder": "encoder_phone_imu.onnx",
        "encoder_int8": int8,
        "dim": 8,
    }
    names = ["encoder_phone_imu.onnx", int8, HEAD, GOLDEN]
    candidate = {
        "run": 3,
        "classes": ["rest", "walk"],
        "modalities": {"phone_imu": contract},
        "snapshot": {
            "tables": {"chunks": 41, "pairs": 7, "labels": 2},
            "train_sites": ["s01"],
            "validation_sites": ["s10"],
            "test_sites": ["s13"],
            "seed": 0,
            "train": {},
            "code_version": "0.1.0",
        },
        "stage_1": "trained",
        "validation": {"subsets": [{"modalities": ["phone_imu"], "macro_f1": 0.75, "windows": 20}]},
        "verdicts": [{"gate": "finite", "passed": True, "value": 0.0, "limit": 0.0, "reason": "fine"}],
        "files": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names},
    }
    (folder / CANDIDATE).write_text(json.dumps(candidate), encoding="utf-8")
    return folder


@pytest.fixture
def copy_of_run(run_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the run's folder with changes to its candidate.json."""

    def make(**changes: Any) -> Path:
        folder = tmp_path / "run"
        folder.mkdir()
        for path in run_folder.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        candidate = json.loads((folder / CANDIDATE).read_text()) | changes
        (folder / CANDIDATE).write_text(json.dumps(candidate), encoding="utf-8")
        return folder

    return make


def test_versions_rise_and_the_pointer_names_the_newest(run_folder: Path, tmp_path: Path) -> None:
    releases = Releases(tmp_path)
    assert releases.current() is None
    first = releases.release(run_folder, PRIVATE, now_ns=10, expires_days=1)
    second = releases.release(run_folder, PRIVATE, now_ns=20, expires_days=1)
    assert (first.version, second.version) == (1, 2) and Releases(tmp_path).current() == second
    bundle = open_bundle(tmp_path / second.file, [PUBLIC], now_ns=30, min_version=1)
    assert (bundle.version, bundle.sha256) == (2, second.sha256)
    assert bundle.manifest.lineage["tables"] == {"chunks": 41, "pairs": 7, "labels": 2}
    assert bundle.manifest.gates["finite"]["passed"] is True
    assert bundle.manifest.expires_ns == 20 + 86_400 * 10**9
    assert bundle.manifest.has_int8 and bundle.manifest.subsets[0].macro_f1 == 0.75


def test_killed_before_the_pointer_the_old_one_serves_and_no_version_comes_twice(
    run_folder: Path, tmp_path: Path
) -> None:
    releases = Releases(tmp_path)
    first = releases.release(run_folder, PRIVATE, now_ns=10, expires_days=1)
    (tmp_path / "bundle-000002.zip").write_bytes(b"whole, but nobody was sent to it")
    assert releases.current() == first
    assert releases.release(run_folder, PRIVATE, now_ns=20, expires_days=1).version == 3


def test_a_failed_gate_releases_nothing(copy_of_run: Callable[..., Path], tmp_path: Path) -> None:
    failed = {"gate": "not_collapsed", "passed": False, "value": 1.0, "limit": 2.0, "reason": "flat"}
    releases = Releases(tmp_path / "bundles")
    with pytest.raises(TrainingError, match="gates not passed: not_collapsed"):
        releases.release(copy_of_run(verdicts=[failed]), PRIVATE, now_ns=1, expires_days=1)
    assert list((tmp_path / "bundles").iterdir()) == []


def test_what_no_gate_judged_is_not_released(copy_of_run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="none asked"):
        Releases(tmp_path / "b").release(copy_of_run(verdicts=[]), PRIVATE, now_ns=1, expires_days=1)


@pytest.mark.parametrize("name", [HEAD, "encoder_phone_imu.int8.onnx"])
def test_a_file_changed_after_the_gates_looked_is_not_released(
    copy_of_run: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    folder = copy_of_run()
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(TrainingError, match=f"{re.escape(name)}: not the file that the gates judged"):
        Releases(tmp_path / "b").release(folder, PRIVATE, now_ns=1, expires_days=1)


def test_int8_that_the_gates_left_out_stays_out(copy_of_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy_of_run()
    candidate = json.loads((folder / CANDIDATE).read_text())
    candidate["modalities"]["phone_imu"]["encoder_int8"] = None
    (folder / CANDIDATE).write_text(json.dumps(candidate), encoding="utf-8")
    released = Releases(tmp_path / "b").release(folder, PRIVATE, now_ns=1, expires_days=1)
    bundle = open_bundle(tmp_path / "b" / released.file, [PUBLIC], now_ns=2, min_version=0)
    assert not bundle.manifest.has_int8 and set(bundle.files) == {"encoder_phone_imu.onnx", HEAD, GOLDEN}


def test_a_run_that_did_not_end_is_not_released(copy_of_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy_of_run()
    (folder / CANDIDATE).unlink()
    with pytest.raises(TrainingError, match="the run has no result"):
        Releases(tmp_path / "b").release(folder, PRIVATE, now_ns=1, expires_days=1)


def observed(version: int, state: str = "serving") -> bytes:
    return json.dumps({"v": 1, "version": version, "sha256": SHA, "state": state, "verified": True}).encode()


def test_every_node_is_told_once_and_again_after_its_birth(run_folder: Path, tmp_path: Path) -> None:
    releases, rollout = Releases(tmp_path), Rollout()
    birth = node_topic("s01", "s01-watch", "birth")
    rollout.take(birth, b'{"v": 1, "streams": []}')
    rollout.take(node_topic("s02", "s02-watch", "bundle/observed"), observed(0, "none"))
    assert rollout.to_tell(releases.current(), "http://hub:1") == []
    released = releases.release(run_folder, PRIVATE, now_ns=1, expires_days=1)
    messages = rollout.to_tell(released, "http://hub:1/")
    assert [topic for topic, _ in messages] == [
        node_topic("s01", "s01-watch", "bundle/desired"),
        node_topic("s02", "s02-watch", "bundle/desired"),
    ]
    assert json.loads(messages[0][1]) == {
        "v": 1,
        "version": 1,
        "sha256": released.sha256,
        "url": "http://hub:1/bundle-000001.zip",
    }
    for topic, payload in messages:
        rollout.told(topic, payload)
    assert rollout.to_tell(released, "http://hub:1/") == []
    rollout.take(birth, b'{"v": 1, "streams": []}')
    assert [topic for topic, _ in rollout.to_tell(released, "http://hub:1/")] == [messages[0][0]]


def test_a_change_of_what_a_node_runs_is_news_once() -> None:
    rollout, topic = Rollout(), node_topic("s01", "s01-watch", "bundle/observed")
    assert rollout.take(topic, observed(1)) == ("s01", "s01-watch")
    assert rollout.take(topic, observed(1)) is None
    assert rollout.take(topic, observed(2, "refused")) == ("s01", "s01-watch")
    assert rollout.nodes["s01", "s01-watch"]["state"] == "refused"


@pytest.mark.parametrize(
    "payload", [b"{", b'{"v": 1}', b'{"v": 1, "version": "x", "sha256": "", "state": "serving"}', observed(1, "happy")]
)
def test_garbage_from_a_node_is_refused_with_a_reason(payload: bytes) -> None:
    rollout = Rollout()
    with pytest.raises(WireError) as e:
        rollout.take(node_topic("s01", "s01-watch", "bundle/observed"), payload)
    assert e.value.reason == "schema" and not rollout.nodes
    with pytest.raises(WireError):
        rollout.take(node_topic("s01", "s01-watch", "ack"), b"{}")
