from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import duckdb
import numpy as np
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infomae_stream.errors import LakeError
from infomae_stream.types import Chunk, ClockQuality, StreamId, StreamSpec
from infomae_stream.wire import chunk_crc32
from storage import query
from storage.delta_log import CHECKPOINT_EVERY
from storage.lake import Lake
from storage.learning_tables import append_labels, append_run
from storage.rows import LabelInterval, chunk_rows
from storage.schemas import TABLES
from storage.segments import UNCACHED_BYTES, live_files, write_segments
from tests.hub_records import START_NS, make_chunk, make_detection, make_gap, same_chunk

S = 1_000_000_000


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    n_channels, n = draw(st.integers(1, 4)), draw(st.integers(1, 30))
    kind = draw(st.sampled_from(["imu", "seismic", "acoustic"]))
    channels = tuple(f"c{i}" for i in range(n_channels))
    ids = st.sampled_from(["a", "b-1", "c_2"])
    spec = StreamSpec(
        StreamId(draw(ids), draw(ids), draw(ids)),
        kind,
        draw(st.sampled_from([0.5, 100.0, 8000.0])),
        channels,
        ("m/s2",) * n_channels,
        tuple(draw(st.floats(0.1, 1e6)) for _ in channels),
        seed_id=draw(st.sampled_from(["", "AM.R1234.00.EHZ"])),
    )
    dtype = draw(st.sampled_from(["int16", "int32", "float32", "float64"]))
    samples = np.random.default_rng(draw(st.integers(0, 2**32))).normal(0, 1000, (n_channels, n)).astype(dtype)
    start_ns = draw(st.integers(0, 2**61))
    steps = draw(st.none() | st.lists(st.integers(0, S), min_size=n, max_size=n))
    times = None if steps is None else start_ns + np.cumsum([0, *steps[1:]], dtype=np.int64)
    clock = ClockQuality(draw(st.text(max_size=10)), draw(st.integers(-S, S)), draw(st.integers(0, S)), True, "b", 1)
    seq = draw(st.integers(0, 2**61))
    return Chunk(spec, draw(st.sampled_from(["e1", "e2"])), seq, start_ns, samples, clock, times, start_ns)


def identity(chunk: Chunk) -> tuple[StreamId, str, int]:
    return chunk.spec.id, chunk.epoch, chunk.seq


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    given_chunks=st.lists(chunks(), min_size=1, max_size=8, unique_by=lambda c: (c.spec.id.site, c.spec.id.node, c.seq))
)
def test_what_goes_into_the_lake_comes_out(tmp_path_factory: pytest.TempPathFactory, given_chunks: list[Chunk]) -> None:
    lake = Lake(tmp_path_factory.mktemp("lake"))
    lake.append_chunks(given_chunks, 7)
    read = {identity(c): c for c in query.read_chunks(lake)}
    assert read.keys() == {identity(c) for c in given_chunks}
    assert all(same_chunk(c, read[identity(c)]) for c in given_chunks)


def test_gaps_and_detections_come_out_as_they_went_in(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.commit_batch([], [make_gap(2), make_gap(1)], [make_detection(3)], 7)
    assert query.read_gaps(lake) == [make_gap(1), make_gap(2)]
    assert query.read_detections(lake) == [make_detection(3)]
    assert query.read_detections(lake, sites=["s02"]) == []


def test_a_repeated_commit_writes_nothing(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    batch = ([make_chunk(1), make_chunk(2)], [make_gap(3)], [make_detection(4)])
    assert lake.commit_batch(*batch, 7).written == 4
    before = lake.versions()
    again = lake.commit_batch(*batch, 8)
    assert (again.written, again.duplicates) == (0, 4)
    assert Lake(tmp_path).commit_batch(*batch, 9).written == 0, "nor after a restart"
    assert lake.versions() == before


def test_a_record_that_comes_twice_in_one_batch_is_stored_once(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    assert lake.append_chunks([make_chunk(1), make_chunk(1)], 7).written == 1
    assert query.logical_identities(lake, "chunks")["copies"].to_pylist() == [1]


def test_known_and_repeated_records_are_left_out_of_a_run_and_the_rest_is_stored(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.append_chunks([make_chunk(seq) for seq in (2, 3, 7)], 7)
    committed = lake.append_chunks([make_chunk(seq) for seq in (8, 1, 2, 3, 4, 4, 9, 7)], 7)
    assert (committed.written, committed.duplicates, committed.conflicts) == (4, 4, ())
    committed = lake.append_chunks([make_chunk(seq) for seq in (5, 4, 10)], 7)
    assert (committed.written, committed.duplicates) == (2, 1)
    held = query.logical_identities(lake, "chunks")
    assert sorted(held["seq"].to_pylist()) == [1, 2, 3, 4, 5, 7, 8, 9, 10] and set(held["copies"].to_pylist()) == {1}


def test_of_two_different_records_under_one_identity_in_a_batch_neither_is_readable(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    committed = lake.append_chunks([make_chunk(1), make_chunk(2), make_chunk(2, seed=99)], 7)
    assert committed.conflicts == ((("s01", "s01-phone", "e1"), 2),)
    assert query.logical_identities(lake, "chunks")["seq"].to_pylist() == [1]


@settings(max_examples=30, deadline=None)
@given(given_chunks=st.lists(chunks(), min_size=1, max_size=8))
def test_rows_come_in_the_order_of_their_folders_and_segments(given_chunks: list[Chunk]) -> None:
    rows = chunk_rows(given_chunks, 7)
    place = ("day", "kind", "site", "node", "stream", "start_ns", "seq")
    places = list(zip(*[rows[name].to_pylist() for name in place], strict=True))
    assert places == sorted(places)
    found = sorted((*identity, crc) for *identity, crc in zip(*[rows[n].to_pylist() for n in _TOLD], strict=True))
    assert found == sorted((c.spec.id.node, c.seq, c.start_ns, chunk_crc32(c)) for c in given_chunks)


_TOLD = ("node", "seq", "start_ns", "crc32")


def cached(path: Path) -> bool:
    """Whether the file's last byte is in the page cache. Raises OSError where that is not told."""
    with path.open("rb") as f:
        try:
            return os.preadv(f.fileno(), [bytearray(1)], path.stat().st_size - 1, os.RWF_NOWAIT) == 1
        except BlockingIOError:
            return False


def drops_from_cache(folder: Path) -> bool:
    """Whether this file system drops what it is told to drop; a memory disk does not."""
    probe = folder / "probe"
    with probe.open("wb") as f:
        f.write(bytes(100_000))
        f.flush()
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        return not cached(probe)
    except OSError:
        return False


def test_a_large_segment_does_not_stay_in_the_page_cache(tmp_path: Path) -> None:
    if not drops_from_cache(tmp_path):
        pytest.skip("this file system does not drop what it is told to drop, or does not say so")
    rows = chunk_rows([make_chunk(seq, n=100_000) for seq in range(20)], 7)
    path = tmp_path / write_segments(tmp_path, TABLES["chunks"], rows, 7)[0]["add"]["path"]
    assert path.stat().st_size > UNCACHED_BYTES
    assert not cached(path)


def test_a_commit_that_reported_failure_and_landed_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake(tmp_path)
    lake.known_identities()
    log_folder = tmp_path / "chunks" / "_delta_log"
    real, failed = os.fsync, []

    def fsync(fd: int) -> None:
        if os.path.realpath(f"/proc/self/fd/{fd}") == str(log_folder) and not failed:
            failed.append(fd)
            raise OSError(5, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(LakeError, match="Input/output error"):
        lake.append_chunks([make_chunk(1)], 7)
    assert lake.append_chunks([make_chunk(1)], 8).written == 0
    assert [c.seq for c in query.read_chunks(lake)] == [1]


def test_a_commit_of_a_writer_that_died_is_made_durable_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Lake(tmp_path).append_chunks([make_chunk(1)], 7)
    lake = Lake(tmp_path)
    real, synced = os.fsync, []

    def fsync(fd: int) -> None:
        synced.append(os.path.realpath(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    assert lake.append_chunks([make_chunk(1)], 8).duplicates == 1
    assert str(tmp_path / "chunks" / "_delta_log") in synced


def test_a_failed_write_leaves_no_file_and_goes_through_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lake(tmp_path)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        with pytest.raises(LakeError, match="No space left"):
            lake.append_chunks([make_chunk(1)], 7)
    left = [p for p in (tmp_path / "chunks").rglob("*") if p.is_file() and p.parent.name != "_delta_log"]
    assert left == []
    assert lake.append_chunks([make_chunk(1)], 8).written == 1


def test_a_segment_and_its_commit_are_synced_before_their_names_appear(tmp_path: Path) -> None:
    """D2, as the kernel sees it: fsync of every file, then its rename or link, then fsync of its folder."""
    trace = tmp_path / "trace"
    program = (
        "from pathlib import Path; from storage.lake import Lake; from tests.hub_records import make_chunk\n"
        f"lake = Lake(Path({str(tmp_path / 'lake')!r})); lake.append_chunks([make_chunk(1)], 7)"
    )
    calls = "trace=openat,fsync,rename,link,linkat,renameat,renameat2"
    try:
        subprocess.run(
            ["strace", "-f", "-y", "-s", "300", "-e", calls, "-o", str(trace), sys.executable, "-c", program],
            check=True,
        )
    except FileNotFoundError:
        pytest.skip("strace is not installed")
    lines = [line.split(None, 1)[1] for line in trace.read_text().splitlines()]

    def after(start: int, *words: str) -> int:
        return next(i for i, line in enumerate(lines) if i >= start and all(word in line for word in words))

    written = after(0, "fsync", "/day=", ".tmp>")
    renamed = after(written, "rename", "part-")
    folder = after(renamed, "fsync", "kind=imu>")
    commit_written = after(folder, "fsync", "chunks/_delta_log/.00000000000000000001.json", ".tmp>")
    linked = after(commit_written, "link", "00000000000000000001.json")
    assert after(linked, "fsync", "chunks/_delta_log>") > linked


def test_two_writers_at_once_store_everything_once(tmp_path: Path) -> None:
    Lake(tmp_path)
    failures: list[Exception] = []

    def write(offset: int) -> None:
        try:
            lake = Lake(tmp_path)
            for k in range(15):
                # Half of what each writes the other writes too.
                lake.append_chunks([make_chunk(2 * k), make_chunk(2 * k + offset)], 7)
        except (LakeError, OSError) as e:
            failures.append(e)

    threads = [threading.Thread(target=write, args=(offset,)) for offset in (1, 1001)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    lake = Lake(tmp_path)
    stored = query.logical_identities(lake, "chunks")
    expected = {2 * k for k in range(15)} | {2 * k + o for k in range(15) for o in (1, 1001)}
    assert set(stored["seq"].to_pylist()) == expected
    assert set(stored["copies"].to_pylist()) == {1}
    assert set(lake.known_identities().outboxes()) == {("s01", "s01-phone", "e1")}


def test_a_version_stays_readable_when_newer_ones_come(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    for seq in range(3):
        lake.append_chunks([make_chunk(seq)], 7)
    assert [c.seq for c in query.read_chunks(lake, version=2)] == [0, 1]
    assert query.read_chunks(lake, version=0) == []


def test_the_log_is_delta_as_deltalake_reads_it(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.append_chunks([make_chunk(1), make_chunk(2, site="s02", node="s02-phone")], 7)
    table = DeltaTable(tmp_path / "chunks")
    assert table.metadata().partition_columns == ["day", "kind"]
    assert [f.name for f in table.schema().fields] == TABLES["chunks"].schema.names
    files = [uri.removeprefix("file://") for uri in table.file_uris()]
    assert duckdb.sql(f"SELECT count(*) FROM read_parquet({files})").fetchall() == [(2,)]


def test_a_long_log_gets_checkpoints_and_a_torn_one_does_no_harm(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    for seq in range(CHECKPOINT_EVERY + 1):
        lake.append_gaps([make_gap(seq)], 7)
    log = tmp_path / "gaps" / "_delta_log"
    (checkpoint,) = log.glob("*.checkpoint*.parquet")
    assert len(live_files(tmp_path / "gaps", CHECKPOINT_EVERY + 1)) == CHECKPOINT_EVERY + 1
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    assert len(query.read_gaps(Lake(tmp_path))) == CHECKPOINT_EVERY + 1
    assert not checkpoint.exists()


def test_quarantined_identities_are_hidden_from_readers_and_never_taken_again(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.append_chunks([make_chunk(1), make_chunk(2)], 7)
    lake.quarantine([("s01", "s01-phone", "e1", 1)], "conflict")
    assert [c.seq for c in query.read_chunks(lake)] == [2]
    assert query.logical_identities(lake, "chunks")["seq"].to_pylist() == [2]
    assert Lake(tmp_path).append_chunks([make_chunk(1)], 8).written == 0


def test_a_broken_log_is_an_error_that_names_it(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.append_chunks([make_chunk(1)], 7)
    (tmp_path / "chunks" / "_delta_log" / f"{1:020d}.json").write_text("{")
    with pytest.raises(LakeError, match="chunks"):
        query.read_chunks(Lake(tmp_path))


def test_labels_and_runs_are_stored_once(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    labels = [
        LabelInterval("s01", "s01-phone", START_NS, START_NS + S, "walking"),
        LabelInterval("s01", "s01-watch", START_NS, START_NS + S, "walking", "evaluate"),
    ]
    assert append_labels(lake, labels) == 2
    assert append_labels(lake, labels) == 0
    assert query.read_labels(lake, purpose="train") == labels[:1]
    run = {"run_id": "r1", "ended_ns": 5, "outcome": "promoted", "gates": {"gain": 0.1}}
    assert append_run(lake, run) == 1
    assert append_run(lake, run) == 0
    assert query.read_runs(lake) == [run]
    assert json.loads((tmp_path / "runs" / "_delta_log" / f"{1:020d}.json").read_text().splitlines()[1])["add"]
