"""One broker, one `node collect`, one or more `hub ingest` and a lake in a folder: what a fault is done to, and judged.

The recordings that the nodes play are known beforehand, so the judgement has two independent halves: the truth logs
against the lake (storage.verify), and the samples of the recordings against the lake.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final

from infomae_stream.errors import LakeError
from storage import query
from storage.lake import Lake
from storage.verify import Verification, compare
from tests.brokers import Broker
from tests.faults.played import START, Played, Size, random_recording
from tests.faults.processes import Program, Stuck, wait_for
from tests.faults.trial import TrialResult

SETTLE_S: Final = 180.0
# What the processes take with small settings and no fault, and some more.
NODE_BYTES: Final = 120_000_000
INGEST_BYTES: Final = 260_000_000
_MEASURE_S: Final = 0.25
_MOST_RESTARTS: Final = 40


@dataclass
class Settings:
    """Lines of TOML beside those that every trial has. state, lake: folders, where they are not the trial's own.

    source: what the nodes' recordings are played as. keep_s: how long the outboxes keep what is acknowledged.
    """

    mqtt: str = ""
    source: str = ""
    detect: str = "enabled = false"
    keep_s: float = 0.0
    outbox: str = ""
    uplink: str = ""
    ingest: str = ""
    node_port: int = 0
    ingest_port: int = 0
    state: str = "state"
    lake: str = "lake"
    ingests: int = 1


@dataclass(frozen=True, slots=True)
class Waiting:
    """Of one outbox: records without ack, the oldest of them, the newest record, how much has been played."""

    records: int
    oldest_seq: int
    last_seq: int
    played: int


class Stage:
    """`configure`, `start`, do the fault, `fault_is_over`, `settle`. Leaving it ends every process.

    failures: what went wrong so far, in words; a trial adds its own. A program that ends unasked is started again, as
    its supervisor would; that is a failure, but for a failpoint's kill and for programs named in `may_exit`.
    """

    def __init__(
        self,
        rng: random.Random,
        folder: Path,
        size: Size | None = None,
        broker: str = "mosquitto",
        broker_extra: str = "",
    ) -> None:
        self.rng, self.folder = rng, folder
        self.size = size or Size()
        self.failures: list[str] = []
        self.recovery_s = 0.0
        self.broker = Broker(broker, folder, broker_extra)
        self.recordings: list[Played] = []
        for n in range(self.size.nodes):
            site = f"s{n + 1:02}"
            made = random_recording(rng.getrandbits(32), site, f"{site}-mic", self.size)
            made.write(folder / f"{made.node}.wav")
            self.recordings.append(made)
        self.node = Program("node", folder, ["node", "collect", "--config", "node.toml"])
        self.ingests: list[Program] = []
        self.programs = [self.node]
        self.settings = Settings()
        self.may_exit: set[str] = set()
        self.logging_may_fail = False  # a program whose log cannot be written says so with a traceback of its own
        self.failpoints: dict[
            str, list[str]
        ] = {}  # of a program: with what to arm its next starts, one after the other
        self._peak_disk_bytes = 0
        self._measure_at = 0.0
        self._over_at = 0.0
        self._accepted_by_then: list[int] = []

    def configure(self, settings: Settings) -> None:
        self.settings = settings
        node_port, ingest_port = (p or self.broker.port for p in (settings.node_port, settings.ingest_port))
        nodes = "".join(
            f'[[nodes]]\nsite = "{r.site}"\nnode = "{r.node}"\nclock = {{ source = "declared" }}\n'
            f'[[nodes.sources]]\ntype = "replay"\npath = "{r.node}.wav"\nstream = "{r.stream}"\n'
            f"start = {START}\nspeed = {self.size.speed}\n{settings.source}\n"
            for r in self.recordings
        )
        self._write(
            "node.toml",
            f"state_dir = '{settings.state}'\ntruth_log_dir = 'truth'\n[detect]\n{settings.detect}\n"
            f"[mqtt]\nport = {node_port}\n{settings.mqtt}\n[metrics]\ncollect_port = 0\ndetect_port = 0\n"
            f"[outbox]\ncommit_interval_s = 0.1\nkeep_s = {settings.keep_s}\n{settings.outbox or 'reserve_bytes = 0'}\n"
            f"[uplink]\nmax_bytes_per_s = 0\nstart_jitter_s = 0.0\n{settings.uplink or 'resend_after_s = 0.5'}\n"
            f"{nodes}",
        )
        self._write(
            "hub.toml",
            f"[mqtt]\nport = {ingest_port}\n{settings.mqtt}\n[lake]\npath = '{settings.lake}'\n"
            f"[metrics]\ningest_port = 0\n[ingest]\ncommit_interval_s = 0.1\n{settings.ingest}\n"
            "[matcher]\nmodalities = ['phone_imu', 'watch_imu']\n[align]\nclasses = ['walking', 'standing']\n",
        )
        names = ["ingest", *(f"ingest{i}" for i in range(2, settings.ingests + 1))]
        self.ingests = [Program(n, self.folder, ["hub", "ingest", "--config", "hub.toml"]) for n in names]
        self.programs = [self.node, *self.ingests]

    def _write(self, name: str, toml: str) -> None:
        (self.folder / name).write_text(toml, encoding="utf-8")

    # -- going on ------------------------------------------------------------------------------------------------------

    @property
    def lake_path(self) -> Path:
        return self.folder / self.settings.lake

    def outbox_path(self, recording: Played) -> Path:
        return self.folder / self.settings.state / recording.site / recording.node / "outbox.sqlite"

    def start(self, *, armed: bool = False) -> None:
        """Start everything and wait until it runs; `armed`: with the first of the planned failpoints."""
        self.broker.start()
        for program in self.programs:
            if armed:
                self.start_again(program)
            else:
                program.start()
        # Before that nothing is under way, and a fault would hit nothing.
        self.wait(lambda: all(w is not None for w in self.waiting()) and self.ready(), 180, "the programs have started")

    def ready(self) -> bool:
        """Every program has come up since it was started last."""
        return all(p.up for p in self.programs)

    def wait(self, done: Callable[[], object], timeout_s: float, what: str) -> None:
        """wait_for, looking after the programs meanwhile."""

        def look() -> object:
            self.watch()
            return done()

        wait_for(look, timeout_s, what)

    def go_on(self, seconds: float) -> None:
        """Let the programs work: a random moment for a fault, or its length; nothing is judged by it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.watch()
            time.sleep(min(0.03, max(until - time.monotonic(), 0)))

    def watch(self) -> None:
        """Take down memory and disk, and start again what has ended."""
        now = time.monotonic()
        if now >= self._measure_at:
            self._measure_at = now + _MEASURE_S
            for program in self.programs:
                program.weigh()
            self._peak_disk_bytes = max(self._peak_disk_bytes, self.disk_bytes())
        for program in self.programs:
            if not program.ended and not program.running:
                self._raise_again(program)

    def _raise_again(self, program: Program) -> None:
        hits = len(program.hits)
        code = program.exit_code()
        if len(program.hits) == hits and program.name not in self.may_exit:
            self.failures.append(f"{program.name} ended by itself with {code}")
        if program.starts > _MOST_RESTARTS:
            raise Stuck(f"{program.name} ends again and again, the last time with {code}")
        self.start_again(program)

    def start_again(self, program: Program) -> None:
        """Start a program that has ended, armed with the next of its failpoints if there is one."""
        planned = self.failpoints.get(program.name)
        program.start(planned.pop(0) if planned else "")

    def disk_bytes(self) -> int:
        """Outboxes, lake and dead letters."""
        return sum(_bytes_below(self.folder / name) for name in (self.settings.state, self.settings.lake))

    def waiting(self) -> list[Waiting | None]:
        """Of every outbox; None where it cannot be read now."""
        return [look_into(self.outbox_path(r), r.stream) for r in self.recordings]

    def accepted(self) -> int:
        """Records so far, of all nodes."""
        return sum(w.last_seq for w in self.waiting() if w is not None)

    # -- the end -------------------------------------------------------------------------------------------------------

    def fault_is_over(self) -> None:
        """From here the recovery counts: until everything that had been accepted by now is acknowledged."""
        self._over_at = time.monotonic()
        self._accepted_by_then = [0 if w is None else w.last_seq for w in self.waiting()]

    def _recovered(self) -> bool:
        return all(
            w is not None and (not w.records or w.oldest_seq > last)
            for w, last in zip(self.waiting(), self._accepted_by_then, strict=True)
        )

    def played(self) -> bool:
        """Every recording is over, and what was accepted of it committed."""
        # After shedding the position stays behind, as only accepted samples move it.
        return "sources_finished" in self.node.log_since_start() or all(
            w is not None and w.played >= r.n_samples for w, r in zip(self.waiting(), self.recordings, strict=True)
        )

    def drained(self) -> bool:
        """Everything has been played, accepted and acknowledged."""
        return all(w is not None and not w.records for w in self.waiting()) and self.played()

    def settle(self, timeout_s: float = SETTLE_S) -> TrialResult:
        """Wait until nothing waits any more, end the programs, judge."""
        try:
            if self._over_at:
                self.wait(self._recovered, timeout_s, "what was accepted before the fault's end is acknowledged")
                self.recovery_s = time.monotonic() - self._over_at
            self.wait(self.drained, timeout_s, "everything was played and acknowledged")
            self.wait(self.ready, timeout_s, "the programs run")
        except Stuck as e:
            self.failures.append(f"{e}; outboxes: {self.waiting()}")
        self._measure_at = 0.0
        self.watch()
        for program in self.programs:
            try:
                if (code := program.stop()) != 0:
                    self.failures.append(f"{program.name} ended with {code} after SIGTERM")
            except Stuck as e:
                self.failures.append(str(e))
        return self.judge()

    def within_memory(self, result: TrialResult, more_bytes: int = 0) -> TrialResult:
        """`result`, failed when a program was larger than it is without a fault and `more_bytes`."""
        limits = {"node": NODE_BYTES} | {ingest.name: INGEST_BYTES for ingest in self.ingests}
        wrong = [
            f"{p.name} took {p.peak_memory_bytes} bytes of memory, {limits[p.name] + more_bytes} are allowed"
            for p in self.programs
            if p.peak_memory_bytes > limits[p.name] + more_bytes
        ]
        return replace(result, failures=(*result.failures, *wrong))

    def judge(self, allowed_unexpected: int = 0) -> TrialResult:
        """The truth logs and the recordings against the lake, now."""
        try:
            lake = Lake(self.lake_path)
            found = compare(self.folder / "truth", lake)
            chunks, gaps = query.read_chunks(lake), query.read_gaps(lake)
        except LakeError as e:
            return self._result(Verification(0, 0, 0, 0, 0, 0, 0, 0, ()), [f"the lake cannot be read: {e}"])
        wrong = [text for r in self.recordings for text in r.differences(chunks, gaps)]
        if found.unexpected > allowed_unexpected:
            wrong.append(f"{found.unexpected} records in the lake that no node accepted")
        if found.quarantined:
            wrong.append(f"{found.quarantined} records quarantined")
        if not found.accepted:
            wrong.append("nothing was accepted: the trial tried nothing")
        for program in self.programs:
            log = program.log()
            if log.count("Traceback") > self.logging_may_fail * log.count("--- Logging error ---"):
                wrong.append(f"a traceback in {program.log_path}")
        return self._result(found, wrong + list(found.examples if not found.passed else ()))

    def _result(self, found: Verification, wrong: list[str]) -> TrialResult:
        return TrialResult(
            accepted=found.accepted,
            lost=found.lost,
            logical_duplicates=found.logical_duplicates,
            physical_duplicates=found.physical_duplicates,
            shed=getattr(found, "shed", 0),
            peak_memory_bytes=max(p.peak_memory_bytes for p in self.programs),
            peak_disk_bytes=self._peak_disk_bytes,
            recovery_s=self.recovery_s,
            failures=(*self.failures, *wrong),
            hits=tuple(hit for p in self.programs for hit in p.hits),
        )

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for program in self.programs:
            program.kill()
        if self.broker.process is not None:
            self.broker.kill()


def look_into(path: Path, stream: str) -> Waiting | None:
    """What waits in an outbox; None when it cannot be read now."""
    # For a moment and read-only: a connection that stayed would spare a killed node its recovery.
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1)) as db:
            records, oldest = db.execute(
                "SELECT count(*), coalesce(min(seq), 0) FROM records WHERE acked = 0"
            ).fetchone()
            last = db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'records'").fetchone()[0]
            sql = "SELECT json_extract(value, '$.offset') FROM state WHERE key = ?"
            played = db.execute(sql, (f"position/{stream}",)).fetchone()
    except sqlite3.Error:
        return None
    return Waiting(records, oldest, last, played[0] if played else 0)


def _bytes_below(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
    return total
