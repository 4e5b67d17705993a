from __future__ import annotations

import json
from pathlib import Path

from infomae_stream.types import Chunk, Detection, Gap, StreamId
from storage.lake import Lake
from storage.rows import chunk_rows, record_crc32
from storage.schemas import TABLES
from storage.segments import write_segments
from storage.verify import compare
from tests.hub_records import make_chunk, make_detection, make_gap


def log_truth(folder: Path, *records: Chunk | Gap | Detection) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / "s01-phone.jsonl").open("a") as f:
        for record in records:
            line = {"site": "s01", "node": "s01-phone", "epoch": record.epoch, "seq": record.seq}
            line |= {"kind": type(record).__name__.lower(), "start_ns": record.start_ns, "n_samples": 100, "crc32": 0}
            line["stream"] = "" if isinstance(record, Detection) else "imu"
            if isinstance(record, Chunk):
                line["crc32"] = record_crc32(record)
            f.write(json.dumps(line) + "\n")


def test_equal_sides_pass(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    lake.commit_batch([make_chunk(1), make_chunk(2)], [make_gap(3)], [make_detection(4)], 7)
    log_truth(tmp_path / "truth", make_chunk(1), make_chunk(2), make_gap(3), make_detection(4))
    log_truth(tmp_path / "truth", make_chunk(2))  # a node that logs again after a restart
    found = compare(tmp_path / "truth", lake)
    assert found.passed
    assert (found.accepted, found.in_lake, found.examples) == (4, 4, ())


def test_a_lost_a_changed_and_an_unexpected_record_are_told(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    lake.commit_batch([make_chunk(1), make_chunk(2, seed=99), make_chunk(5)], [], [], 7)
    log_truth(tmp_path / "truth", make_chunk(1), make_chunk(2), make_gap(3), make_detection(4))
    found = compare(tmp_path / "truth", lake)
    assert not found.passed
    assert (found.accepted, found.lost, found.unexpected) == (4, 3, 2)
    assert any("gap s01 s01-phone imu e1 3" in example for example in found.examples)


def test_the_same_samples_under_two_identities_are_a_logical_duplicate(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    one = make_chunk(1)
    other = Chunk(one.spec, "e2", 9, one.start_ns, one.samples_CN, one.clock)
    lake.append_chunks([one, other], 7)
    log_truth(tmp_path / "truth", one, other)
    assert compare(tmp_path / "truth", lake).logical_duplicates == 1


def test_copies_on_disk_are_physical_duplicates_and_two_contents_logical_ones(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    lake.append_chunks([make_chunk(1), make_chunk(2)], 7)
    # A writer that does not look: the lake itself cannot be brought to do this.
    log = lake._logs["chunks"]
    rows = chunk_rows([make_chunk(1), make_chunk(2, seed=99)], 8)
    assert log.try_commit(2, write_segments(log.table, TABLES["chunks"], rows, 8), 8)
    log_truth(tmp_path / "truth", make_chunk(1), make_chunk(2))
    found = compare(tmp_path / "truth", lake)
    assert (found.physical_duplicates, found.logical_duplicates, found.lost) == (1, 1, 0)


def test_a_line_cut_by_a_kill_is_counted_and_a_quarantined_record_is_not_lost(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    lake.append_chunks([make_chunk(1), make_chunk(2)], 7)
    lake.quarantine([("s01", "s01-phone", "e1", 2)], "conflict")
    log_truth(tmp_path / "truth", make_chunk(1), make_chunk(2))
    with (tmp_path / "truth" / "s01-phone.jsonl").open("a") as f:
        f.write('{"kind": "chu')
    found = compare(tmp_path / "truth", lake)
    assert (found.lost, found.quarantined, found.unreadable_lines) == (0, 1, 1)


def log_shed(folder: Path, *records: Chunk | Gap) -> None:
    with (folder / "s01-phone.jsonl").open("a") as f:
        for record in records:
            line = {"kind": "shed", "of": "chunk", "site": "s01", "node": "s01-phone", "stream": "imu"}
            line |= {"epoch": record.epoch, "seq": record.seq, "start_ns": record.start_ns, "end_ns": record.end_ns}
            f.write(json.dumps(line) + "\n")


def gap_over(seq: int, first: Chunk, last: Chunk, stream: str = "imu") -> Gap:
    return Gap(StreamId("s01", "s01-phone", stream), "e1", seq, first.start_ns, last.end_ns, "shed", 200)


def test_what_was_shed_is_not_lost_when_a_gap_record_covers_it(tmp_path: Path) -> None:
    lake, truth = Lake(tmp_path / "lake"), tmp_path / "truth"
    gap = gap_over(9, make_chunk(1), make_chunk(2))
    lake.commit_batch([make_chunk(3)], [gap], [], 7)
    log_truth(truth, make_chunk(1), make_chunk(2), make_chunk(3), gap)
    log_shed(truth, make_chunk(1), make_chunk(2))
    found = compare(truth, lake)
    assert found.passed
    assert (found.accepted, found.shed, found.lost) == (4, 2, 0)


def test_shed_without_a_gap_record_or_a_gap_record_without_shed_is_lost(tmp_path: Path) -> None:
    lake, truth = Lake(tmp_path / "lake"), tmp_path / "truth"
    chunks = [make_chunk(seq) for seq in range(1, 4)]
    half = Gap(chunks[0].spec.id, "e1", 9, chunks[0].start_ns, chunks[0].end_ns - 1, "shed", 99)
    others = [gap_over(10, chunks[1], chunks[1], "audio"), gap_over(11, chunks[2], chunks[2])]
    lake.commit_batch([], [half, *others], [], 7)
    log_truth(truth, *chunks)
    log_shed(truth, *chunks[:2])  # half covers the first but for its end, and another stream's gap the second
    found = compare(truth, lake)
    assert not found.passed
    assert (found.shed, found.lost) == (0, 3)


def test_a_record_that_was_on_its_way_may_be_in_the_lake_and_in_a_gap(tmp_path: Path) -> None:
    lake, truth = Lake(tmp_path / "lake"), tmp_path / "truth"
    gap = gap_over(9, make_chunk(1), make_chunk(2))
    lake.commit_batch([make_chunk(1)], [gap], [], 7)
    log_truth(truth, make_chunk(1), make_chunk(2), gap)
    log_shed(truth, make_chunk(1), make_chunk(2))
    found = compare(truth, lake)
    assert found.passed and (found.shed, found.in_lake, found.logical_duplicates) == (1, 2, 0)
