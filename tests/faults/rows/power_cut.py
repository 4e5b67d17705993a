"""Row 9: the power goes, at the node and at the hub, on the model of a disk (`power_files`).

The real outbox, uplink, ingest and lake in one process; messages and acks get lost on their way. A machine is never
cut back to before what another machine has heard of it: that is the past.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Final

from collectors.hub.dead_letters import DeadLetters
from collectors.hub.ingest import Ingest
from collectors.uplink import Uplink
from infomae_stream.clock import ManualClock
from infomae_stream.errors import InfomaeError
from storage.lake import Lake
from storage.verify import compare
from tests.faults import power_calls, power_sqlite
from tests.faults.mutants.checks import live_as_a_hub
from tests.faults.power_files import Disk, Harm
from tests.faults.power_lake import LakeUnderPower
from tests.faults.power_outbox import STREAM, OutboxUnderPower
from tests.faults.trial import Row, TrialResult

_RESEND_S: Final = 10.0
_TURNS: Final = 14
_DRAIN_TURNS: Final = 20


class _Hub:
    """Ingest and lake; `heard` is the position of the last ack that reached the node."""

    def __init__(self, folder: Path, clock: ManualClock) -> None:
        self._folder, self._clock, self._generation = folder, clock, 0
        self.heard = 0
        self.disk = Disk(folder / "0")
        self.disk.root.mkdir(parents=True)
        self._start()

    def _start(self) -> None:
        with power_calls.recorded(lambda: self.disk):
            self.lake = Lake(self.disk.root / "srv" / "lake", self._clock)
            letters = DeadLetters(self.disk.root / "srv" / "lake" / "_dead_letters", 1_000_000)
            self._ingest = Ingest(
                self.lake,
                letters,
                self._clock,
                commit_interval_s=1.0,
                commit_bytes=1_000_000,
                max_inflight_bytes=10_000_000,
            )

    def take_and_commit(self, messages: list[tuple[str, bytes]]) -> list[bytes]:
        """The acks for it."""
        with power_calls.recorded(lambda: self.disk):
            for topic, payload in messages:
                self._ingest.take(topic, payload)
            return [payload for _, payload in self._ingest.commit().acks] if messages else []

    def cut(self, rng: random.Random) -> None:
        self._generation += 1
        position = rng.randint(self.heard, self.disk.position)
        self.disk = self.disk.after_cut(position, Harm.drawn(rng), self._folder / str(self._generation))
        self.heard = 0
        self._start()


def trial(rng: random.Random, folder: Path) -> TrialResult:
    node = OutboxUnderPower(folder / "node")
    try:
        hub = _Hub(folder / "hub", node.clock)
        _live(rng, node, hub)
        lake = LakeUnderPower(folder / "lake")
        for _ in range(4):
            live_as_a_hub(lake, rng)
        return _judge(folder / "truth", node, hub)
    except (AssertionError, InfomaeError) as e:
        return TrialResult(accepted=len(node.accepted()), lost=0, logical_duplicates=0, failures=(str(e),))
    finally:
        node.close()


def _judge(truth: Path, node: OutboxUnderPower, hub: _Hub) -> TrialResult:
    truth.mkdir()
    lines = [{**asdict(a), "site": STREAM.site, "node": STREAM.node} for a in node.accepted()]
    (truth / "s01-phone.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = compare(truth, hub.lake)
    unexpected = f"{found.unexpected} records in the lake that the node never accepted"
    return TrialResult(
        accepted=found.accepted,
        lost=found.lost,
        logical_duplicates=found.logical_duplicates,
        physical_duplicates=found.physical_duplicates,
        failures=(unexpected,) if found.unexpected else (),
    )


def _live(rng: random.Random, node: OutboxUnderPower, hub: _Hub) -> None:
    uplink, told = _uplink(node), 0  # told: the node's position when it last published
    for turn in range(_TURNS + _DRAIN_TURNS):
        draining = turn >= _TURNS
        if draining and not node.outbox.unacked_bytes():
            return
        what = "deliver" if draining else rng.choice(("commit", "commit", "deliver", "deliver", "purge", "node", "hub"))
        if what == "commit":
            node.commit(rng.randint(1, 4), rng.randint(0, 2), rng.choice((10, 1000)))
        elif what == "deliver":
            told = _deliver(rng, node, hub, uplink, losses=0.0 if draining else 0.3)
        elif what == "purge":
            node.purge()
        elif what == "hub":
            hub.cut(rng)
        else:
            node.cut(rng.randint(told, node.disk.position), Harm.drawn(rng))
            uplink, told = _uplink(node), 0
    raise AssertionError(f"{node.outbox.unacked_bytes()} bytes wait for ever")


def _deliver(rng: random.Random, node: OutboxUnderPower, hub: _Hub, uplink: Uplink, losses: float) -> int:
    """Everything that is due goes to the hub and its acks come back, but for what gets lost."""
    node.clock.advance(100 * _RESEND_S)
    messages = []
    for record in uplink.due():
        uplink.sent(record)
        if rng.random() >= losses:
            messages.append((record.topic, record.payload))
    told = node.disk.position
    for ack in hub.take_and_commit(messages):
        if rng.random() >= losses:
            hub.heard = hub.disk.position
            node.hear(ack, uplink.handle_ack)
    if rng.random() >= losses:
        node.write_acks()
    return told


def _uplink(node: OutboxUnderPower) -> Uplink:
    return Uplink(node.outbox, node.clock, max_inflight_bytes=1_000_000, resend_after_s=_RESEND_S)


ROW: Final = Row(9, "power cut: lost, torn and reordered writes", trial, 0.7, missing=power_sqlite.missing)
