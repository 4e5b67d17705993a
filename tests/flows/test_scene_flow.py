"""Both lines on the synthetic scene, geophone and microphone, on a manual clock and without a broker.

Learn: source -> outbox -> ingest -> lake -> matcher -> snapshot -> training -> bundle.
Detect: source -> outbox -> detector -> outbox -> ingest -> lake. What carries messages here is a Python call.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aligner.labels import Purpose, take_labels
from aligner.matcher import Matcher
from aligner.release import Releases
from aligner.snapshot import freeze
from aligner.training_run import RunInputs, run
from collectors.hub.dead_letters import DeadLetters
from collectors.hub.ingest import Ingest
from collectors.intake import Intake, read_position
from collectors.sources import SourceContext, make_source
from collectors.uplink import Uplink
from inference.service import make_loop
from infomae_stream.bundle import generate_keys, save_keys
from infomae_stream.clock import NS_PER_S, ManualClock
from infomae_stream.hub_config import AlignSettings, GateSettings, HubConfig, MatcherSettings
from infomae_stream.node_config import NodeConfig, NodeSettings
from infomae_stream.outbox import Outbox
from infomae_stream.scene import ContinuousScene, SceneNode
from infomae_stream.telemetry import EventLog, Telemetry
from infomae_stream.types import ClockQuality
from storage import query
from storage.lake import Lake

T0_S = 1_700_000_000
SECONDS = 60
PERIOD_S = 15.0
SITES = ("north", "east", "south", "west", "mill", "bridge")  # the last two are held out
BOTH, CLASSES = ["seismic", "acoustic"], ["quiet", "vehicle"]
SYNCHRONISED = ClockQuality("declared", uncertainty_ns=1_000_000, synchronised=True)
TRAIN = {
    "threads": 1,
    "pretrain": {"epochs": 1},
    "front_end": {"max_hz": 40.0},
    "encoder": {"width": 16, "depths": [1, 1], "heads": 2},
    "align": {"steps": 10, "critic_warm_up": 2, "shared_width": 8, "private_width": 8, "view_copies": 2},
}


@dataclass
class Road:
    """A hub's folder and what passes between a node and it."""

    hub: HubConfig
    clock: ManualClock
    lake: Lake
    ingest: Ingest
    labels: Path
    accepted: int = 0

    def open_outbox(self, path: Path) -> Outbox:
        return Outbox.open(path, self.clock, max_bytes=10**9, reserve_bytes=0)

    def play(self, outbox: Outbox, site: str, kinds: list[str]) -> None:
        """All that a node beside the road gives, into its outbox."""
        options = {"type": "synthetic", "kinds": kinds, "period_s": PERIOD_S, "duration_s": SECONDS, "speed": 5.0}
        options["start"] = datetime.fromtimestamp(T0_S, UTC)
        context = SourceContext(site, node_of(site), Path(), self.clock, lambda s: read_position(outbox, s))
        intake = Intake(
            [make_source(options, context, where="test", prefix=())],
            outbox,
            clock_quality=lambda: SYNCHRONISED,
            offset_ns=0,
            telemetry=Telemetry(),
            log=EventLog("test"),
            site=site,
            node=node_of(site),
        )
        while not intake.finished:
            intake.poll()
            self.accepted += len(intake.commit())
            self.clock.advance(1.0)
        intake.close()

    def deliver(self, outbox: Outbox) -> None:
        """Publish, commit, acknowledge, until nothing waits on the node."""
        uplink = Uplink(outbox, self.clock, max_inflight_bytes=2_000_000, resend_after_s=10)
        while outbox.unacked_bytes():
            for record in uplink.due():
                uplink.sent(record)
                self.ingest.take(record.topic, record.payload)
            for _, payload in self.ingest.commit().acks:
                uplink.handle_ack(payload)
            outbox.write_acks()


def node_of(site: str) -> str:
    return f"{site}-1"


def write_labels(path: Path, site: str) -> None:
    """A vehicle is there for three seconds around its closest point, as the scene's truth has it."""
    scene_node = SceneNode(site, node_of(site))
    scene = ContinuousScene(0, [scene_node], period_s=PERIOD_S)
    near = [p.closest_ns(scene_node) for p in scene.passes(site, (T0_S - 60) * NS_PER_S, (T0_S + 120) * NS_PER_S)]
    lines = [] if path.exists() else ["site,node,start_ns,end_ns,label"]
    for second in range(T0_S, T0_S + SECONDS):
        start_ns = second * NS_PER_S
        label = "vehicle" if any(abs(start_ns + NS_PER_S // 2 - ns) < 2 * NS_PER_S for ns in near) else "quiet"
        lines.append(f"{site},{node_of(site)},{start_ns},{start_ns + NS_PER_S},{label}")
    with path.open("a", encoding="utf-8") as f:
        f.write("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    folder = tmp_path_factory.mktemp("road")
    hub = HubConfig(
        base_dir=folder,
        matcher=MatcherSettings(modalities=BOTH),
        align=AlignSettings(
            classes=["quiet", "vehicle"], validation_sites=["mill"], test_sites=["bridge"], train=TRAIN
        ),
        gates=GateSettings(min_gain_over_unaligned=-1.0, min_effective_rank=1.0),  # ten steps teach nothing
    )
    clock = ManualClock()
    lake = Lake(hub.lake_path, clock)
    limits = {"commit_interval_s": 1.0, "commit_bytes": 10**7, "max_inflight_bytes": 10**8}
    ingest = Ingest(lake, DeadLetters(folder / "letters", 10**6), clock, **limits)  # type: ignore[arg-type]
    return Road(hub, clock, lake, ingest, folder / "labels.csv")


@pytest.fixture(scope="module")
def learned(road: Road) -> Path:
    """The folder of the first run, after every site has delivered both its streams."""
    for site in SITES:
        with closing(road.open_outbox(road.hub.base_dir / site / "outbox.sqlite")) as outbox:
            road.play(outbox, site, BOTH)
            road.deliver(outbox)
        write_labels(road.labels, site)
    take_labels(road.labels, road.lake, CLASSES, Purpose.train)
    Matcher(road.hub.matcher, road.hub.base_dir / "matcher.json").update(road.lake)
    folder = road.hub.base_dir / "runs" / "000001"
    run(freeze(road.lake, road.hub, 0), road.lake, RunInputs(1, folder, road.hub.gates), lambda *_: None)
    return folder


def test_what_the_nodes_accepted_is_in_the_lake_once(road: Road, learned: Path) -> None:
    assert query.logical_identities(road.lake, "chunks").num_rows == road.accepted
    samples = {"seismic": 0, "acoustic": 0}
    for chunk in query.read_chunks(road.lake, sites=["north"]):
        samples[chunk.spec.kind] += chunk.n_samples
    assert samples == {"seismic": 100 * SECONDS, "acoustic": 8000 * SECONDS}


def test_every_moment_of_a_site_with_both_sensors_is_a_pair(road: Road, learned: Path) -> None:
    pairs = query.read_pairs(road.lake, paired_only=True)
    per_site = (SECONDS - 2) * 2 + 1
    assert {site: sum(p.site == site for p in pairs) for site in SITES} == dict.fromkeys(SITES, per_site)


def test_a_node_with_a_microphone_alone_detects_with_the_bundle_that_was_learned(
    road: Road, learned: Path, tmp_path: Path
) -> None:
    private, _ = generate_keys()
    save_keys(tmp_path, private)
    released = Releases(tmp_path / "bundles").release(learned, private, road.clock.now_ns(), expires_days=1)
    node = NodeSettings(site="quarry", node=node_of("quarry"), sources=[{}])
    config = NodeConfig(base_dir=tmp_path, detect={"trusted_keys": ["release.pub"], "max_lag_s": 1e6}, nodes=[node])
    with (
        closing(road.open_outbox(config.outbox_path(node))) as outbox,
        closing(make_loop(config, road.clock, Telemetry(), EventLog("test"))) as loop,
    ):
        url = (tmp_path / "bundles" / released.file).as_uri()
        desired = f'{{"v": 1, "version": {released.version}, "sha256": "{released.sha256}", "url": "{url}"}}'
        outbox.set_state("bundle_desired", desired.encode())
        loop.step()
        loop.wait_for_install(120.0)
        road.play(outbox, "quarry", ["acoustic"])
        while loop.step():
            road.clock.advance(1.1)
        road.clock.advance(config.detect.events.idle_s + 1.0)  # what is open ends
        loop.step()
        loop.commit()
        road.deliver(outbox)
    found = query.read_detections(road.lake)
    assert sum(d.event.windows for d in found if d.event is not None) == (SECONDS - 2) * 2 + 1
    assert all(d.missing == ("seismic",) for d in (d.event for d in found) if d is not None)
    assert {d.modalities for d in found} == {("acoustic",)}
    assert {d.bundle_sha256 for d in found} == {released.sha256}
