"""Row 1, the detector: kill -9 of `node detect` in mid-work and at the failpoints of its commits, of `collect` as well.

The recording is known, so the windows that must be detected are: one every half second, each exactly once.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Final

from infomae_stream.bundle import save_keys
from infomae_stream.clock import NS_PER_S, SystemClock
from infomae_stream.outbox import Outbox
from storage import query
from storage.lake import Lake
from tests.faults.played import START_NS, Size
from tests.faults.processes import Program
from tests.faults.stage import Settings, Stage
from tests.faults.trial import TrialResult
from tests.tiny_bundle import IMU_CHANNELS, IMU_UNITS, PRIVATE_KEY, TinyBundle

SECONDS: Final = 100
WINDOW_S, HOP_NS = 2, NS_PER_S // 2  # as TinyBundle has them
PLACES: Final = ("outbox.before_commit", "outbox.after_commit")
EXPECTED: Final = Counter(range(START_NS, START_NS + (SECONDS - WINDOW_S) * NS_PER_S + 1, HOP_NS))


def trial(rng: random.Random, folder: Path) -> TrialResult:
    with Stage(rng, folder, Size(nodes=1, seconds=SECONDS, channels=6, speed=14)) as stage:
        _configure(stage, folder)
        detector = Program("detect", folder, ["node", "detect", "--config", "node.toml"])
        stage.programs.append(detector)
        _give_bundle(stage, folder)
        detector.start()
        # Without a bundle it passes over what comes: only from here on a window must be detected.
        stage.wait(lambda: "bundle_serves" in detector.log() and detector.up, 60, "the bundle serves")
        for program in (stage.node, *stage.ingests):
            program.ended = True
        stage.broker.start()
        stage.node.start()
        stage.ingests[0].start()
        stage.wait(lambda: _accepted_detections(folder), 180, "there is something that could be told twice")
        # Killed at a random moment it comes up armed, dies at its place, comes up armed again, and so on.
        stage.failpoints["detect"] = [f"{p}=kill@{rng.randint(1, 2)}" for p in rng.sample(PLACES, len(PLACES))]
        wanted = len(PLACES)
        for victim in rng.choice([[detector], [detector, stage.node], [stage.node, detector]]):
            stage.go_on(rng.uniform(0.3, 1.5))
            victim.kill()
            stage.go_on(rng.uniform(0, 0.5))
            stage.start_again(victim)
        stage.wait(lambda: len(detector.hits) >= wanted or stage.drained(), 180, "the detector has died at its commits")
        if len(detector.hits) < wanted:  # its last commit, when it is told to end, must not be the place
            detector.kill()
            detector.start()
        stage.fault_is_over()
        stage.wait(lambda: _accepted_detections(folder) >= EXPECTED.total(), 180, "every window is detected")
        result = stage.settle()
        found = Counter(d.end_ns - WINDOW_S * NS_PER_S for d in query.read_detections(Lake(stage.lake_path)))
        lost, more = (EXPECTED - found).total(), (found - EXPECTED).total()
        return replace(
            result,
            lost=result.lost + lost,
            logical_duplicates=result.logical_duplicates + more,
            hits=tuple(f"detect {hit}" for hit in detector.hits),
        )


def _configure(stage: Stage, folder: Path) -> None:
    save_keys(folder, PRIVATE_KEY)
    stage.configure(
        Settings(
            source='kind = "imu"\nmodality = "phone_imu"\n'
            f"channels = {json.dumps(IMU_CHANNELS)}\nunits = {json.dumps(IMU_UNITS)}\nsensitivity = {[100.0] * 6}",
            # Every window is an event's part of its own, written soon.
            detect='trusted_keys = ["release.pub"]\nmax_lag_s = 600.0\n'
            "[detect.events]\nmax_s = 0.001\nmerge_gap_s = 0.0\nidle_s = 0.5",
            keep_s=600,
        )
    )


def _give_bundle(stage: Stage, folder: Path) -> None:
    """As the hub's message would: the node keeps what it wants in its outbox."""
    info = TinyBundle(modalities=("phone_imu",)).write(folder / "1.zip")
    desired = {"v": 1, "version": info.version, "sha256": info.sha256, "url": info.path.as_uri()}
    path = stage.outbox_path(stage.recordings[0])
    outbox = Outbox.open(path, SystemClock(), max_bytes=10**9, reserve_bytes=0)
    outbox.set_state("bundle_desired", json.dumps(desired).encode())
    outbox.close()


def _accepted_detections(folder: Path) -> int:
    return sum(path.read_text().count('"kind": "detection"') for path in (folder / "truth").glob("*.jsonl"))
