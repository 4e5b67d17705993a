"""Row 1: kill -9 at random moments and at every failpoint around D1-D4: of node, ingest and broker in most trials.

In some the detector is killed (killed_detector.py), in some matcher, aligner and its training (killed_aligner.py).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

from tests.faults.played import Size
from tests.faults.rows import killed_aligner, killed_detector
from tests.faults.stage import Settings, Stage
from tests.faults.trial import Row, TrialResult

# In an order in which one after the other is reached: new data first, then what comes back from the hub.
NODE_PLACES: Final = (
    "outbox.before_commit",
    "outbox.after_commit",
    "uplink.after_publish",
    "outbox.before_acknowledge",
    "outbox.after_acknowledge",
    "outbox.before_purge",
    "outbox.after_purge",
)
SHED_PLACES: Final = ("outbox.before_shed", "outbox.after_shed")
INGEST_PLACES: Final = (
    "segment.before_sync",
    "segment.before_rename",
    "segment.after_rename",
    "lake.before_commit",
    "lake.before_folder_sync",
    "lake.after_commit",
    "ingest.before_ack",
    "ingest.after_ack",
)


def trial(rng: random.Random, folder: Path) -> TrialResult:
    kinds = (_delivering, _shedding, killed_detector.trial, killed_aligner.trial)
    return rng.choices(kinds, weights=(58, 16, 13, 13))[0](rng, folder)


def _shedding(rng: random.Random, folder: Path) -> TrialResult:
    """No hub, and an outbox that is too small: the node dies while it gives up what it has accepted."""
    with Stage(rng, folder, Size(nodes=1, seconds=240, rate_hz=500, channels=16, speed=80)) as stage:
        stage.configure(Settings(outbox="reserve_bytes = 0\nmax_bytes = 1000000"))
        stage.start()
        stage.ingests[0].kill()
        stage.node.kill()
        stage.failpoints["node"] = _armed(rng, rng.sample(SHED_PLACES, 2))
        stage.start_again(stage.node)
        stage.wait(lambda: len(stage.node.hits) >= 2 or stage.played(), 240, "the node has died while it shed")
        stage.ingests[0].start()
        stage.fault_is_over()
        return stage.settle()


def _delivering(rng: random.Random, folder: Path) -> TrialResult:
    kind = rng.choice(["mosquitto"] * 3 + ["amqtt"])
    with Stage(rng, folder, Size(nodes=2, seconds=400, speed=100), broker=kind) as stage:
        stage.configure(Settings())
        node = sorted(rng.sample(range(len(NODE_PLACES)), 3))
        stage.failpoints["node"] = _armed(rng, [NODE_PLACES[i] for i in node])
        stage.failpoints["ingest"] = _armed(rng, rng.sample(INGEST_PLACES, 3))
        wanted = len(stage.failpoints["node"]) + len(stage.failpoints["ingest"])
        stage.start()
        # Each is killed at a random moment and comes up armed; it dies at its place, comes up armed again, and so on.
        victims = ["node", "ingest", "broker"]
        rng.shuffle(victims)
        for victim in victims:
            stage.go_on(rng.uniform(0, 0.7))
            if victim == "broker":
                stage.broker.kill()
                stage.go_on(rng.uniform(0, 0.5))
                stage.broker.start()
            else:
                program = next(p for p in stage.programs if p.name == victim)
                program.kill()
                stage.start_again(program)
        # On a slow machine the recordings may be over before a program gets to its last place: the round tells.
        stage.wait(
            lambda: sum(len(p.hits) for p in stage.programs) >= wanted or stage.drained(), 240, "every place is reached"
        )
        stage.fault_is_over()
        return stage.settle()


def _armed(rng: random.Random, places: list[str]) -> list[str]:
    """The first may act at a later pass; when the others come up, one batch may hold all there is."""
    return [f"{place}=kill@{rng.randint(1, 4) if i == 0 else 1}" for i, place in enumerate(places)]


ROW: Final = Row(
    1,
    "kill -9 of node, broker, ingest, detector, matcher, aligner",
    trial,
    10.0,
    failpoints=NODE_PLACES + INGEST_PLACES + SHED_PLACES,
)
