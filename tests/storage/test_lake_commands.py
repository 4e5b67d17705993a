"""`lake status`, `query`, `compact`, `verify`, `dead-letters` on real lakes, through the real command line."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from collectors.hub.dead_letter_commands import decoded_fields
from collectors.hub.dead_letters import DeadLetters
from infomae_stream.cli import COMMANDS
from infomae_stream.topics import node_topic, stream_topic
from infomae_stream.types import Pair, StreamId
from infomae_stream.wire import encode_chunk
from storage.lake import Lake
from storage.learning_tables import upsert_pairs
from storage.rows import chunk_rows
from storage.schemas import TABLES
from storage.segments import live_files, write_segments
from tests.commands import run_command
from tests.hub_records import START_NS, make_chunk, make_detection, make_gap

READERS = {
    "status": (),
    "query": ("select 1",),
    "verify": (),
    "dead-letters": (),
    "compact": (),
    "vacuum": (),
    "export": ("--stream", "s01/s01-phone/imu", "--out", "out"),
    "import": (__file__,),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seq 1 to 13 of one outbox, of which 5 is quarantined; another node with 1 to 4."""
    made = Lake(tmp_path_factory.mktemp("lake"))
    made.commit_batch([make_chunk(k) for k in range(1, 11)], [make_gap(11)], [make_detection(12)], 7)
    made.append_chunks([make_chunk(13), *(make_chunk(k, site="s02", node="s02-phone") for k in range(1, 5))], 7)
    made.quarantine([("s01", "s01-phone", "e1", 5)], "conflict")
    return made.path


@pytest.fixture
def lake(template: Path, tmp_path: Path) -> Lake:
    """A copy of the template: making tables anew costs a dozen fsyncs."""
    shutil.copytree(template, tmp_path / "lake")
    return Lake(tmp_path / "lake")


def test_every_lake_command_is_tried_without_a_lake() -> None:
    assert {f"lake {name}" for name in READERS} == {c for c in COMMANDS if c.startswith("lake ")}


@pytest.mark.parametrize("name", READERS)
def test_a_missing_or_empty_folder_is_no_lake_and_stays_as_it_is(name: str, tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        bad = run_command("lake", name, *READERS[name], "--lake", folder)
        assert bad.code == 1 and "no lake here" in bad.err
    assert list(tmp_path.iterdir()) == []


def test_which_lake_is_a_question_of_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command("lake", "status").code == 2
    assert run_command("lake", "status", "--lake", tmp_path, "--config", "hub.toml").code == 2
    assert run_command("lake", "status", "--config", "missing.toml").code == 78


def test_status_counts_what_is_there(lake: Lake) -> None:
    DeadLetters(lake.path / "_dead_letters", 1_000_000).keep("a/topic", b"xyz", "cbor", "broken", 5)
    found = run_command("lake", "status", "--lake", lake.path, "--json").value()
    tables = {t["table"]: t for t in found["tables"]}
    assert (tables["chunks"]["rows"], tables["chunks"]["version"], tables["gaps"]["rows"]) == (15, 2, 1)
    assert tables["chunks"]["size_bytes"] == sum(f.stat().st_size for f in live_files(lake.table_path("chunks"), 2))
    first, second = found["streams"]
    assert (first["stream"], first["chunks"], first["samples"], first["gaps"]) == ("s01/s01-phone/imu", 10, 1000, 1)
    assert first["coverage"] == pytest.approx(10 / 13) and second["coverage"] == 1.0
    assert first["first_ns"] == START_NS + 1_000_000_000 and first["newest_age_s"] > 0
    assert (found["quarantined"], found["dead_letters"], found["dead_letter_bytes"] > 3) == (1, 1, True)
    assert found["disk_free_bytes"] > 0
    text = run_command("lake", "status", "--lake", lake.path).ok().out
    assert "s01/s01-phone/imu" in text and "76.92 %" in text and "quarantined 1" in text


def test_status_of_a_lake_without_chunks(tmp_path: Path) -> None:
    assert "No stream yet" in run_command("lake", "status", "--lake", Lake(tmp_path).path).ok().out


def test_a_copy_on_disk_is_one_row_to_status_and_query(lake: Lake) -> None:
    # A writer that does not look: the lake itself cannot be brought to do this.
    log = lake._logs["chunks"]
    assert log.try_commit(3, write_segments(log.table, TABLES["chunks"], chunk_rows([make_chunk(1)], 8), 8), 8)
    found = run_command("lake", "status", "--lake", lake.path, "--json").value()
    assert found["streams"][0]["chunks"] == 10
    assert count(lake, "chunks") == 14
    assert run_command("lake", "verify", "--lake", lake.path).code == 0


def count(lake: Lake, table: str, *arguments: str) -> int:
    found = run_command(
        "lake", "query", f"select count(*) as n from {table}", "--lake", lake.path, "--json", *arguments
    )
    return int(found.value()["rows"][0]["n"])


def test_query_sees_logical_rows_of_new_and_old_versions(lake: Lake) -> None:
    stream = StreamId("s01", "s01-phone", "imu")
    for coverage in (0.5, 1.0):
        upsert_pairs(lake, [Pair("s01", 0, (stream,), ("phone_imu",), coverage, 0, 0, "")])
    assert [count(lake, t) for t in ("chunks", "pairs", "gaps", "labels", "runs")] == [14, 1, 1, 0, 0]
    assert count(lake, "chunks", "--at", "chunks=1") == 9
    rows = run_command(
        "lake", "query", "select seq, samples from chunks order by seq limit 1", "--lake", lake.path, "--csv"
    )
    assert list(csv.reader(io.StringIO(rows.ok().out))) == [["seq", "samples"], ["1", "<1200 bytes>"]]


def test_query_stops_at_the_limit_and_says_so(lake: Lake) -> None:
    found = run_command("lake", "query", "select seq from chunks", "--lake", lake.path, "--limit", 3)
    assert found.code == 0 and "only the first 3 rows" in found.err
    assert run_command("lake", "query", "select 1", "--lake", lake.path, "--limit", 0).code == 2
    assert run_command("lake", "query", "select 1", "--lake", lake.path, "--json", "--csv").code == 2
    assert run_command("lake", "query", "select 1", "--lake", lake.path, "--at", "chunks").code == 2


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("selec 1", "syntax error at or near"),
        ("select nothing from chunks", "nothing"),
        ("select * from nowhere", "nowhere"),
        ("", "0 statements"),
        ("select 1; select 2", "2 statements"),
        ("copy chunks to '{out}'", "read only"),
        ("copy chunks to '{file}' (use_tmp_file false)", "read only"),
        ("explain analyze copy chunks to '{file}' (use_tmp_file false)", "read only"),
        ("create table t as select 1", "read only"),
        ("drop view chunks", "read only"),
        ("attach '{out}'", "read only"),
        ("install httpfs", "read only"),
        ("set memory_limit = '10GB'", "read only"),
        ("select * from read_csv('/etc/passwd')", "disabled by configuration"),
        ("select * from '/etc/passwd'", "does not exist"),
        ("select * from glob('/etc/*')", "disabled by configuration"),
        ("select count(*) from range(100000000000) a, range(100000)", "stopped after"),
        ("select * from chunks at (version => 1)", "error"),
    ],
)
def test_bad_sql_and_attempts_to_write_are_refused(sql: str, text: str, lake: Lake, tmp_path: Path) -> None:
    file = live_files(lake.table_path("chunks"), 1)[0]
    before = file.read_bytes()
    patience_s = 0.5 if text == "stopped after" else 600  # or a slow machine would stop the others too
    sql = sql.format(out=tmp_path / "x", file=file)
    bad = run_command("lake", "query", sql, "--lake", lake.path, "--timeout", patience_s)
    assert bad.code == 1 and text in bad.err, bad.err
    assert file.read_bytes() == before and not (tmp_path / "x").exists()


def test_an_unknown_version_or_table_is_named(lake: Lake) -> None:
    bad = run_command("lake", "query", "select 1", "--lake", lake.path, "--at", "chunks=9")
    assert bad.code == 1 and "the newest is 2" in bad.err
    bad = run_command("lake", "query", "select 1", "--lake", lake.path, "--at", "chunk=1")
    assert bad.code == 1 and "known: chunks" in bad.err


def test_compact_keeps_what_readers_see(lake: Lake) -> None:
    before = count(lake, "chunks")
    found = run_command("lake", "compact", "--lake", lake.path, "--everything", "--json").value()
    assert found["files_after"] <= found["files_before"]
    assert count(lake, "chunks") == before
    assert run_command("lake", "compact", "--lake", lake.path, "--table", "nothing").code == 2
    assert run_command("lake", "vacuum", "--lake", lake.path, "--dry-run", "--json").value()["dry_run"] is True


def findings(lake: Lake, *arguments: object) -> dict[str, int]:
    ran = run_command("lake", "verify", "--lake", lake.path, "--json", *arguments)
    value = json.loads(ran.out)
    assert ran.code == (0 if value["passed"] else 1)
    return dict(value["by_kind"])


def test_a_whole_lake_passes(lake: Lake) -> None:
    ran = run_command("lake", "verify", "--lake", lake.path).ok()
    assert "the lake is whole" in ran.out and "2 outboxes" in ran.out
    assert findings(lake, "--fast") == {}


def test_missing_numbers_are_found_and_refused_messages_explain_them(lake: Lake) -> None:
    lake.append_chunks([make_chunk(9, site="s02", node="s02-phone")], 7)
    ran = run_command("lake", "verify", "--lake", lake.path)
    assert ran.code == 1 and "s02/s02-phone: epoch e1: seq 5 to 8 (4) never arrived" in ran.out
    letters = DeadLetters(lake.path / "_dead_letters", 10_000_000)
    for seq in range(5, 9):
        payload = encode_chunk(make_chunk(seq, site="s02", node="s02-phone"))
        letters.keep(stream_topic("s02", "s02-phone", "imu", "chunk"), payload[: len(payload) // 2], "cbor", "cut", 5)
    assert findings(lake) == {}
    (lake.path / "_dead_letters").joinpath(
        sorted(p.name for p in (lake.path / "_dead_letters").glob("*.json"))[0]
    ).unlink()
    assert findings(lake) == {"missing_numbers": 1}


def test_retired_numbers_are_not_missing(lake: Lake) -> None:
    lake.append_chunks([make_chunk(9, site="s02", node="s02-phone")], 7)
    row = {"site": "s02", "node": "s02-phone", "epoch": "e1", "seq_first": 5, "seq_last": 8}
    row |= {"start_ns": 0, "end_ns": 1, "reason": "age", "retired_ns": 2}
    lake.append("retired", lambda _: pa.Table.from_pylist([row], schema=TABLES["retired"].schema))
    assert findings(lake) == {}


def test_holes_of_an_outbox_that_shed_are_noted(lake: Lake) -> None:
    """The template's gap record says "shed"."""
    lake.append_chunks([make_chunk(20)], 7)
    ran = run_command("lake", "verify", "--lake", lake.path)
    assert ran.code == 0 and "6 numbers are missing of outboxes that shed" in ran.out


def overwrite(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "kind"),
    [(overwrite, "torn_file"), (Path.unlink, "missing_file"), (lambda p: p.write_bytes(b""), "torn_file")],
)
def test_damaged_files_are_found(damage: Callable[[Path], object], kind: str, lake: Lake) -> None:
    damage(live_files(lake.table_path("gaps"), 1)[0])
    # The gap's own number is missing too: it stood in that file.
    for arguments in ((), ("--fast",)):
        assert findings(lake, *arguments) == {kind: 1, "missing_numbers": 1}


def test_torn_files_are_told_by_status_and_query(lake: Lake) -> None:
    for path in live_files(lake.table_path("gaps"), 1):
        overwrite(path)
    assert run_command("lake", "status", "--lake", lake.path, "--json").value()["torn_files"] == 1
    found = run_command("lake", "query", "select * from gaps", "--lake", lake.path)
    assert found.code == 0 and "1 torn files are left out" in found.err


def test_a_changed_sample_is_found_unless_checksums_are_left_out(lake: Lake) -> None:
    log = lake._logs["chunks"]
    rows = chunk_rows([make_chunk(14)], 8)
    at = rows.schema.get_field_index("crc32")
    rows = rows.set_column(at, rows.schema.field(at), [[123]])
    assert log.try_commit(3, write_segments(log.table, TABLES["chunks"], rows, 8), 8)
    ran = run_command("lake", "verify", "--lake", lake.path)
    assert ran.code == 1 and "s01/s01-phone epoch e1 seq 14: checksum" in ran.out
    assert findings(lake, "--fast") == {}


def test_strays_are_found_once_they_are_old(lake: Lake) -> None:
    log = lake._logs["chunks"]
    (action,) = write_segments(log.table, TABLES["chunks"], chunk_rows([make_chunk(99)], 8), 8)
    temporary = log.folder / ".00000000000000000009.json.abc.tmp"
    temporary.write_text("half")
    assert findings(lake) == {}
    old = time.time() - 7200
    for path in (log.table / action["add"]["path"], temporary):
        os.utime(path, (old, old))
    assert findings(lake) == {"orphan": 1, "temporary": 1}
    assert findings(lake, "--grace", 86_400) == {}


def test_a_lost_table_and_a_torn_commit_are_found(lake: Lake) -> None:
    (lake.table_path("gaps") / "_delta_log" / f"{1:020}.json").write_text("{")
    assert findings(lake)["unreadable_log"] >= 1
    for path in (lake.table_path("gaps") / "_delta_log").iterdir():
        path.unlink()
    assert findings(lake)["missing_table"] == 1


def test_the_truth_logs_are_compared_when_given(lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "truth").mkdir()
    line = {"kind": "chunk", "site": "s01", "node": "s01-phone", "stream": "imu", "epoch": "e1", "seq": 77}
    (tmp_path / "truth" / "a.jsonl").write_text(json.dumps({**line, "start_ns": 1, "crc32": 2}) + "\n")
    ran = run_command("lake", "verify", "--lake", lake.path, "--truth", tmp_path / "truth")
    assert ran.code == 1 and "truth: lost: chunk s01 s01-phone imu e1 77" in ran.out
    assert run_command("lake", "verify", "--lake", lake.path, "--truth", tmp_path / "no").code == 1


@pytest.fixture
def letters(lake: Lake) -> Lake:
    kept = DeadLetters(lake.path / "_dead_letters", 10_000_000)
    payload = encode_chunk(make_chunk(40))
    kept.keep(stream_topic("s01", "s01-phone", "imu", "chunk"), payload[:-50], "cbor", "not CBOR: [cut]", 1_000_000_000)
    kept.keep(
        node_topic("s02", "s02-phone", "detections"), b'{"epoch": "e9", "seq": 3}', "schema", "no v", 2_000_000_000
    )
    kept.keep("elsewhere", b"\xff\x00", "topic", "not ours", 3_000_000_000)
    return lake


def test_dead_letters_are_listed_oldest_first_with_whose_they_claim_to_be(letters: Lake) -> None:
    found = run_command("lake", "dead-letters", "--lake", letters.path, "--json").value()
    assert found["by_reason"] == {"cbor": 1, "schema": 1, "topic": 1}
    assert [n["claims"] for n in found["letters"]] == ["s01/s01-phone e1 40", "s02/s02-phone e9 3", ""]
    text = run_command("lake", "dead-letters", "--lake", letters.path).ok().out
    assert "cbor 1   schema 1   topic 1" in text and "1970-01-01T00:00:01Z" in text


def test_one_letter_is_shown_as_far_as_it_can_be_read(letters: Lake) -> None:
    names = [
        n["name"] for n in run_command("lake", "dead-letters", "--lake", letters.path, "--json").value()["letters"]
    ]
    found = run_command("lake", "dead-letters", "--lake", letters.path, "--show", names[0], "--json").value()
    assert found["decoded"]["seq"] == 40 and found["decoded"]["spec"]["node"] == "s01-phone"
    text = run_command("lake", "dead-letters", "--lake", letters.path, "--show", "topic").ok().out
    assert "nothing of it can be decoded" in text and "0000  ff 00" in text
    bad = run_command("lake", "dead-letters", "--lake", letters.path, "--show", "cbro")
    assert bad.code == 1 and names[0] in bad.err


def test_letters_are_exported_into_an_empty_folder_only(letters: Lake, tmp_path: Path) -> None:
    arguments = ("lake", "dead-letters", "--lake", letters.path, "--export")
    assert run_command(*arguments, tmp_path / "to", "--json").value()["letters"] == 3
    assert len(list((tmp_path / "to").iterdir())) == 6
    assert "not empty" in run_command(*arguments, tmp_path / "to").err
    (tmp_path / "file").write_text("")
    assert "cannot write" in run_command(*arguments, tmp_path / "file").err


def test_no_letters_and_damaged_notes(lake: Lake) -> None:
    assert run_command("lake", "dead-letters", "--lake", lake.path).ok().out == "no dead letters\n"
    folder = lake.path / "_dead_letters"
    folder.mkdir()
    (folder / "cbor-1.json").write_text("{")
    found = run_command("lake", "dead-letters", "--lake", lake.path, "--json").value()["letters"]
    assert (found[0]["reason"], found[0]["complete"]) == ("cbor", False)


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"{}", b"[1]", b"\xa1", b"\xbf", b"\xb9\x01", b"\xa1\x01\x9b\xff", b"null"]
)
def test_any_bytes_are_decoded_as_far_as_they_go(payload: bytes) -> None:
    assert decoded_fields(payload) == {}
