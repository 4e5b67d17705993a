from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aligner.matcher import Matcher
from aligner.snapshot import Snapshot, SplitData, freeze, load
from aligner.trainset import TrainSet
from infomae_stream.clock import NS_PER_S
from infomae_stream.errors import ConfigError, DataError
from infomae_stream.hub_config import AlignSettings, HubConfig, MatcherSettings
from storage.lake import Lake
from storage.learning_tables import append_labels
from storage.rows import LabelInterval
from tests.recordings import T0, imu_spec, recording

CLASSES = ["rest", "walk"]


@pytest.fixture
def config(tmp_path: Path) -> HubConfig:
    return HubConfig(
        base_dir=tmp_path,
        matcher=MatcherSettings(modalities=["phone_imu", "watch_imu"]),
        align=AlignSettings(classes=CLASSES, validation_sites=["s03"], test_sites=["s04"], seed=7),
    )


@pytest.fixture
def filled(lake: Lake, config: HubConfig) -> Lake:
    for site in ("s01", "s02", "s03", "s04"):
        lake.append_chunks(recording(site, "phone", 0, 8) + recording(site, "watch", 4, 12), 0)
    Matcher(config.matcher, config.base_dir / "m.json").update(lake)
    append_labels(lake, [interval("s01", "phone", 0, 4, "rest"), interval("s01", "phone", 4, 8, "walk")])
    append_labels(lake, [interval("s01", "watch", 4, 12, "walk", "evaluate")])
    append_labels(lake, [interval("s03", "watch", 4, 12, "rest", "evaluate")])
    return lake


def interval(site: str, device: str, start_s: float, end_s: float, label: str, purpose: str = "train") -> LabelInterval:
    return LabelInterval(
        site, f"{site}-{device}", T0 + round(start_s * NS_PER_S), T0 + round(end_s * NS_PER_S), label, purpose
    )


def starts(data: TrainSet, modality: str, site: str) -> list[float]:
    windows = data.modalities[modality]
    return [float(s - T0) / NS_PER_S for s in windows.start_ns_B[windows.group_B == site]]


def assert_same(a: TrainSet, b: TrainSet) -> None:
    assert a.classes == b.classes and a.modalities.keys() == b.modalities.keys() and a.pairs.keys() == b.pairs.keys()
    for name, windows in a.modalities.items():
        for field in ("x_BCN", "start_ns_B", "group_B", "sequence_B", "label_B"):
            np.testing.assert_array_equal(getattr(windows, field), getattr(b.modalities[name], field))
    for names, index in a.pairs.items():
        np.testing.assert_array_equal(index, b.pairs[names])


def test_nobody_is_in_two_sets(filled: Lake, config: HubConfig) -> None:
    data = load(freeze(filled, config, 0), filled)
    people = [
        {str(p) for w in split.modalities.values() for p in w.group_B}
        for split in (data.train, data.validation, data.test)
    ]
    assert people == [{"s01", "s02"}, {"s03"}, {"s04"}]


def test_the_same_snapshot_gives_the_same_arrays_whatever_came_since(
    filled: Lake, config: HubConfig, tmp_path: Path
) -> None:
    snapshot = freeze(filled, config, 0)
    snapshot.write(tmp_path / "snapshot.json")
    before = load(snapshot, filled)
    filled.append_chunks(recording("s01", "watch", 0, 4) + recording("s05", "phone", 0, 8), 0)
    append_labels(filled, [interval("s02", "phone", 0, 8, "walk")])
    Matcher(config.matcher, config.base_dir / "m.json").update(filled)
    again = load(Snapshot.read(tmp_path / "snapshot.json"), Lake(filled.path))
    for split in ("train", "validation", "test"):
        assert_same(getattr(before, split), getattr(again, split))
    now = load(freeze(filled, config, 0), filled)
    strict = config.matcher.model_copy(update={"max_clock_uncertainty_s": 1e-6})
    Matcher(strict, config.base_dir / "m.json").update(filled)  # judged anew: nothing is a pair now
    assert not load(freeze(filled, config, 0), filled).train.pairs
    assert_same(before.train, load(Snapshot.read(tmp_path / "snapshot.json"), filled).train)
    assert len(now.train.pairs["phone_imu", "watch_imu"]) > len(before.train.pairs["phone_imu", "watch_imu"])


def test_only_whole_windows_are_learned_from_and_pairs_name_them(filled: Lake, config: HubConfig) -> None:
    data = load(freeze(filled, config, 0), filled)
    assert starts(data.train, "phone_imu", "s01") == [k / 2 for k in range(13)]
    phone, watch = data.train.modalities["phone_imu"], data.train.modalities["watch_imu"]
    index = data.train.pairs["phone_imu", "watch_imu"]
    assert len(index) == 10  # two people, starts 4.0 to 6.0
    assert (phone.start_ns_B[index[:, 0]] == watch.start_ns_B[index[:, 1]]).all()
    assert (phone.group_B[index[:, 0]] == watch.group_B[index[:, 1]]).all()


def labels_of(data: SplitData, split: str, modality: str, site: str) -> list[int]:
    windows = getattr(data, split).modalities[modality]
    return [int(label) for label in windows.label_B[windows.group_B == site]]


def test_a_label_needs_a_clear_majority_of_the_window(filled: Lake, config: HubConfig) -> None:
    data = load(freeze(filled, config, 0), filled)
    # Starts 0, .5 ... 6; the class changes at 4 s: the window at 3.0 has half of each, so neither.
    assert labels_of(data, "train", "phone_imu", "s01") == [0] * 6 + [-1] + [1] * 6
    assert labels_of(data, "train", "phone_imu", "s02") == [-1] * 13


def test_labels_that_only_judge_are_not_learned_from(filled: Lake, config: HubConfig) -> None:
    data = load(freeze(filled, config, 0), filled)
    watch = data.train.modalities["watch_imu"]
    assert (watch.label_B == -1).all()
    assert set(data.oracle_labels["watch_imu"][watch.group_B == "s01"]) == {1}
    assert set(labels_of(data, "validation", "watch_imu", "s03")) == {0}


def test_overlapping_intervals_of_both_purposes_count_once(filled: Lake, config: HubConfig) -> None:
    append_labels(
        filled, [interval("s02", "phone", 0, 0.8, "rest"), interval("s02", "phone", 0, 0.7, "rest", "evaluate")]
    )
    data = load(freeze(filled, config, 0), filled)
    assert set(data.oracle_labels["phone_imu"][data.train.modalities["phone_imu"].group_B == "s02"]) == {-1}


def test_a_hole_ends_a_sequence(lake: Lake, config: HubConfig) -> None:
    chunks = [c for c in recording("s01", "phone", 0, 12) if c.seq != 6]
    lake.append_chunks(chunks + recording("s02", "phone", 0, 4), 0)
    windows = load(freeze(lake, config, 0), lake).train.modalities["phone_imu"]
    assert len(set(windows.sequence_B)) == 3
    for number in set(windows.sequence_B):
        own = windows.start_ns_B[windows.sequence_B == number]
        assert set(np.diff(own)) == {NS_PER_S // 2}


def test_refused_windows_are_no_pairs_but_still_windows(lake: Lake, config: HubConfig) -> None:
    lake.append_chunks(recording("s01", "phone", 0, 8) + recording("s01", "watch", 0, 8, still_axis=1), 0)
    Matcher(config.matcher, config.base_dir / "m.json").update(lake)
    train = load(freeze(lake, config, 0), lake).train
    assert not train.pairs and len(train.modalities["watch_imu"]) == 13


def test_a_site_for_validation_and_test_is_refused(lake: Lake, config: HubConfig) -> None:
    both = config.model_copy(update={"align": config.align.model_copy(update={"test_sites": ["s03"]})})
    with pytest.raises(ConfigError, match="s03 stand in validation_sites and in test_sites"):
        freeze(lake, both, 0)


def test_sensors_that_differ_may_not_share_a_modality(lake: Lake, config: HubConfig) -> None:
    other = imu_spec("s02", "phone", rate_hz=50.0)
    chunks = [
        type(c)(other, "e1", c.seq, c.start_ns, c.samples_CN[:, ::2], c.clock) for c in recording("s02", "phone", 0, 8)
    ]
    lake.append_chunks(recording("s01", "phone", 0, 8) + chunks, 0)
    with pytest.raises(DataError, match=r"modality phone_imu: s02/s02-phone/imu is .*50"):
        load(freeze(lake, config, 0), lake)


def test_a_file_that_is_no_snapshot_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"format": 1, "created": 3}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"s\.json: .*created: unknown key"):
        Snapshot.read(tmp_path / "s.json")
    with pytest.raises(ConfigError, match="cannot read the snapshot"):
        Snapshot.read(tmp_path / "none.json")
