"""Any order of appends, copies, merges, retirements, vacuums and restarts: readers see exactly the logical rows."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from infomae_stream.clock import NS_PER_S, ManualClock
from storage import query
from storage.compaction import compact
from storage.lake import Lake
from storage.learning_tables import append_run
from storage.retention import RetentionPolicy, retire
from storage.rows import chunk_rows
from storage.schemas import TABLES
from storage.segments import write_segments
from storage.vacuum import vacuum
from tests.hub_records import START_NS, make_chunk

DAY_S = 86_400
SEQS = st.lists(st.integers(0, 40), min_size=1, max_size=6)


class Upkeep(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="upkeep-"))
        # Files have the machine's time: the clock starts there and runs ahead.
        self.clock = ManualClock(time.time_ns())
        self.lake = Lake(self.folder / "lake", self.clock)
        self.present: set[int] = set()
        self.retired: set[int] = set()
        self.quarantined: set[int] = set()
        self.models: dict[int, tuple[dict[str, int], set[int]]] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(seqs=SEQS)
    def append(self, seqs: list[int]) -> None:
        new = set(seqs) - self.present - self.retired - self.quarantined
        assert self.lake.append_chunks([make_chunk(s, n=4) for s in seqs], 7).written == len(new)
        self.present |= new

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def another_writer_does_not_look(self, data: st.DataObject) -> None:
        seqs = data.draw(st.lists(st.sampled_from(sorted(self.present)), min_size=1, max_size=4))
        log = self.lake.log("chunks")
        rows = chunk_rows([make_chunk(s, n=4) for s in seqs], 9)
        adds = write_segments(log.table, TABLES["chunks"], rows, self.clock.now_ns())
        assert log.try_commit(log.version() + 1, adds, self.clock.now_ns())

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def two_contents_come_under_one_identity(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(sorted(self.present)))
        committed = self.lake.append_chunks([make_chunk(seq, n=4, seed=seq + 1000)], 7)
        assert committed.conflicts == ((("s01", "s01-phone", "e1"), seq),)
        self.present.discard(seq)
        self.quarantined.add(seq)

    @rule(everything=st.booleans(), target_bytes=st.sampled_from([9_000, 30_000, 10**8]), fan_in=st.integers(2, 4))
    def merge(self, everything: bool, target_bytes: int, fan_in: int) -> None:
        copies = self.copies()
        report = compact(self.lake, target_bytes=target_bytes, fan_in=fan_in, everything=everything)
        assert report.conflicts == 0
        assert self.copies() == copies - report.duplicates_dropped

    @rule(before=st.integers(0, 40))
    def retire_by_age(self, before: int) -> None:
        limit_ns = START_NS + before * NS_PER_S + NS_PER_S // 2
        age_days = (self.clock.now_ns() - limit_ns) / NS_PER_S / DAY_S
        retire(self.lake, RetentionPolicy(max_age_days=age_days))
        gone = {s for s in self.present if s < before}
        self.retired |= gone
        self.present -= gone

    @rule()
    def promote_a_model(self) -> None:
        versions = self.lake.versions()
        number = len(self.models) + 1
        run = {"run": number, "run_id": f"r{number}", "ended_ns": number, "outcome": "promoted"}
        append_run(self.lake, run | {"snapshot": {"tables": versions}})
        self.models[number] = versions, set(self.present)

    @rule(days=st.integers(0, 3))
    def vacuum_after(self, days: int) -> None:
        self.clock.advance(days * DAY_S)
        vacuum(self.lake, grace_s=DAY_S)

    @rule()
    def restart(self) -> None:
        self.lake = Lake(self.folder / "lake", self.clock)

    def copies(self) -> int:
        return int(sum(query.logical_identities(self.lake, "chunks", quarantined=True)["copies"].to_pylist()))

    @invariant()
    def readers_see_the_logical_rows(self) -> None:
        read = query.read_chunks(self.lake)
        assert [c.seq for c in read] == sorted(self.present)
        assert all((c.samples_CN == make_chunk(c.seq, n=4).samples_CN).all() for c in read)

    @invariant()
    def models_find_what_they_learned_from(self) -> None:
        for versions, seqs in self.models.values():
            read = query.read_chunks(self.lake, version=versions["chunks"], quarantine_version=versions["quarantine"])
            assert [c.seq for c in read] == sorted(seqs)


Upkeep.TestCase.settings = settings(max_examples=8, stateful_step_count=12, deadline=None)
TestUpkeep = pytest.mark.slow(Upkeep.TestCase)
