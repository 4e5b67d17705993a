from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from infomae_stream.clock import ManualClock
from infomae_stream.errors import LakeError
from storage import query
from storage.compaction import compact
from storage.lake import Lake
from storage.learning_tables import append_run
from storage.lineage import pinned_versions
from storage.segments import live_files
from storage.vacuum import vacuum
from tests.hub_records import make_chunk, make_gap

DAY_S = 86_400
COMMITS = 130


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(time.time_ns())  # files have the machine's time


@pytest.fixture
def lake(tmp_path: Path, clock: ManualClock) -> Lake:
    lake = Lake(tmp_path / "lake", clock)
    for k in range(12):
        lake.append_chunks([make_chunk(k, n=4)], 7)
    return lake


def data_files(lake: Lake) -> set[str]:
    return {p.name for p in lake.table_path("chunks").rglob("part-*.parquet")}


def promoted(number: int, chunks: int, outcome: str = "promoted") -> dict[str, object]:
    run = {"run": number, "run_id": f"r{number}", "ended_ns": number, "outcome": outcome}
    return run | {"snapshot": {"tables": {"chunks": chunks}}}


def test_replaced_files_stay_for_the_grace_period_and_go_then(lake: Lake, clock: ManualClock) -> None:
    compact(lake)
    clock.advance(DAY_S / 2)
    assert vacuum(lake, grace_s=DAY_S).files == 0 and len(data_files(lake)) == 13
    clock.advance(DAY_S)
    assert vacuum(lake, grace_s=DAY_S, dry_run=True).files == 12 and len(data_files(lake)) == 13
    report = vacuum(lake, grace_s=DAY_S)
    assert (report.files, report.orphans) == (12, 0) and report.bytes > 0
    assert len(data_files(lake)) == 1 and len(query.read_chunks(lake)) == 12


def test_a_file_is_kept_as_long_as_a_version_of_the_grace_period_had_it(lake: Lake, clock: ManualClock) -> None:
    """Its own age does not count: a reader may have opened the version before the merge a second ago."""
    clock.advance(30 * DAY_S)
    compact(lake)
    assert vacuum(lake, grace_s=DAY_S).files == 0
    assert len(query.read_chunks(lake, version=12)) == 12


def test_versions_in_a_models_lineage_stay_readable(lake: Lake, clock: ManualClock) -> None:
    append_run(lake, promoted(1, 5))
    append_run(lake, promoted(2, 7, "not_promoted"))
    append_run(lake, promoted(3, 9))
    assert pinned_versions(lake) == {"chunks": (5, 9)}
    assert pinned_versions(lake, newest=1) == {"chunks": (9,)}
    compact(lake)
    clock.advance(2 * DAY_S)
    assert vacuum(lake).files == 3, "the last three commits are in no kept version"
    assert len(query.read_chunks(lake, version=5)) == 5 and len(query.read_chunks(lake, version=9)) == 9


def test_a_run_that_has_not_ended_pins_its_snapshot(lake: Lake, tmp_path: Path) -> None:
    for number, version in ((1, 4), (2, 6)):
        folder = tmp_path / "aligner" / "runs" / f"{number}"
        folder.mkdir(parents=True)
        (folder / "snapshot.json").write_text(json.dumps({"tables": {"chunks": version}}))
    append_run(lake, promoted(1, 4, "failed"))
    assert pinned_versions(lake, work_dir=tmp_path / "aligner") == {"chunks": (6,)}
    (folder / "snapshot.json").write_text("{")
    with pytest.raises(LakeError, match="a snapshot cannot be read"):
        vacuum(lake, work_dir=tmp_path / "aligner")


def test_orphans_and_strays_go_when_they_are_old_and_a_file_about_to_be_committed_stays(lake: Lake) -> None:
    folder = live_files(lake.table_path("chunks"), 1)[0].parent
    old, young = folder / "part-old.parquet", folder / "part-young.parquet"
    strays = [folder / ".part-x.parquet.1.tmp", lake.log("chunks").folder / ".00000000000000000013.json.1.tmp"]
    for path in (old, young, *strays):
        path.write_bytes(b"PAR1")
    past = time.time() - 2 * DAY_S
    for path in (old, *strays):
        os.utime(path, (past, past))
    report = vacuum(lake)
    assert (report.files, report.orphans, report.temporaries) == (1, 1, 2)
    assert young.exists() and not old.exists() and not any(path.exists() for path in strays)
    assert len(query.read_chunks(lake)) == 12


def test_the_log_is_cut_and_pinned_versions_keep_what_they_need(tmp_path: Path, clock: ManualClock) -> None:
    lake = Lake(tmp_path, clock)
    for k in range(COMMITS):
        lake.append_gaps([make_gap(k)], 7)
    compact(lake)
    clock.advance(2 * DAY_S)
    assert vacuum(lake, pins={"gaps": [77]}).log_files == 99, "0 to 99 without the pinned one"
    left = {p.name for p in lake.log("gaps").folder.iterdir()}
    assert f"{77:020d}.checkpoint.parquet" in left and f"{78:020d}.json" not in left and f"{0:020d}.json" not in left
    assert len(query.read_gaps(lake)) == COMMITS and len(query.read_gaps(lake, version=77)) == 77
    again = Lake(tmp_path, clock)
    assert again.append_gaps([make_gap(5), make_gap(COMMITS)], 8).written == 1
    assert len(query.read_gaps(Lake(tmp_path))) == COMMITS + 1
    # A reader of news that has slept all this time gets everything instead of an error.
    assert len(lake.added_files("gaps", 3, lake.version("gaps"))) == 2


def test_a_sleeping_writer_learns_what_it_missed_from_the_merged_files(lake: Lake, clock: ManualClock) -> None:
    sleeper = Lake(lake.path, clock)
    sleeper.known_identities()
    lake.append_chunks([make_chunk(40, n=4), make_chunk(41, n=4)], 7)
    compact(lake, everything=True)
    clock.advance(3 * DAY_S)
    vacuum(lake)
    assert sleeper.append_chunks([make_chunk(40, n=4), make_chunk(42, n=4)], 8).written == 1
    assert query.logical_identities(lake, "chunks")["copies"].to_pylist() == [1] * 15
