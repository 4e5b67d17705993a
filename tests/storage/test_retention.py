from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infomae_stream.clock import NS_PER_S, ManualClock
from infomae_stream.types import Pair, StreamId
from storage import query
from storage.compaction import compact
from storage.lake import Lake
from storage.learning_tables import append_labels, append_run, upsert_pairs
from storage.retention import RetentionPolicy, retire
from storage.rows import LabelInterval
from storage.verify import compare
from tests.hub_records import START_NS, make_chunk, make_detection, make_gap
from tests.storage.test_verify import log_truth

ROOT = Path(__file__).resolve().parents[2]
DAY_S = 86_400


def days(seconds: float) -> float:
    return seconds / DAY_S


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Chunks 0, 3 .. 297, gaps and detections between them; the clock stands 400 s after the first."""
    lake = Lake(tmp_path / "lake", ManualClock(START_NS + 400 * NS_PER_S))
    for k in range(0, 300, 30):
        seqs = range(k, k + 30, 3)
        chunks = [make_chunk(s, n=10) for s in seqs]
        gaps, detections = [make_gap(s + 1) for s in seqs], [make_detection(s + 2) for s in seqs]
        lake.commit_batch(chunks, gaps, detections, 7)
    return lake


def seqs(lake: Lake) -> list[int]:
    return [c.seq for c in query.read_chunks(lake)]


def pair_at(lake: Lake, second: int) -> None:
    streams = (StreamId("s01", "s01-phone", "imu"), StreamId("s01", "s01-watch", "imu"))
    start_ns = START_NS + second * NS_PER_S
    upsert_pairs(lake, [Pair("s01", start_ns, streams, ("phone_imu", "watch_imu"), 1.0, 0, 0, "")])


def label_at(lake: Lake, second: int) -> None:
    start_ns = START_NS + second * NS_PER_S
    append_labels(lake, [LabelInterval("s01", "s01-phone", start_ns, start_ns + 2 * NS_PER_S, "walking")])


def test_what_is_too_old_goes_in_every_table(lake: Lake) -> None:
    report = retire(lake, RetentionPolicy(max_age_days=days(250)))  # what ended before second 150
    assert seqs(lake) == list(range(150, 300, 3))
    assert query.read_gaps(lake)[0].seq == 151
    assert query.read_detections(lake)[0].seq == 149, "it lasts two seconds"
    assert report.records == {"age": 149} and report.bytes["age"] > 0
    assert retire(lake, RetentionPolicy(max_age_days=days(250))).records == {}, "once is enough"


def test_without_limits_nothing_goes(lake: Lake) -> None:
    assert retire(lake, RetentionPolicy()).records == {} and len(seqs(lake)) == 100


def test_part_of_a_merged_file_goes_and_the_rest_stays_in_order(lake: Lake) -> None:
    compact(lake)
    retire(lake, RetentionPolicy(max_age_days=days(250)))
    assert seqs(lake) == list(range(150, 300, 3))
    assert lake.added_files("chunks", lake.version("chunks") - 1, lake.version("chunks")) == [], "no row is new"


def test_pairs_and_labels_stay_longest(lake: Lake) -> None:
    pair_at(lake, 30)
    label_at(lake, 60)
    policy = RetentionPolicy(max_age_days=days(250), keep_labelled_days=days(300), margin_s=0)
    retire(lake, policy)
    assert seqs(lake)[:2] == [30, 150], "the label's time is over, the pair has no limit"
    assert [g.seq for g in query.read_gaps(lake)][:2] == [31, 151]
    label_at(lake, 30)
    pair_at(lake, 180)
    policy = RetentionPolicy(keep_paired_days=days(100), keep_labelled_days=0, margin_s=0)
    retire(lake, policy)
    assert 30 in seqs(lake), "labelled too, and labels have no limit here"
    assert 180 not in seqs(lake) and 183 in seqs(lake)


def test_too_many_bytes_take_the_oldest_without_a_partner_first(lake: Lake) -> None:
    pair_at(lake, 0)
    before = retire(lake, RetentionPolicy()).live_bytes
    report = retire(lake, RetentionPolicy(max_bytes=round(0.8 * before), margin_s=0))
    assert report.live_bytes <= 0.8 * before
    assert seqs(lake)[0] == 0 and seqs(lake)[1] > 30 and seqs(lake)[-1] == 297
    retire(lake, RetentionPolicy(max_bytes=1, margin_s=0))
    assert seqs(lake) == [], "pairs go when nothing else helps"


def test_what_a_model_pins_is_no_help_against_too_many_bytes(lake: Lake) -> None:
    run = {"run": 1, "run_id": "r1", "ended_ns": 1, "outcome": "promoted"}
    append_run(lake, run | {"snapshot": {"tables": {"chunks": 5}}})  # the first half
    report = retire(lake, RetentionPolicy(max_bytes=1))
    assert seqs(lake) == list(range(0, 150, 3)), "removing them would free nothing"
    assert report.live_bytes > 1 and report.pinned_bytes == 0
    retire(lake, RetentionPolicy(max_age_days=days(1)))
    assert seqs(lake) == [] and len(query.read_chunks(lake, version=5)) == 50, "age is age; the model can still read"
    assert retire(lake, RetentionPolicy()).pinned_bytes > 0


def test_a_retired_record_that_comes_again_is_known_and_not_stored(lake: Lake) -> None:
    retire(lake, RetentionPolicy(max_age_days=days(250)))
    for again in (lake, Lake(lake.path)):
        committed = again.commit_batch([make_chunk(0, n=10)], [make_gap(1)], [make_detection(2)], 9)
        assert (committed.written, committed.duplicates, committed.conflicts) == (0, 3, ())
    assert Lake(lake.path).known_identities().outboxes()["s01", "s01-phone", "e1"] == ((0, 299),)


def test_the_audit_tells_retired_from_lost(lake: Lake, tmp_path: Path) -> None:
    log_truth(tmp_path / "truth", *[make_chunk(s, n=10) for s in range(0, 300, 3)])
    log_truth(tmp_path / "truth", *[make_gap(s + 1) for s in range(0, 300, 3)])
    log_truth(tmp_path / "truth", *[make_detection(s + 2) for s in range(0, 300, 3)], make_chunk(500))
    retire(lake, RetentionPolicy(max_age_days=days(250)))
    found = compare(tmp_path / "truth", lake)
    assert (found.accepted, found.lost, found.retired, found.unexpected) == (301, 1, 149, 0)


@pytest.mark.slow
def test_a_kill_between_the_note_and_the_removal_is_mended_by_the_next_round(lake: Lake) -> None:
    program = (
        "import sys; from pathlib import Path; from infomae_stream.clock import ManualClock\n"
        "from storage.lake import Lake; from storage.retention import RetentionPolicy, retire\n"
        f"lake = Lake(Path({str(lake.path)!r}), ManualClock({lake.now_ns()}))\n"
        f"retire(lake, RetentionPolicy(max_age_days={days(250)!r}))"
    )
    environ = {"INFOMAE_FAILPOINTS": "retention.before_commit=kill", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", program], env=environ, check=False, cwd=ROOT)
    assert ended.returncode == -9
    assert len(seqs(lake)) == 100, "noted, and still there"
    assert retire(lake, RetentionPolicy(max_age_days=days(250))).records == {"age": 149}
    assert seqs(lake) == list(range(150, 300, 3))
