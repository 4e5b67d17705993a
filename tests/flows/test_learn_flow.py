"""Recordings of two devices through the whole learning side on a manual clock: no broker, no doubles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aligner.gates import GATES
from aligner.labels import Purpose, take_labels
from aligner.matcher import Matcher
from aligner.release import Releases
from aligner.run_files import CANDIDATE
from aligner.snapshot import Snapshot, freeze
from aligner.training_run import RunInputs, run
from inference.detector import Detector, check_golden
from inference.runtimes import make_runtime
from infomae_stream.bundle import generate_keys, open_bundle
from infomae_stream.clock import NS_PER_S, ManualClock
from infomae_stream.errors import TrainingError
from infomae_stream.hub_config import AlignSettings, GateSettings, HubConfig, MatcherSettings
from storage import query
from storage.lake import Lake
from tests.recordings import T0, recording

CLASSES = ["rest", "walk", "run"]
RHYTHM_HZ = {"rest": 0.0, "walk": 1.6, "run": 4.5}
SECONDS = 36  # each class for 4 s in turn, and a hole after every 12 s
TRAIN = {
    "threads": 1,
    "pretrain": {"epochs": 1},
    "front_end": {"max_hz": 10.0},
    "encoder": {"width": 16, "depths": [1, 1], "heads": 2},
    "align": {"steps": 20, "critic_warm_up": 5, "shared_width": 8, "private_width": 8, "view_copies": 2},
}


def label_at(second: int) -> str:
    return CLASSES[(second // 4) % 3]


def rhythm(second: int) -> float:
    return RHYTHM_HZ[label_at(second)]


def silent(stage: str, done: int, total: int, metrics: dict[str, float]) -> None:
    pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> HubConfig:
    """A hub's folder whose lake holds: two people with both devices, one with one at a time, two held out."""
    config = HubConfig(
        base_dir=tmp_path_factory.mktemp("hub"),
        matcher=MatcherSettings(modalities=["phone_imu", "watch_imu"]),
        align=AlignSettings(classes=CLASSES, validation_sites=["s06"], test_sites=["s07"], train=TRAIN),
        gates=GateSettings(min_gain_over_unaligned=-1.0),  # the flow is tested here, not how well a toy learns
    )
    lake = Lake(config.lake_path, ManualClock())
    for site in ("s01", "s02", "s03", "s06", "s07"):
        first_s = 120 if site == "s03" else 0
        chunks = recording(site, "phone", 0, SECONDS, rhythm_hz=rhythm)
        chunks += recording(site, "watch", first_s, first_s + SECONDS, rhythm_hz=rhythm)
        lake.append_chunks([c for c in chunks if c.seq % 12 != 11], 0)
    labels = config.base_dir / "labels.csv"
    write_labels(labels, [(site, "phone", 0) for site in ("s01", "s02", "s03")])
    take_labels(labels, lake, CLASSES, Purpose.train)
    judging = [(site, "watch", 120 if site == "s03" else 0) for site in ("s01", "s02", "s03", "s06", "s07")]
    write_labels(labels, [*judging, ("s06", "phone", 0), ("s07", "phone", 0)])
    take_labels(labels, lake, CLASSES, Purpose.evaluate)
    Matcher(config.matcher, config.base_dir / "matcher.json").update(lake)
    return config


def write_labels(path: Path, recordings: list[tuple[str, str, int]]) -> None:
    lines = ["site,node,start_ns,end_ns,label"]
    for site, device, first_s in recordings:
        for second in range(first_s, first_s + SECONDS, 1):
            start_ns = T0 + second * NS_PER_S
            lines.append(f"{site},{site}-{device},{start_ns},{start_ns + NS_PER_S},{label_at(second)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def lake(hub: HubConfig) -> Lake:
    return Lake(hub.lake_path, ManualClock())


@pytest.fixture(scope="module")
def first_run(hub: HubConfig, lake: Lake) -> Path:
    folder = hub.base_dir / "runs" / "000001"
    run(freeze(lake, hub, 0), lake, RunInputs(1, folder, hub.gates), silent)
    return folder


def test_the_run_learns_from_train_people_and_judges_by_the_others(first_run: Path) -> None:
    candidate = json.loads((first_run / CANDIDATE).read_text())
    assert candidate["snapshot"]["train_sites"] == ["s01", "s02", "s03"]
    assert candidate["alignment"]["held_out_people"] == ["s07"]
    assert candidate["validation"]["held_out_people"] == ["s06"]
    assert candidate["alignment"]["pairs"] > 80
    assert candidate["alignment"]["unpaired_windows"] > 80
    assert set(candidate["alignment"]["baselines"]) == {"pseudolabel", "ridge_map", "own_labels"}
    assert 0 <= candidate["alignment"]["macro_f1_after"] <= 1
    assert candidate["stage_1"] == "trained"
    assert candidate["seconds"] > 0
    assert [v["gate"] for v in candidate["verdicts"]] == list(GATES)
    assert [row["modalities"] for row in candidate["validation"]["subsets"]] == [
        ["phone_imu", "watch_imu"],
        ["phone_imu"],
        ["watch_imu"],
    ]


def test_a_candidate_that_passed_becomes_a_bundle_that_a_node_accepts(
    hub: HubConfig, first_run: Path, tmp_path: Path
) -> None:
    candidate = json.loads((first_run / CANDIDATE).read_text())
    assert all(v["passed"] for v in candidate["verdicts"]), candidate["verdicts"]
    private, public = generate_keys()
    released = Releases(tmp_path).release(first_run, private, now_ns=1, expires_days=30)
    bundle = open_bundle(tmp_path / released.file, [public], now_ns=2, min_version=0)
    assert bundle.version == 1 and bundle.sha256 == released.sha256
    assert bundle.manifest.lineage["tables"] == candidate["snapshot"]["tables"]
    assert set(bundle.golden.windows) == {"phone_imu", "watch_imu"}
    assert set(bundle.manifest.subsets[0].modalities) == {"phone_imu", "watch_imu"}
    assert set(bundle.manifest.missing_losses()) == {"phone_imu", "watch_imu"}
    left_out = [part for v in candidate["verdicts"] for part in v["leaves_out"]]
    assert bundle.manifest.has_int8 is ("int8" not in left_out)
    detector = Detector(bundle, make_runtime("onnx", threads=1))
    assert check_golden(detector) < 1e-4
    for x_CN in bundle.golden.windows["watch_imu"]:
        assert detector.scores({"watch_imu": x_CN}).sum() == pytest.approx(1)


def test_a_second_run_with_the_first_ones_encoders_is_refused_as_not_better(
    hub: HubConfig, lake: Lake, first_run: Path, tmp_path: Path
) -> None:
    gates = hub.gates.model_copy(update={"max_int8_loss": -1.0})  # which no int8 can keep
    inputs = RunInputs(2, tmp_path / "000002", gates, reuse=first_run, serving=first_run)
    stages: list[str] = []
    candidate = run(Snapshot.read(first_run / "snapshot.json"), lake, inputs, lambda stage, *_: stages.append(stage))
    assert candidate["stage_1"] == "reused from run 1" and not any(s.startswith("pretrain") for s in stages)
    failed = [v["gate"] for v in candidate["verdicts"] if not v["passed"]]
    assert failed == ["better_than_serving"]  # the very same training: equal is not better
    assert {contract["encoder_int8"] for contract in candidate["modalities"].values()} == {None}
    # A run is a function of its snapshot: the same numbers, whatever else the process did before.
    first = json.loads((first_run / CANDIDATE).read_text())
    assert candidate["losses"] == first["losses"]
    assert candidate["validation"]["macro_f1_after"] == first["validation"]["macro_f1_after"]
    with pytest.raises(TrainingError, match="better_than_serving"):
        Releases(tmp_path / "bundles").release(inputs.out, generate_keys()[0], now_ns=1, expires_days=30)


def test_the_pairs_came_from_people_who_wore_both(lake: Lake) -> None:
    assert {p.site for p in query.read_pairs(lake, paired_only=True)} == {"s01", "s02", "s06", "s07"}
