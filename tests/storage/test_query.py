from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from infomae_stream.errors import LakeError
from infomae_stream.types import Pair, StreamId
from storage import query
from storage.lake import Lake
from storage.learning_tables import upsert_pairs
from storage.segments import live_files
from tests.hub_records import START_NS, make_chunk, make_spec

S = 1_000_000_000
PHONE, WATCH = StreamId("s02", "s02-phone", "imu"), StreamId("s02", "s02-watch", "imu")


def lone(stream: StreamId, modality: str, start_ns: int = 0) -> Pair:
    return Pair("s02", start_ns, (stream,), (modality,), 1.0, 0, 0, "no_partner")


def both(start_ns: int = 0, reason: str = "", coverage: float = 1.0) -> Pair:
    return Pair("s02", start_ns, (PHONE, WATCH), ("phone_imu", "watch_imu"), coverage, 5, 9, reason)


def test_a_range_read_gives_the_chunks_that_overlap_it_in_order(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.append_chunks([make_chunk(seq) for seq in (5, 3, 4)], 7)
    lake.append_chunks([make_chunk(seq) for seq in (2, 1, 6)], 7)
    lake.append_chunks([make_chunk(seq, site="s02", node="s02-phone") for seq in range(9)], 7)
    found = query.read_chunks(lake, streams=[make_spec().id], from_ns=START_NS + 3 * S, to_ns=START_NS + 5 * S + 1)
    assert [(c.spec.id.site, c.seq) for c in found] == [("s01", 3), ("s01", 4), ("s01", 5)]
    assert query.read_chunks(lake, streams=[]) == []
    assert {c.spec.id.site for c in query.read_chunks(lake, sites=["s02", "s03"])} == {"s02"}
    assert query.read_chunks(lake, modalities=["watch_imu"]) == []


def test_a_range_read_touches_only_the_row_groups_it_needs(tmp_path: Path) -> None:
    """Every other row group is overwritten, so that a read that went there would fail, as the last one does."""
    lake = Lake(tmp_path)
    sites = [f"s{i:02}" for i in range(10)]
    lake.append_chunks([make_chunk(k, site=s, node=f"{s}-phone", n=2) for s in sites for k in range(300)], 7)
    (file,) = live_files(lake.table_path("chunks"), 1)
    wanted = {"streams": [make_spec("s07", "s07-phone").id], "from_ns": START_NS + 10 * S, "to_ns": START_NS + 20 * S}
    groups = [pq.read_metadata(file).row_group(i) for i in range(pq.read_metadata(file).num_row_groups)]
    needed = {i for i, group in enumerate(groups) if bounds(group, "site")[0] <= "s07" <= bounds(group, "site")[1]}
    needed &= {i for i, group in enumerate(groups) if bounds(group, "start_ns")[0] < wanted["to_ns"]}
    assert len(groups) >= 20 and len(needed) <= 3
    with file.open("r+b") as f:
        for i in set(range(len(groups))) - needed:
            for column in (groups[i].column(k) for k in range(groups[i].num_columns)):
                f.seek(min(o for o in (column.dictionary_page_offset, column.data_page_offset) if o))
                f.write(b"\xff" * column.total_compressed_size)
    assert [c.seq for c in query.read_chunks(lake, **wanted)] == list(range(10, 20))
    with pytest.raises(LakeError):
        query.read_chunks(lake)


def test_a_range_read_opens_only_the_files_it_needs(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    for seq in (1, 100, 200):
        lake.append_chunks([make_chunk(seq), make_chunk(seq, site="s02", node="s02-phone")], 7)
    (first,) = lake.added_files("chunks", 0, 1)
    first.unlink()
    found = query.read_chunks(lake, sites=["s02"], from_ns=START_NS + 50 * S, to_ns=START_NS + 150 * S)
    assert [(c.spec.id.site, c.seq) for c in found] == [("s02", 100)]
    with pytest.raises(LakeError):
        query.read_chunks(lake)


def test_the_lake_may_lie_in_a_folder_with_an_odd_name(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "it's a 50% näme {x}")
    lake.append_chunks([make_chunk(1)], 7)
    assert [c.seq for c in query.read_chunks(lake)] == [1]
    assert len(query.chunk_ranges_since(lake, 0, 1)) == 1


def bounds(group: Any, name: str) -> tuple[Any, Any]:
    columns = [group.column(i) for i in range(group.num_columns)]
    (found,) = [c.statistics for c in columns if c.path_in_schema == name]
    return found.min, found.max


def test_new_ranges_are_those_of_the_commits_asked_for(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.append_chunks([make_chunk(seq) for seq in range(3)], 7)
    lake.append_chunks([make_chunk(seq) for seq in (3, 4, 8)], 7)
    spec = make_spec()
    assert query.chunk_ranges_since(lake, -1, 1) == [(spec, START_NS, START_NS + 3 * S)]
    assert query.chunk_ranges_since(lake, 1, 2) == [
        (spec, START_NS + 3 * S, START_NS + 5 * S),
        (spec, START_NS + 8 * S, START_NS + 9 * S),
    ]
    assert query.chunk_ranges_since(lake, 2, 2) == []
    assert query.stream_specs(lake) == [spec]


def test_pairs_judged_again_the_same_way_make_no_new_version(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    judged = [both(0), both(S, "clock_uncertain"), lone(PHONE, "phone_imu", 2 * S)]
    assert upsert_pairs(lake, judged) == 3
    assert upsert_pairs(lake, judged) == 0
    assert lake.version("pairs") == 1
    assert query.pair_counts(lake) == {"paired": 1, "clock_uncertain": 1, "no_partner": 1}
    assert query.read_pairs(lake) == judged
    assert query.read_pairs(lake, paired_only=True) == judged[:1]


def test_a_new_judgement_replaces_the_old_one_and_old_versions_keep_theirs(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    upsert_pairs(lake, [both(0, "coverage", 0.5)])
    assert upsert_pairs(lake, [both(0, "coverage", 0.5), both(0)]) == 1, "the last judgement of a key counts"
    assert query.read_pairs(lake) == [both(0)]
    assert query.pair_counts(lake, version=1) == {"coverage": 1}
    assert upsert_pairs(lake, [both(0, "coverage", 0.5)]) == 1
    assert query.pair_counts(lake) == {"coverage": 1}


def test_a_lone_window_disappears_when_its_partner_comes(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    upsert_pairs(lake, [lone(PHONE, "phone_imu"), lone(WATCH, "watch_imu", S)])
    upsert_pairs(lake, [both(0)])
    assert query.pair_counts(lake) == {"paired": 1, "no_partner": 1}
