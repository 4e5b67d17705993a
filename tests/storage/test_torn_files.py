"""Torn files are left out and told of; the rest of the lake reads as before."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from infomae_stream.errors import LakeError
from storage import query
from storage.lake import Lake
from storage.segments import live_files
from storage.torn_files import torn_seen, whole_files
from tests.faults.rows.torn_files import ROW
from tests.hub_records import START_NS, make_chunk


@pytest.mark.parametrize("seed", range(4))
def test_the_row_of_the_fault_matrix_holds(tmp_path: Path, seed: int) -> None:
    result = ROW.trial(random.Random(seed), tmp_path)
    assert result.passed and result.accepted > 20, result


def test_every_cut_is_seen_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lake = Lake(tmp_path / "lake")
    lake.append_chunks([make_chunk(1, n=5)], START_NS)
    (file,) = live_files(lake.table_path("chunks"), lake.version("chunks"))
    content = file.read_bytes()
    for at in range(0, len(content), 7):
        file.write_bytes(content[:at])
        assert whole_files("chunks", [file]) == []
    before = torn_seen()
    assert query.read_chunks(lake) == []
    assert torn_seen() == before
    assert [record.getMessage() for record in caplog.records] == ["torn_file_skipped"]
    file.write_bytes(content)
    assert len(query.read_chunks(lake)) == 1


def test_what_hides_records_is_never_left_out(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    lake.append_chunks([make_chunk(1), make_chunk(2)], START_NS)
    lake.quarantine([("s01", "s01-phone", "e1", 2)], "conflict")
    (file,) = live_files(lake.table_path("quarantine"), lake.version("quarantine"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(LakeError, match=r"must stay hidden would show.*restore"):
        query.read_chunks(Lake(tmp_path / "lake"))


def test_a_file_that_is_not_there_is_not_passed_over(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    lake.append_chunks([make_chunk(1)], START_NS)
    (file,) = live_files(lake.table_path("chunks"), lake.version("chunks"))
    file.unlink()
    with pytest.raises(LakeError):
        query.read_chunks(lake)
