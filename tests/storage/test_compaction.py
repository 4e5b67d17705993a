from __future__ import annotations

import os
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from infomae_stream.errors import LakeError
from storage import query
from storage.compaction import compact
from storage.lake import Lake
from storage.learning_tables import append_labels
from storage.log_files import live_adds, replace_files
from storage.rows import LabelInterval, chunk_rows
from storage.schemas import TABLES
from storage.segments import live_files, write_segments
from tests.hub_records import START_NS, make_chunk, make_detection, make_gap, same_chunk
from tests.waiting import wait_until

S = 1_000_000_000


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Twenty commits of two nodes each."""
    lake = Lake(tmp_path / "lake")
    for k in range(20):
        lake.append_chunks([make_chunk(k, node=f"s01-{name}", n=10) for name in ("watch", "phone")], 7)
    return lake


def files(lake: Lake, table: str = "chunks") -> list[Path]:
    return live_files(lake.table_path(table), lake.version(table))


def careless_commit(lake: Lake, *seqs: int, seed: int | None = None) -> None:
    """What a writer that does not look leaves behind."""
    log = lake.log("chunks")
    rows = chunk_rows([make_chunk(s, n=10, seed=seed) for s in seqs], 8)
    assert log.try_commit(log.version() + 1, write_segments(log.table, TABLES["chunks"], rows, 8), 8)


def test_many_files_become_one_and_every_read_stays_as_it_was(lake: Lake) -> None:
    before, version = query.read_chunks(lake), lake.version("chunks")
    report = compact(lake)
    assert (report.files_before, report.files_after, report.merges) == (20, 1, 1)
    after = query.read_chunks(lake)
    assert len(after) == 40 and all(same_chunk(a, b) for a, b in zip(before, after, strict=True))
    assert len(query.read_chunks(lake, version=version)) == 40, "and the version before it too"
    assert DeltaTable(lake.table_path("chunks")).to_pyarrow_table().num_rows == 40, "deltalake reads the same"


def test_a_merged_file_is_sorted_and_its_row_groups_prune(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    for k in range(4):
        lake.append_chunks([make_chunk(4 * i + k, node=f"n{i % 2}", n=700) for i in range(150)], 7)
    compact(lake, everything=True)
    (file,) = files(lake)
    metadata = pq.read_metadata(file)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [128] * 4 + [88]
    rows = pq.ParquetFile(file).read(["node", "start_ns"]).to_pylist()
    assert rows == sorted(rows, key=lambda r: (r["node"], r["start_ns"]))
    start = pq.ParquetFile(file).schema_arrow.names.index("start_ns")
    bounds = [metadata.row_group(i).column(start).statistics for i in range(2)]
    assert bounds[0].max < bounds[1].min, "one stream's groups follow each other in time"
    (add,) = live_adds(lake.log("chunks"), TABLES["chunks"], lake.version("chunks"))
    assert (add.rows, add.least["seq"], add.greatest["seq"]) == (600, 0, 599)


def test_a_merge_reads_each_batch_from_where_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tiny batches every output row group is gathered apart, across files that overlap in time."""
    monkeypatch.setattr("storage.merge._BATCH_BYTES", 1)
    monkeypatch.setattr("storage.merge._GROUP_BYTES", 1)
    lake = Lake(tmp_path)
    for k in range(3):
        lake.append_chunks([make_chunk(3 * i + k, n=2) for i in range(200)], 7)
    before = query.read_chunks(lake)
    compact(lake, everything=True)
    after = query.read_chunks(lake)
    assert len(files(lake)) == 1 and len(after) == 600
    assert all(same_chunk(a, b) for a, b in zip(before, after, strict=True))


def test_what_is_new_and_who_is_known_do_not_change(lake: Lake) -> None:
    reader = Lake(lake.path)
    known = reader.known_identities().outboxes()
    before = lake.version("chunks")
    compact(lake)
    assert reader.added_files("chunks", before, lake.version("chunks")) == []
    assert query.chunk_ranges_since(reader, before, lake.version("chunks")) == []
    assert len(query.chunk_ranges_since(reader, -1, lake.version("chunks"))) == 40, "each a tenth of a second"
    assert reader.known_identities().outboxes() == known == Lake(lake.path).known_identities().outboxes()
    assert lake.append_chunks([make_chunk(3, node="s01-phone", n=10)], 8).written == 0


def test_copies_are_dropped_and_other_contents_stay_as_evidence(lake: Lake) -> None:
    careless_commit(lake, 3, 4)
    careless_commit(lake, 5, seed=99)
    lake.quarantine([("s01", "s01-phone", "e1", 5)], "conflict")
    assert compact(lake, everything=True).duplicates_dropped == 2
    stored = query.logical_identities(lake, "chunks", quarantined=True)
    assert set(stored["copies"].to_pylist()) == {1} and stored.num_rows == 41
    assert sum(stored["quarantined"].to_pylist()) == 2


def test_every_table_is_merged_without_losing_a_row(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    for k in range(9):
        lake.commit_batch([], [make_gap(3 * k)], [make_detection(3 * k + 1)], 7)
        append_labels(lake, [LabelInterval("s01", "s01-phone", START_NS + k * S, START_NS + k * S + S, "walking")])
        lake.quarantine([("s01", "s01-phone", "e1", 3 * k + 2)], "conflict")
    compact(lake, everything=True)
    assert len(query.read_gaps(lake)) == len(query.read_detections(lake)) == len(query.read_labels(lake)) == 9
    assert {len(files(lake, name)) for name in ("gaps", "detections", "labels", "quarantine")} == {1}
    assert len(Lake(tmp_path).known_identities().outboxes()["s01", "s01-phone", "e1"]) == 1


def test_bytes_are_written_again_a_bounded_number_of_times(tmp_path: Path) -> None:
    """Levels: the cost of compaction grows with what came in, not with what is there."""
    lake = Lake(tmp_path)
    written = appended = 0
    for k in range(40):
        lake.append_chunks([make_chunk(k, n=500)], 7)
        appended += sum(f.stat().st_size for f in lake.added_files("chunks", k, k + 1))
        written += compact(lake, tables=["chunks"], fan_in=4).bytes_written
    assert written / appended < 3, "log4(40) levels"
    assert len(files(lake)) <= 3 * 3


def test_a_file_of_the_target_size_is_left_alone(lake: Lake) -> None:
    compact(lake, everything=True)
    (big,) = files(lake)
    size = big.stat().st_size
    for k in range(30, 40):
        lake.append_chunks([make_chunk(k, n=10)], 7)
    compact(lake, target_bytes=2 * size - 10, fan_in=2, everything=True)
    assert big in files(lake)
    assert compact(lake, target_bytes=2 * size - 10, fan_in=2, everything=True).merges == 0


def test_appends_that_came_meanwhile_do_not_matter_and_a_merge_that_came_first_wins(lake: Lake) -> None:
    log, version = lake.log("chunks"), lake.version("chunks")
    group = live_adds(log, TABLES["chunks"], version)
    lake.append_chunks([make_chunk(50, n=10)], 7)
    removes = [file.remove_action(8, data_change=False) for file in group[:1]]
    assert replace_files(log, version, group[:1], removes, 8, "OPTIMIZE") == version + 2
    assert replace_files(log, version, group[:2], removes, 8, "OPTIMIZE") is None
    assert lake.version("chunks") == version + 2


def test_writers_and_two_compactors_at_once_keep_everything_once(tmp_path: Path) -> None:
    Lake(tmp_path)
    stop, failures, reports = threading.Event(), [], []

    def write(node: str) -> None:
        try:
            lake = Lake(tmp_path)
            for k in range(25):
                lake.append_chunks([make_chunk(k, node=node, n=4)], 7)
        except (LakeError, OSError) as e:
            failures.append(e)

    def keep() -> None:
        try:
            lake = Lake(tmp_path)
            while not stop.is_set():
                reports.append(compact(lake, tables=["chunks"], fan_in=2))
        except (LakeError, OSError) as e:
            failures.append(e)

    writers = [threading.Thread(target=write, args=(node,)) for node in ("a", "b")]
    keepers = [threading.Thread(target=keep) for _ in range(2)]
    for thread in (*writers, *keepers):
        thread.start()
    try:
        for thread in writers:
            thread.join()
        # Who merges may not have had a turn yet; what is left to merge is left for that.
        wait_until(lambda: failures or any(r.merges for r in reports), what="a merge")
    finally:
        stop.set()
        for thread in keepers:
            thread.join()
    assert failures == []
    stored = query.logical_identities(Lake(tmp_path), "chunks")
    assert stored.num_rows == 50 and set(stored["copies"].to_pylist()) == {1}
    unnamed = {p for p in (tmp_path / "chunks").rglob("part-*.parquet")} - set(
        Lake(tmp_path).added_files("chunks", 0, Lake(tmp_path).version("chunks"))
    )
    assert unnamed >= set(files(Lake(tmp_path))), "a merge that lost took its file away"


def test_a_merge_that_the_disk_refuses_leaves_no_file(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(lake.table_path("chunks").rglob("part-*"))

    real = os.fsync

    def full(fd: int) -> None:
        if "/part-" in os.readlink(f"/proc/self/fd/{fd}").replace("/.part-", "/part-"):
            raise OSError(28, "No space left on device")
        real(fd)

    with monkeypatch.context() as m:
        m.setattr("os.fsync", full)
        with pytest.raises(LakeError, match="No space left"):
            compact(lake)
    left = [p for p in lake.table_path("chunks").rglob("*") if p.is_file() and "_delta_log" not in p.parts]
    assert sorted(left) == before
    assert compact(lake).merges == 1


def test_the_same_identity_with_other_bytes_from_two_writers_is_in_quarantine(tmp_path: Path) -> None:
    one, two = Lake(tmp_path), Lake(tmp_path)
    two.known_identities()  # before the other's commit: as an ingest that judged its batch already
    one.append_chunks([make_chunk(1), make_chunk(2)], 7)
    committed = two.append_chunks([make_chunk(1, seed=99), make_chunk(2), make_chunk(3)], 7)
    assert committed.conflicts == ((("s01", "s01-phone", "e1"), 1),)
    assert (committed.written, committed.duplicates) == (1, 2)
    assert [c.seq for c in query.read_chunks(one)] == [2, 3]
    again = two.append_chunks([make_chunk(1, seed=99)], 8)
    assert again.conflicts == committed.conflicts and two.version("quarantine") == 1, "told again, written down once"


def test_an_old_version_with_its_quarantine_does_not_change(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.append_chunks([make_chunk(1), make_chunk(2)], 7)
    then = lake.versions()
    lake.quarantine([("s01", "s01-phone", "e1", 1)], "conflict")
    old = query.read_chunks(lake, version=then["chunks"], quarantine_version=then["quarantine"])
    assert [c.seq for c in old] == [1, 2]
    assert [c.seq for c in query.read_chunks(lake)] == [2]
