"""What is looked up in the lake for records that are sent again: by their time first, then everywhere."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from infomae_stream.clock import NS_PER_S, ManualClock
from infomae_stream.errors import LakeError
from infomae_stream.types import Chunk, Detection, Gap
from storage.compaction import compact
from storage.lake import Lake, outbox_key
from storage.retention import RetentionPolicy, retire
from storage.schemas import RECORD_TABLES
from storage.segments import live_files
from storage.stored import Content, Identity, content_of, look_up, quarantined
from tests.hub_records import START_NS, make_chunk, make_detection, make_gap

OUTBOXES = 70  # more than the log is asked about one by one
COMMITS = 12
Contents = dict[Identity, set[Content]]


def records_at(k: int) -> Iterator[Chunk | Gap | Detection]:
    """Three of every outbox, each outbox counting from elsewhere, as nodes of different ages do."""
    for outbox in range(OUTBOXES):
        seq = 37 * (outbox % 9) + 3 * k
        place = {"node": f"n{outbox // 2:02}", "epoch": f"e{outbox % 2}"}
        yield make_chunk(seq, n=4, **place)
        yield make_gap(seq + 1, **place)
        yield make_detection(seq + 2, **place)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake", ManualClock(START_NS + 1000 * NS_PER_S))


def fill(lake: Lake) -> Contents:
    truth: Contents = {}
    for k in range(COMMITS):
        records = list(records_at(k))
        lake.commit_batch(
            [r for r in records if isinstance(r, Chunk)],
            [r for r in records if isinstance(r, Gap)],
            [r for r in records if isinstance(r, Detection)],
            7,
        )
        truth |= {(outbox_key(record), record.seq): {content_of(record)} for record in records}
    return truth


def other_bytes(content: Content) -> Content:
    return *content[:4], content[4] ^ 1


def other_time(content: Content) -> Content:
    return *content[:2], content[2] + 10**15, content[3] + 10**15, content[4]


def other_table(content: Content) -> Content:
    return "gaps" if content[0] == "chunks" else "chunks", *content[1:]


def test_what_is_stored_is_found_whatever_is_expected_in_its_place(lake: Lake) -> None:
    truth = fill(lake)
    rng = random.Random(1)
    unknown: Identity = ("s01", "n00", "e0"), 10_000
    for compacted in (False, True):
        if compacted:
            assert compact(lake, everything=True, fan_in=2).merges > 0
        for n in (1, 40, len(truth)):
            for change in (None, other_bytes, other_time, other_table):
                asked = rng.sample(sorted(truth), n)
                contents = [min(truth[identity]) for identity in asked]
                wanted: Contents = {i: {change(c) if change else c} for i, c in zip(asked, contents, strict=True)}
                found = look_up(lake, wanted | {unknown: {contents[0]}})
                assert found.contents == {identity: truth[identity] for identity in asked}, change
                assert found.retired == set()
    assert look_up(lake, {}).contents == {}


def test_an_equal_copy_is_looked_for_only_in_the_files_of_its_time(lake: Lake) -> None:
    records: list[list[Chunk | Gap | Detection]] = []
    for k in range(4):
        chunk, gap, detection = make_chunk(100 * k, n=4), make_gap(100 * k + 1), make_detection(100 * k + 2)
        lake.commit_batch([chunk], [gap], [detection], 7)
        records.append([chunk, gap, detection])
    for table in RECORD_TABLES:
        for file in (*lake.added_files(table, 0, 2), *lake.added_files(table, 3, 4)):
            file.unlink()
    wanted: Contents = {(outbox_key(record), record.seq): {content_of(record)} for record in records[2]}
    assert look_up(lake, wanted).contents == wanted
    elsewhere = {identity: {other_time(min(contents))} for identity, contents in wanted.items()}
    with pytest.raises(LakeError, match="cannot be read"):
        look_up(lake, elsewhere | {(("s01", "s01-phone", "e1"), 0): {other_time(content_of(records[0][0]))}})


@pytest.mark.parametrize("hidden", [1, OUTBOXES])
def test_hidden_identities_are_told_among_many(lake: Lake, hidden: int) -> None:
    identities = {(outbox_key(record), record.seq) for record in records_at(0)}
    assert quarantined(lake, identities) == set()
    some = set(sorted(identities)[::3][:hidden])
    lake.quarantine([(*key, seq) for key, seq in some], "conflict")
    lake.quarantine([("s01", "n00", "e0", 10_000)], "conflict")
    assert quarantined(lake, identities) == some
    assert quarantined(lake, set()) == set()


def test_retired_identities_are_told_from_unknown_ones(lake: Lake) -> None:
    truth = fill(lake)
    retire(lake, RetentionPolicy(max_age_days=850 / 86_400))  # what ended before second 150
    found = look_up(lake, truth)
    assert found.retired and found.contents
    assert found.retired == {i for i, contents in truth.items() if min(contents)[3] <= START_NS + 150 * NS_PER_S}
    assert found.contents == {i: contents for i, contents in truth.items() if i not in found.retired}
    one = min(found.retired)
    assert look_up(lake, {one: {other_bytes(min(truth[one]))}}).retired == {one}


def test_a_batch_with_a_known_record_that_is_nowhere_is_not_called_durable(lake: Lake) -> None:
    lake.append_chunks([make_chunk(1)], START_NS)
    (file,) = live_files(lake.table_path("chunks"), lake.version("chunks"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(LakeError, match=r"1 records are known and not found.*seq 1.*lake verify"):
        lake.append_chunks([make_chunk(1), make_chunk(2)], START_NS)
    file.write_bytes(whole)
    again = lake.append_chunks([make_chunk(1), make_chunk(2)], START_NS)
    assert (again.written, again.duplicates, again.conflicts) == (0, 2, ())


def test_of_an_identity_that_was_refused_before_any_of_it_was_stored_nothing_is_taken(lake: Lake) -> None:
    lake.quarantine([("s01", "s01-phone", "e1", 1)], "conflict")
    assert lake.append_chunks([make_chunk(1)], START_NS).conflicts == ((("s01", "s01-phone", "e1"), 1),)
