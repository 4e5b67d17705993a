"""What finds the mutants: small, seeded checks of the suite. Each passes with the code as it is, or raises."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from collectors.hub.dead_letters import DeadLetters
from collectors.hub.ingest import Ingest
from collectors.uplink import Uplink
from infomae_stream.clock import NS_PER_S, ManualClock
from infomae_stream.node_config import MqttSettings
from infomae_stream.outbox import Outbox
from infomae_stream.session import MqttSession
from infomae_stream.types import ClockQuality
from infomae_stream.wire import decode_ack
from storage import query
from storage.delta_log import CHECKPOINT_EVERY, DeltaLog
from storage.lake import Lake
from storage.schemas import TABLES
from storage.segments import live_files
from tests.faults import power_calls
from tests.faults.power_files import STYLES, Disk, Harm, Name
from tests.faults.power_lake import LakeUnderPower
from tests.faults.power_outbox import SPEC, OutboxUnderPower
from tests.faults.processes import Program, wait_for
from tests.faults.stage import Settings, Size, Stage

SEEDS: Final = range(5)
_WORST: Final = ("nothing", "names")  # just after a promise, whatever was drawn before


def outbox_under_power(folder: Path, mutant: str = "") -> None:
    for seed in SEEDS:
        rng = random.Random(seed)
        node = OutboxUnderPower(folder / str(seed))
        try:
            for _ in range(20):
                live_as_a_node(node, rng)
            for style in _WORST:
                node.commit(2, 1)
                node.cut(node.disk.position, Harm(style, 512, seed))
        finally:
            node.close()


def live_as_a_node(node: OutboxUnderPower, rng: random.Random) -> None:
    """One thing that happens to an outbox: a commit, an ack, a purge, a restart, a kill, a power cut."""
    what = rng.choice(("commit",) * 5 + ("acknowledge",) * 2 + ("purge", "shed", "stop", "kill", "cut", "cut"))
    if what == "commit":
        node.commit(rng.randint(1, 4), rng.randint(0, 2), rng.choice((10, 1000, 20_000)))
    elif what == "acknowledge":
        node.acknowledge(rng.randint(1, max(1, node.outbox.last_seq())), node.outbox.last_seq())
    elif what == "purge":
        node.purge()
    elif what == "shed":
        node.shed()
    elif what == "stop":
        node.stop_and_start()
    elif what == "kill":
        node.kill()
    else:
        node.cut(_moment(node.disk, rng), Harm.drawn(rng))


def lake_under_power(folder: Path, mutant: str = "") -> None:
    for seed in SEEDS:
        rng = random.Random(seed)
        hub = LakeUnderPower(folder / str(seed))
        for _ in range(6):
            live_as_a_hub(hub, rng)
        for style in _WORST:
            hub.write(chunks=2, days=2)
            hub.cut(hub.disk.position, Harm(style, 512, seed))


def live_as_a_hub(hub: LakeUnderPower, rng: random.Random) -> None:
    """One thing that happens to a lake: a batch of one of two ingests, a quarantine, a kill, a power cut."""
    what = rng.choice(("write",) * 5 + ("quarantine", "tidy", "kill", "cut", "cut", "cut"))
    if what == "write":
        others = rng.randint(0, 2)
        hub.write(
            chunks=rng.randint(1, 4), gaps=others, detections=others, days=rng.randint(1, 3), writer=rng.randint(0, 1)
        )
    elif what == "quarantine":
        hub.quarantine(rng.randint(1, 20))
    elif what == "tidy":
        hub.tidy()
    elif what == "kill":
        hub.kill()
    else:
        hub.cut(_moment(hub.disk, rng), Harm.drawn(rng))


def _moment(disk: Disk, rng: random.Random) -> int:
    """Just after something was promised, or anywhere."""
    return disk.position if rng.random() < 0.4 else rng.randint(0, disk.position)


def append_run(lake: Lake, n: int, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Commit one row; `meanwhile` happens after the version was chosen and before the commit."""
    row = {"run_id": f"run{n}", "ended_ns": n, "outcome": "done", "body": "{}"}

    def build(_: int) -> pa.Table:
        meanwhile()
        return pa.Table.from_pylist([row], schema=TABLES["runs"].schema)

    lake.append("runs", build)


def checkpoints(folder: Path, mutant: str = "") -> None:
    """A cut around the writing of a checkpoint (which deltalake does not sync) leaves a table that opens and grows."""
    disk = Disk(folder / "disk")
    disk.root.mkdir(parents=True)
    with power_calls.recorded(lambda: disk):
        log = _opened_log(disk)
        for version in range(1, CHECKPOINT_EVERY + 1):
            before = disk.position
            log.try_commit(version, [_named_file(version)], version)
            log.checkpoint_quietly(version)
    assert any("checkpoint" in op.name for op in disk.journal[before:] if isinstance(op, Name)), "no checkpoint"
    for position in range(before, disk.position + 1):
        for style in ("names", "any"):
            after = disk.after_cut(position, Harm(style, 512, position), folder / f"{position}-{style}")
            found = _opened_log(after)
            assert len(live_files(found.table, found.version())) == found.version() >= CHECKPOINT_EVERY - 1


def _opened_log(disk: Disk) -> DeltaLog:
    """As the lake opens one."""
    log = DeltaLog(disk.root / "lake" / "runs")
    log.create(TABLES["runs"], 0)
    log.drop_torn_checkpoint()
    return log


def _named_file(version: int) -> dict[str, Any]:
    named = {"path": f"part-{version}.parquet", "partitionValues": {}, "size": 1, "dataChange": True}
    return {"add": named | {"modificationTime": version, "stats": '{"numRecords": 1}'}}


def two_writers(folder: Path, mutant: str = "") -> None:
    """Both chose the same version: both commits are there in the end."""
    lakes = Lake(folder / "lake"), Lake(folder / "lake")
    others = iter([lambda: append_run(lakes[1], 2)])
    append_run(lakes[0], 1, lambda: next(others, lambda: None)())
    assert lakes[0].version("runs") == 2, "one of two commits is missing"


def dead_letters(folder: Path, mutant: str = "") -> None:
    """A letter is there, whole and with its note, at every moment after `keep` returned."""
    disk = Disk(folder / "disk")
    disk.root.mkdir(parents=True)
    kept: list[tuple[int, bytes]] = []
    with power_calls.recorded(lambda: disk):
        letters = DeadLetters(disk.root / "lake" / "_dead_letters", 100_000)
        for n in range(3):
            letters.keep("infomae/v1/a/b/c/chunk", bytes([n]) * 1500, "cbor", "garbage", n)
            kept.append((disk.position, bytes([n]) * 1500))
    for position in range(disk.position + 1):
        for style in STYLES:
            after = folder / f"{position}-{style}" / "lake" / "_dead_letters"
            disk.after_cut(position, Harm(style, 512, position), after.parents[1])
            found = DeadLetters(after, 100_000)
            payloads = {path.read_bytes() for path in after.glob("*.bin")}
            assert {payload for at, payload in kept if at <= position} <= payloads <= {payload for _, payload in kept}
            assert len(found) == len(payloads) == len(list(after.glob("*.json")))


def delivery(folder: Path, mutant: str = "") -> None:
    """Every third record is lost on its first way, every other comes broken and whole: all arrive, none is refused."""
    clock = ManualClock()
    outbox = Outbox.open(folder / "outbox.sqlite", clock, max_bytes=10_000_000, reserve_bytes=0)
    lake = Lake(folder / "lake", clock)
    limits = {"commit_interval_s": 1.0, "commit_bytes": 1_000_000, "max_inflight_bytes": 10_000_000}
    ingest = Ingest(lake, DeadLetters(folder / "letters", 1_000_000), clock, **limits)
    uplink = Uplink(outbox, clock, max_inflight_bytes=1_000_000, resend_after_s=10.0)
    for n in range(12):
        outbox.put_chunk(SPEC, n * NS_PER_S, np.full((2, 100), n, np.int16), ClockQuality("test", 0, 1000, True))
    outbox.commit()
    refused: list[Any] = []
    for turn in range(4):
        for record in uplink.due():
            uplink.sent(record)
            if turn == 0 and record.seq % 3 == 0:
                continue
            if record.seq % 2 == 0:
                ingest.take(record.topic, record.payload[:-40])
            ingest.take(record.topic, record.payload)
        if ingest.inflight_bytes:
            for _, payload in ingest.commit().acks:
                refused += decode_ack(payload).refused
                uplink.handle_ack(payload)
        clock.advance(1000.0)
    assert not refused, f"refused for good, and good: {refused}"
    assert [c.seq for c in query.read_chunks(lake)] == list(range(1, 13)), "not everything arrived"
    outbox.close()


class _Launched(Program):
    """`infomae-stream <arguments>` with a mutant's fault in it; without one for ""."""

    def __init__(self, name: str, folder: Path, arguments: list[str], mutant: str) -> None:
        super().__init__(name, folder, arguments)
        if mutant:
            self._command = [sys.executable, "-m", "tests.faults.mutants.launch", mutant, "--", *arguments]


def hub_comes_late(folder: Path, mutant: str = "") -> None:
    """A node and a broker that has nobody to give the records to; then the hub comes, and gets them all."""
    with Stage(random.Random(1), folder, Size(nodes=1, seconds=40, speed=100)) as stage:
        stage.configure(Settings())
        stage.node = _Launched("node", folder, ["node", "collect", "--config", "node.toml"], mutant)
        stage.broker.start()
        watcher = MqttSession(MqttSettings(port=stage.broker.port), "watcher", subscriptions=[("infomae/v1/#", 1)])
        watcher.start()
        wait_for(lambda: watcher.connected, 20, "the watcher is connected")
        stage.node.start()
        seen = 0

        def given_to_the_broker() -> bool:
            """Twice for those that are still waiting: the broker has surely taken them once."""
            nonlocal seen
            seen += sum(m.topic.endswith("/chunk") for m in watcher.poll(0.0))
            (outbox,) = stage.waiting()
            return bool(outbox and outbox.played >= 4000 and (not outbox.records or seen >= 2 * outbox.last_seq))

        stage.programs = [stage.node]
        stage.wait(given_to_the_broker, 60, "the broker has taken all records")
        watcher.close()
        stage.programs = [stage.node, *stage.ingests]
        stage.ingests[0].start()
        _judge(stage)


def hub_dies_at_its_commit(folder: Path, mutant: str = "") -> None:
    """The ingest is killed just before its first commit, and started again."""
    with Stage(random.Random(1), folder, Size(nodes=1, seconds=40, speed=50)) as stage:
        stage.configure(Settings())
        Lake(stage.lake_path)  # so that the first commit is one of records
        ingest = _Launched("ingest", folder, ["hub", "ingest", "--config", "hub.toml"], mutant)
        stage.ingests = [ingest]
        stage.programs = [stage.node, ingest]
        stage.broker.start()
        ingest.start("lake.before_commit=kill@1")
        stage.node.start()
        stage.wait(lambda: ingest.hits, 60, "the ingest has died at its commit")
        _judge(stage)


def _judge(stage: Stage) -> None:
    result = stage.settle()
    assert result.passed, f"lost {result.lost}, doubled {result.logical_duplicates}, {result.failures[:3]}"
    assert result.accepted, "nothing was accepted: the check checks nothing"
