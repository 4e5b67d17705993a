"""A lake of a version before events: its table of detections takes new rows, and its old rows stay what they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from infomae_stream.types import Detection, Event
from storage import query
from storage.audit import audit
from storage.compaction import compact
from storage.delta_log import DeltaLog
from storage.lake import Lake
from storage.rows import detection_rows
from storage.schemas import TABLES, TableLayout
from storage.segments import write_segments
from storage.sql_console import run_query
from tests.hub_records import make_detection

TODAY = TABLES["detections"]
BEFORE: TableLayout = replace(
    TODAY, schema=pa.schema([field for field in TODAY.schema if field.name not in TODAY.added]), added=()
)
EVENT = Event(7, 0.9, 2, True, ("watch_imu",), {"phone_imu": 0.4}, 0.6, 0.42)


def make_event(seq: int) -> Detection:
    return replace(make_detection(seq), event=EVENT)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The folder of a lake whose detections 1 and 2 were committed before there were events."""
    table = tmp_path / "detections"
    log = DeltaLog(table)
    log.create(BEFORE, 1)
    rows = detection_rows([make_detection(1), make_detection(2)], 7).select(BEFORE.schema.names)
    assert log.try_commit(1, write_segments(table, BEFORE, rows, 1), 1)
    return tmp_path


def test_old_rows_are_read_before_anything_new_is_written(old: Path) -> None:
    lake = Lake(old)
    assert query.read_detections(lake) == [make_detection(1), make_detection(2)]
    answer = run_query(lake, "SELECT seq, windows, missing FROM detections ORDER BY seq")
    assert answer.rows == [(1, None, None), (2, None, None)]


def test_an_old_table_takes_new_rows_and_both_are_read(old: Path) -> None:
    lake = Lake(old)
    assert lake.append_detections([make_event(3), make_detection(4)], 9).written == 2
    want = [make_detection(1), make_detection(2), make_event(3), make_detection(4)]
    assert query.read_detections(lake) == want
    assert run_query(lake, "SELECT max(peak_score) FROM detections").rows == [(0.9,)]
    names = [field.name for field in DeltaTable(old / "detections").schema().fields]
    assert names == TODAY.schema.names, "for every reader of Delta tables"
    assert query.read_detections(Lake(old)) == want


def test_an_old_version_of_the_table_is_still_read(old: Path) -> None:
    lake = Lake(old)
    lake.append_detections([make_event(3)], 9)
    assert query.read_detections(lake, version=1) == [make_detection(1), make_detection(2)]


def test_the_columns_are_added_once(old: Path) -> None:
    assert [Lake(old).version("detections") for _ in range(3)] == [2, 2, 2]
    assert Lake(old.parent / "new").version("detections") == 0


def test_a_record_sent_again_after_the_hub_was_updated_is_no_conflict(old: Path) -> None:
    """The node may be as old as the hub was, or newer: then it has sent an event that the old hub did not know."""
    lake = Lake(old)
    committed = lake.append_detections([make_detection(1), make_event(2)], 9)
    assert (committed.written, committed.duplicates, committed.conflicts) == (0, 2, ())
    assert len(query.read_detections(lake)) == 2
    other = replace(make_event(2), label="standing")
    assert [identity[1] for identity in lake.append_detections([other], 9).conflicts] == [2]


def test_merging_old_and_new_files_keeps_every_row(old: Path) -> None:
    lake = Lake(old)
    for seq in range(3, 9):
        lake.append_detections([make_event(seq)], 9)
    want = query.read_detections(lake)
    compact(lake, everything=True)
    assert query.read_detections(lake) == want and len(want) == 8
    assert len(DeltaTable(old / "detections").file_uris()) == 1


def test_an_audit_of_old_and_new_files_finds_nothing(old: Path) -> None:
    lake = Lake(old)
    lake.append_detections([make_event(3)], 9)
    assert audit(lake).findings == []
