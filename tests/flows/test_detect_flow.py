"""Outbox -> windows -> detector -> outbox, with a manual clock, no broker and no process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest

from inference.service import DetectLoop, make_loop
from infomae_stream.bundle import BundleInfo, open_bundle, save_keys
from infomae_stream.bundle_store import BundleStore
from infomae_stream.clock import ManualClock
from infomae_stream.errors import ConfigError
from infomae_stream.golden import Golden
from infomae_stream.node_config import NodeConfig, NodeSettings
from infomae_stream.outbox import Outbox
from infomae_stream.telemetry import EventLog, Telemetry
from infomae_stream.types import ClockQuality, Detection, StreamId, StreamSpec
from infomae_stream.wire import decode_detection
from tests.tiny_bundle import IMU_CHANNELS, IMU_UNITS, PRIVATE_KEY, PUBLIC_KEY, TinyBundle

S = 10**9
START_NS = 1_500_000_000 * S
# Every window is a part of its own, which begins where the one before it ended, and is written within a second.
EVERY_WINDOW = {"max_s": 0.001, "merge_gap_s": 0.0, "idle_s": 0.5}


class House:
    """Two nodes, what their collectors would do, and a detect loop that can be started again."""

    def __init__(self, folder: Path, **detect: object) -> None:
        self.folder = folder
        self.clock = ManualClock()
        save_keys(folder, PRIVATE_KEY)
        self.settings = NodeConfig(
            base_dir=folder,
            detect={"trusted_keys": ["release.pub"], "events": EVERY_WINDOW, **detect},
            nodes=[
                NodeSettings(site="s01", node="s01-phone", sources=[{}]),
                NodeSettings(site="s02", node="s02-both", sources=[{}]),
            ],
        )
        self._resources = ExitStack()
        self.outboxes = [self.open_outbox(node) for node in self.settings.nodes]
        self.loop: DetectLoop
        self.start()

    def open_outbox(self, node: NodeSettings) -> Outbox:
        path = self.settings.outbox_path(node)
        made = Outbox.open(path, self.clock, max_bytes=10**8, reserve_bytes=0)
        return self._resources.enter_context(closing(made))

    def start(self) -> None:
        """As after a kill: nothing of the loop before is kept, and nothing of it is committed."""
        self.telemetry = Telemetry()
        self.loop = self._resources.enter_context(
            closing(make_loop(self.settings, self.clock, self.telemetry, EventLog("test")))
        )

    def close(self) -> None:
        self._resources.close()

    def collect(self, node: int, modality: str, first_s: int, n_s: int, *, scale: float = 1.0) -> None:
        site = self.settings.nodes[node]
        spec = StreamSpec(
            StreamId(site.site, site.node, modality), "imu", 100.0, IMU_CHANNELS, IMU_UNITS, (100.0,) * 6, modality
        )
        for second in range(first_s, first_s + n_s):
            samples = np.random.default_rng((node, second)).normal(size=(6, 100)) * 100 * scale
            counts = np.clip(samples, -32000, 32000).astype(np.int16)
            self.outboxes[node].put_chunk(spec, START_NS + second * S, counts, ClockQuality("test"))
        self.outboxes[node].commit()

    def desire(self, info: BundleInfo, **changed: object) -> None:
        desired = {"v": 1, "version": info.version, "sha256": info.sha256, "url": info.path.as_uri(), **changed}
        for outbox in self.outboxes:
            outbox.set_state("bundle_desired", json.dumps(desired).encode())

    def install(self, info: BundleInfo) -> None:
        self.desire(info)
        self.settle()

    def settle(self) -> None:
        """Let a second pass, an install that begins come to its end, and commit."""
        self.clock.advance(1.0)
        self.loop.step()
        self.loop.wait_for_install(120.0)
        self.clock.advance(1.0)
        self.loop.step()
        self.loop.commit()

    def observed(self, node: int = 0) -> dict[str, object]:
        payload = self.outboxes[node].get_state("bundle_observed")
        assert payload is not None
        found: dict[str, object] = json.loads(payload)
        return found

    def detections(self, node: int = 0) -> list[Detection]:
        records = self.outboxes[node].pending(10**9)
        return [decode_detection(r.payload) for r in records if r.topic.endswith("/detections")]

    def dropped(self, node: int, reason: str) -> float:
        site = self.settings.nodes[node]
        labels = {"site": site.site, "node": site.node, "reason": reason}
        return self.telemetry.registry.get_sample_value("infomae_windows_dropped_total", labels) or 0.0

    def metric(self, name: str, **labels: str) -> float | None:
        return self.telemetry.registry.get_sample_value(name, labels)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with closing(House(tmp_path)) as made:
        yield made


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> BundleInfo:
    return TinyBundle(version=1).write(tmp_path_factory.mktemp("one") / "1.zip")


def starts_s(detections: list[Detection]) -> list[float]:
    """Of the windows, each of which is the last of one record."""
    return sorted((d.end_ns - START_NS) / S - 2.0 for d in detections)


def test_windows_become_detections_in_the_same_outbox(house: House, one: BundleInfo) -> None:
    house.install(one)
    house.collect(0, "phone_imu", 0, 5)
    house.settle()
    found = house.detections()
    assert starts_s(found) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert {(d.site, d.node, d.modalities, d.bundle_version) for d in found} == {
        ("s01", "s01-phone", ("phone_imu",), 1)
    }
    assert {d.bundle_sha256 for d in found} == {one.sha256}
    assert house.dropped(0, "coverage") == 3  # those that began before the first sample
    assert house.metric("infomae_inference_duration_seconds_count") == 7
    assert house.observed() == {
        "v": 1,
        "version": 1,
        "sha256": one.sha256,
        "state": "serving",
        "reason": "",
        "verified": True,
    }


def test_both_modalities_of_a_node_make_one_detection_and_a_missing_one_is_seen(house: House, one: BundleInfo) -> None:
    house.install(one)
    house.collect(1, "phone_imu", 0, 4)
    house.collect(1, "watch_imu", 0, 4)
    house.settle()
    assert {d.modalities for d in house.detections(1)} == {("phone_imu", "watch_imu")}
    assert starts_s(house.detections(1)) == [0.0, 0.5, 1.0, 1.5, 2.0]
    house.collect(1, "watch_imu", 4, 6)
    house.settle()
    later = house.detections(1)[5:]
    assert {d.modalities for d in later} == {("watch_imu",)} and len(later) == 12


def test_without_a_bundle_nothing_is_kept_back_and_nothing_detected(house: House, one: BundleInfo) -> None:
    house.collect(0, "phone_imu", 0, 5)
    house.settle()
    assert house.detections() == [] and house.observed()["state"] == "none"
    house.install(one)
    house.collect(0, "phone_imu", 5, 3)
    house.settle()
    assert starts_s(house.detections()) == [5.0, 5.5, 6.0]


def test_a_bad_bundle_leaves_the_old_one_serving(house: House, one: BundleInfo, tmp_path: Path) -> None:
    house.install(one)
    tiny = TinyBundle(version=2, seed=5)
    good = tiny.write(tmp_path / "2.zip")
    flipped = bytearray(good.path.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    good.path.write_bytes(flipped)
    wrong = {name: s[:, ::-1] for name, s in tiny.golden.scores.items()}
    golden = tiny.write(tmp_path / "3.zip", golden_npz=Golden(tiny.golden.windows, wrong).dump())
    for bad, reason in ((good, "hash"), (golden, "golden")):
        house.install(bad)
        assert house.observed() == {
            "v": 1,
            "version": 2,
            "sha256": bad.sha256,
            "state": "refused",
            "reason": reason,
            "verified": False,
        }
        assert house.metric("infomae_bundle_rollbacks_total", reason=reason) == 1
    house.collect(0, "phone_imu", 0, 4)
    house.settle()
    assert {d.bundle_version for d in house.detections()} == {1}
    assert house.metric("infomae_bundle_info", version="1", sha256=one.sha256) == 1
    # Refused for good is not tried again; the hub goes back to what serves, and all is well.
    house.settle()
    assert house.metric("infomae_bundle_rollbacks_total", reason="golden") == 1
    house.install(one)
    assert house.observed()["state"] == "serving"


def test_a_good_bundle_takes_over_and_no_instant_is_lost_or_doubled(
    house: House, one: BundleInfo, tmp_path: Path
) -> None:
    house.install(one)
    house.collect(0, "phone_imu", 0, 4)
    house.settle()
    house.install(TinyBundle(version=2, seed=5).write(tmp_path / "2.zip"))
    house.collect(0, "phone_imu", 4, 4)
    house.settle()
    found = house.detections()
    assert starts_s(found) == [i / 2 for i in range(13)]
    assert [d.bundle_version for d in found] == [1] * 5 + [2] * 8
    assert house.metric("infomae_bundle_info", version="1", sha256=one.sha256) is None


def test_a_restart_serves_the_installed_bundle_and_goes_on_where_it_was(house: House, one: BundleInfo) -> None:
    house.install(one)
    house.collect(0, "phone_imu", 0, 5)
    house.settle()
    house.collect(0, "phone_imu", 5, 2)
    house.loop.step()  # seen and decided, but killed before the commit
    house.start()
    house.collect(0, "phone_imu", 7, 3)
    house.settle()
    assert starts_s(house.detections()) == [i / 2 for i in range(17)]


def test_a_rotten_installed_bundle_is_fetched_again(house: House, one: BundleInfo) -> None:
    house.install(one)
    stored = house.settings.bundle_dir / f"{one.sha256}.zip"
    stored.write_bytes(stored.read_bytes()[:-1])
    house.start()
    assert house.metric("infomae_bundle_rollbacks_total", reason="truncated") == 1
    house.settle()
    assert house.observed()["state"] == "serving"


def test_a_bundle_that_fails_while_it_serves_is_reverted(house: House, one: BundleInfo, tmp_path: Path) -> None:
    house.install(one)
    tiny = TinyBundle(version=2, seed=5)
    # Right on its golden vectors, infinite on what is larger.
    largest = max(np.abs(tiny.u(n, x) @ tiny.weights["head"]).max() for n, x in tiny.golden.windows.items())
    tiny.weights["head"] *= np.float32(1.5e38 / largest)
    tiny.golden = Golden(tiny.golden.windows, tiny._golden_scores())
    bad = tiny.write(tmp_path / "2.zip")
    house.install(bad)
    assert house.observed()["state"] == "serving"
    house.collect(0, "phone_imu", 0, 4, scale=300.0)
    house.settle()
    assert house.observed()["state"] == "refused" and house.observed()["reason"] == "runtime"
    assert house.metric("infomae_bundle_info", version="1", sha256=one.sha256) == 1
    house.collect(0, "phone_imu", 4, 4)
    house.settle()
    after = [d for d in house.detections() if d.start_ns > START_NS + 2 * S]
    assert starts_s(after) == [i / 2 for i in range(5, 13)] and {d.bundle_version for d in after} == {1}
    assert house.dropped(0, "runtime") == 5 - len(house.detections()) + len(after)
    house.start()
    house.settle()
    assert house.metric("infomae_bundle_info", version="1", sha256=one.sha256) == 1


def test_windows_that_are_too_old_are_dropped_and_counted(house: House, one: BundleInfo) -> None:
    house.install(one)
    house.collect(0, "phone_imu", 0, 5)
    house.clock.advance(30.0)
    house.settle()
    assert house.detections() == [] and house.dropped(0, "lag") == 10
    house.collect(0, "phone_imu", 5, 3)
    house.settle()
    assert starts_s(house.detections()) == [3.5, 4.0, 4.5, 5.0, 5.5, 6.0]
    assert len(house.outboxes[0].tail_chunks(0, 100)) == 8  # raw data stay


def test_a_desire_of_garbage_harms_nothing(house: House, one: BundleInfo) -> None:
    house.outboxes[0].set_state("bundle_desired", b"\xff{")
    house.settle()
    assert house.observed()["state"] == "none"
    house.install(one)
    assert house.observed()["state"] == "serving"


# -- events ------------------------------------------------------------------------------------------------------------

LONG_IDLE = {"events": {"merge_gap_s": 0.5, "idle_s": 5.0}}


def undecided(version: int, path: Path, **fields: object) -> BundleInfo:
    """All weights are zero: every class has a third, so the first of them is on in every window."""
    tiny = TinyBundle(version=version)
    for weights in tiny.weights.values():
        weights[:] = 0.0
    tiny.golden = Golden(tiny.golden.windows, tiny._golden_scores())
    tiny.fields |= fields
    return tiny.write(path / f"{version}.zip")


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[House]:
    """A house whose events are whole, with a bundle that never stops seeing the same."""
    with closing(House(tmp_path, **LONG_IDLE)) as made:
        made.install(undecided(1, tmp_path))
        yield made


def told(detection: Detection) -> tuple[float, float, int, bool, int]:
    """Start, end, part, whether it goes on, windows."""
    assert detection.event is not None
    start_s, end_s = ((ns - START_NS) / S for ns in (detection.start_ns, detection.end_ns))
    return start_s, end_s, detection.event.part, detection.event.ongoing, detection.event.windows


def idle(house: House) -> None:
    house.clock.advance(6.0)
    house.settle()


def test_windows_that_show_the_same_are_one_event_which_ends_when_they_stop(patient: House) -> None:
    patient.collect(0, "phone_imu", 0, 10)
    patient.settle()
    assert patient.detections() == []
    idle(patient)
    (found,) = patient.detections()
    assert told(found) == (0.0, 10.0, 1, False, 17)
    assert (found.label, found.modalities, found.scores["still"]) == ("still", ("phone_imu",), pytest.approx(1 / 3))
    assert found.event is not None and found.event.missing == ("watch_imu",)
    assert (found.event.on, found.event.off, found.event.peak_score) == (0.0, 0.0, pytest.approx(1 / 3))
    labels = {"site": "s01", "node": "s01-phone", "class": "still", "version": "1"}
    assert patient.metric("infomae_detections_total", **labels) == 1
    assert patient.metric("infomae_detection_score_count", site="s01", node="s01-phone") == 1


def test_a_killed_detector_goes_on_with_the_event_that_was_open(patient: House) -> None:
    patient.collect(0, "phone_imu", 0, 5)
    patient.settle()
    patient.start()  # the open event was committed
    patient.collect(0, "phone_imu", 5, 2)
    patient.loop.step()
    patient.start()  # what came of those two seconds was not
    patient.collect(0, "phone_imu", 7, 3)
    patient.settle()
    idle(patient)
    assert [told(d) for d in patient.detections()] == [(0.0, 10.0, 1, False, 17)]


def test_a_long_event_is_told_while_it_lasts(tmp_path: Path) -> None:
    with closing(House(tmp_path, events={"max_s": 4.0, "idle_s": 5.0})) as house:
        house.install(undecided(1, tmp_path))
        house.collect(0, "phone_imu", 0, 10)
        house.settle()
        assert [told(d) for d in house.detections()] == [(0.0, 4.0, 1, True, 5), (4.0, 8.0, 2, True, 8)]
        idle(house)
        assert told(house.detections()[-1]) == (8.0, 10.0, 3, False, 4)


def test_a_new_bundle_ends_the_event_under_the_old_one(patient: House, tmp_path: Path) -> None:
    patient.collect(0, "phone_imu", 0, 5)
    patient.settle()
    patient.install(undecided(2, tmp_path))
    assert [(told(d), d.bundle_version) for d in patient.detections()] == [((0.0, 5.0, 1, False, 7), 1)]
    patient.start()
    patient.collect(0, "phone_imu", 5, 5)
    patient.settle()
    idle(patient)
    assert [(told(d), d.bundle_version) for d in patient.detections()] == [
        ((0.0, 5.0, 1, False, 7), 1),
        ((5.0, 10.0, 1, False, 10), 2),
    ]


def test_an_event_of_a_bundle_that_is_gone_after_a_kill_ends_under_that_bundle(patient: House, tmp_path: Path) -> None:
    patient.collect(0, "phone_imu", 0, 5)
    patient.settle()
    store = BundleStore(patient.settings.bundle_dir)
    store.activate(open_bundle(undecided(2, tmp_path).path, [PUBLIC_KEY], now_ns=0, min_version=0))
    patient.start()
    patient.start()  # the end was committed, and is not told again
    patient.settle()
    assert [(told(d), d.bundle_version) for d in patient.detections()] == [((0.0, 5.0, 1, False, 7), 1)]


def test_without_a_bundle_no_event_stays_open(patient: House) -> None:
    patient.collect(0, "phone_imu", 0, 5)
    patient.settle()
    for path in patient.settings.bundle_dir.glob("*.zip"):
        path.unlink()
    for _ in range(2):
        patient.start()
    assert [told(d) for d in patient.detections()] == [(0.0, 5.0, 1, False, 7)]


def test_a_clock_that_is_set_back_ends_the_event(patient: House) -> None:
    patient.collect(0, "phone_imu", 3600, 5)
    patient.settle()
    patient.collect(0, "phone_imu", 0, 5)
    patient.settle()
    idle(patient)
    assert [told(d) for d in patient.detections()] == [(3600.0, 3605.0, 1, False, 7), (0.0, 5.0, 1, False, 7)]


def test_thresholds_and_cool_down_come_from_bundle_and_settings(tmp_path: Path) -> None:
    events = {"on": {"still": 0.3}, "off": {"still": 0.1}, "cool_down_s": 3600.0, "idle_s": 5.0}
    with closing(House(tmp_path, events=events)) as house:
        house.install(undecided(1, tmp_path, thresholds={"still": 0.9}))
        for first_s in (0, 100):
            house.collect(0, "phone_imu", first_s, 5)
            house.settle()
            idle(house)
        (found,) = house.detections()
        assert found.event is not None and (found.event.on, found.event.off) == (0.3, 0.1)
        labels = {"site": "s01", "node": "s01-phone", "reason": "cool_down"}
        assert house.metric("infomae_windows_suppressed_total", **labels) == 7
    with closing(House(tmp_path / "bundle", events={"idle_s": 5.0})) as house:
        house.install(undecided(1, tmp_path, thresholds={"still": 0.9}))
        house.collect(0, "phone_imu", 0, 5)
        house.settle()
        idle(house)
        assert house.detections() == [] and house.metric("infomae_inference_duration_seconds_count") == 7


# -- triggers ----------------------------------------------------------------------------------------------------------

SLEEPY = {"stream": "phone_imu", "type": "energy", "warm_up_s": 0.0, "on_db": 9.0}


@pytest.fixture
def sleepy(tmp_path: Path) -> Iterator[House]:
    """A house with a trigger on the phones' stream, and the bundle that never stops seeing the same."""
    with closing(House(tmp_path, triggers=[SLEEPY], **LONG_IDLE)) as made:
        made.install(undecided(1, tmp_path))
        yield made


def looks(house: House) -> float:
    return house.metric("infomae_inference_duration_seconds_count") or 0.0


def test_while_the_trigger_sleeps_the_model_is_not_run_and_that_is_counted(sleepy: House) -> None:
    sleepy.collect(0, "phone_imu", 0, 10)
    sleepy.settle()
    assert (looks(sleepy), sleepy.dropped(0, "quiet")) == (0, 17)
    sleepy.collect(0, "phone_imu", 10, 1, scale=20.0)
    sleepy.collect(0, "phone_imu", 11, 9)
    sleepy.settle()
    idle(sleepy)
    (found,) = sleepy.detections()
    start_s, end_s, *_ = told(found)
    assert 8.0 < start_s <= 9.0 and 12.0 <= end_s <= 14.0
    assert found.event is not None and looks(sleepy) == found.event.windows
    assert sleepy.dropped(0, "quiet") == 37 - looks(sleepy)


def test_one_sleeping_trigger_decides_for_the_streams_without_one(sleepy: House) -> None:
    sleepy.collect(1, "phone_imu", 0, 4)
    sleepy.collect(1, "watch_imu", 0, 4, scale=20.0)
    sleepy.settle()
    assert (looks(sleepy), sleepy.dropped(1, "quiet")) == (0, 10)


def test_one_trigger_that_wakes_is_enough(tmp_path: Path) -> None:
    both = [SLEEPY, {**SLEEPY, "stream": "watch_imu"}]
    with closing(House(tmp_path, triggers=both)) as house:
        house.install(undecided(1, tmp_path))
        house.collect(1, "phone_imu", 0, 4)
        house.collect(1, "watch_imu", 0, 3)
        house.collect(1, "watch_imu", 3, 1, scale=20.0)
        house.settle()
        assert (looks(house), house.dropped(1, "quiet")) == (2, 6), "the windows that begin at 1.5 and 2.0 have it"


def test_where_no_stream_has_a_trigger_the_model_is_run(sleepy: House) -> None:
    sleepy.collect(1, "watch_imu", 0, 4)
    sleepy.settle()
    assert (looks(sleepy), sleepy.dropped(1, "quiet")) == (5, 0)


def test_a_trigger_may_be_for_one_node_only(tmp_path: Path) -> None:
    with closing(House(tmp_path, triggers=[{**SLEEPY, "node": "s02-both"}])) as house:
        house.install(undecided(1, tmp_path))
        for node in (0, 1):
            house.collect(node, "phone_imu", 0, 4)
        house.settle()
        assert (looks(house), house.dropped(0, "quiet"), house.dropped(1, "quiet")) == (5, 0, 5)


@pytest.mark.parametrize(
    ("trigger", "text"),
    [
        ({"type": "energy"}, r"detect\.triggers\.0\.stream: missing"),
        ({"stream": "phone_imu"}, r"detect\.triggers\.0\.type: None is no trigger"),
        ({**SLEEPY, "on_dbb": 3}, r"detect\.triggers\.0\.on_dbb: unknown key; did you mean 'on_db'"),
        ({**SLEEPY, "node": "nobody"}, r"detect\.triggers\.0\.node: no node 'nobody'; known: s01-phone, s02-both"),
    ],
)
def test_a_trigger_that_cannot_be_is_named(trigger: dict[str, object], text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=text):
        House(tmp_path, triggers=[trigger])
