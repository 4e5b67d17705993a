"""Out of a lake into files and into another lake: the same samples at the same times, in every format."""

from __future__ import annotations

import json
import tempfile
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from infomae_stream.clock import NS_PER_S
from infomae_stream.types import Chunk, ClockQuality, StreamId, StreamSpec
from storage.exports import FORMATS
from storage.lake import Lake
from storage.query import read_chunks
from storage.segments import live_files
from tests.commands import run_command
from tests.hub_records import START_NS

CLOCK = ClockQuality("chrony", 10, 2_000, True)
RATES = (3.0, 8.0, 99.97, 100.0, 1000.0)


@st.composite
def recordings(draw: st.DrawFn) -> list[Chunk]:
    """Chunks of one stream: holes, jitter below half a sample, overlaps, extreme counts."""
    dtype = np.dtype(draw(st.sampled_from(["int16", "int32", "float32"])))
    rate_hz = draw(st.sampled_from(RATES))
    channels = tuple(f"c{i}" for i in range(draw(st.integers(1, 6))))
    n_channels = len(channels)
    spec = StreamSpec(
        StreamId("s01", "n01", "geo"), "seismic", rate_hz, channels, ("m/s",) * n_channels, (1234.5,) * n_channels
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    step_ns = NS_PER_S / rate_hz
    start_ns, chunks = START_NS + draw(st.integers(0, NS_PER_S)), []
    for seq in range(1, draw(st.integers(1, 8)) + 1):
        n = draw(st.integers(1, 60))
        if dtype.kind == "i":
            limits = np.iinfo(dtype)
            samples = rng.integers(limits.min, limits.max, (n_channels, n), dtype=dtype, endpoint=True)
        else:
            samples = rng.normal(0, 1e6, (n_channels, n)).astype(dtype)
            samples[0, 0] = draw(st.sampled_from([0.0, -0.0, np.nan, np.inf, 1e-45]))
        chunks.append(Chunk(spec, "e1", seq, start_ns, samples, CLOCK))
        shift = draw(st.sampled_from(["none", "none", "jitter", "hole", "back"]))
        moved = {"none": 0.0, "jitter": 0.3, "hole": 17.25, "back": -0.75}[shift] * step_ns
        start_ns = max(chunks[-1].end_ns + round(moved), chunks[-1].start_ns + 1)
    return chunks


def timed_samples(chunks: list[Chunk]) -> list[tuple[int, int, bytes, str]]:
    """What is the same however chunks are named: start, length, samples' bytes and type."""
    return sorted((c.start_ns, c.n_samples, c.samples_CN.tobytes(), c.samples_CN.dtype.name) for c in chunks)


def check_round_trip(name: str, chunks: list[Chunk]) -> None:
    if name == "wav" and chunks[0].spec.rate_hz == 99.97:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        lake, other = Lake(path / "a"), Lake(path / "b")
        lake.append_chunks(chunks, 7)
        files = export(lake, path / "out", name)
        for expected in (len(chunks), 0):  # the second time changes nothing
            found = run_command("lake", "import", *files, "--lake", other.path, "--json").value()
            assert sum(file["new"] for file in found["files"]) == expected
        back = read_chunks(Lake(other.path))
        assert timed_samples(back) == timed_samples(chunks)
        assert all(c.spec == chunks[0].spec and c.clock.uncertainty_ns == 2_000 for c in back)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=2, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(chunks=recordings())
def test_export_and_import_give_the_same_samples_at_the_same_times(name: str, chunks: list[Chunk]) -> None:
    check_round_trip(name, chunks)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(chunks=recordings())
def test_many_recordings_come_back_the_same(name: str, chunks: list[Chunk]) -> None:
    check_round_trip(name, chunks)


def export(lake: Lake, out: Path, name: str, *more: Any) -> list[str]:
    arguments = ("--format", name, "--stream", "s01/n01/geo", "--out", out, "--json", *more)
    found = run_command("lake", "export", "--lake", lake.path, *arguments).value()
    return [file["file"] for file in found["files"]]


def steady(seq: int, *, rate_hz: float = 100.0, times: bool = False, node: str = "n01", shift_s: float = 0) -> Chunk:
    spec = StreamSpec(
        StreamId("s01", node, "geo"), "seismic", rate_hz, ("z",), ("m/s",), (10.0,), seed_id="NL.HGN.00.HHZ"
    )
    samples = np.arange(100, dtype=np.int32)[None, :] + 1000 * seq
    start_ns = START_NS + seq * NS_PER_S + round(shift_s * NS_PER_S)
    times_ns = start_ns + np.arange(100) * 10_000_000 + (np.arange(100) % 3) if times else None
    return Chunk(spec, "e1", seq, start_ns, samples, CLOCK, times_ns)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Ten seconds with a hole at the fourth."""
    made = Lake(tmp_path / "lake")
    made.append_chunks([steady(k) for k in range(10) if k != 4], 7)
    return made


def test_the_range_is_cut_to_the_sample(lake: Lake, tmp_path: Path) -> None:
    start = START_NS / NS_PER_S
    files = export(lake, tmp_path / "out", "parquet", "--from", f"{start + 1.5}", "--to", "2020-09-13T12:26:42.250Z")
    rows = pq.read_table(files[0]).to_pylist()
    assert [row["z"] for row in rows] == [*range(1050, 1100), *range(2000, 2025)]
    assert rows[0]["time_ns"] == START_NS + 1_500_000_000
    told = json.loads(Path(files[0] + ".json").read_text())
    assert told["n_samples"] == 75 and told["spec"]["sensitivity"] == [10.0] and told["tables"]["chunks"] == 1
    assert told["asked"]["from_ns"] == START_NS + 1_500_000_000


def test_a_hole_makes_two_wav_files_or_is_filled_and_told(lake: Lake, tmp_path: Path) -> None:
    first, second = export(lake, tmp_path / "two", "wav")
    (filled,) = export(lake, tmp_path / "one", "wav", "--fill")
    assert [frames(f) for f in (first, second, filled)] == [400, 500, 1000]
    told = json.loads(Path(filled + ".json").read_text())
    assert told["filled_samples"] == 100 and [s["index"] for s in told["stretches"]] == [0, 500]
    other = Lake(tmp_path / "other")
    run_command("lake", "import", filled, "--lake", other.path).ok()
    assert timed_samples(read_chunks(Lake(other.path))) == timed_samples(read_chunks(lake))


def frames(path: str) -> int:
    with wave.open(path) as f:
        return f.getnframes()


def test_others_read_our_miniseed(lake: Lake, tmp_path: Path) -> None:
    from storage.exports.mseed import load_obspy

    (file,) = export(lake, tmp_path / "out", "mseed")
    obspy = load_obspy()
    traces = obspy.read(file)
    assert [(t.id, t.stats.npts, t.stats.starttime.ns) for t in traces] == [
        ("NL.HGN.00.HHZ", 400, START_NS),
        ("NL.HGN.00.HHZ", 500, START_NS + 5 * NS_PER_S),
    ]
    assert traces[0].stats.mseed.encoding == "STEIM2" and traces[1].data[0] == 5000


def test_jitter_is_kept_to_the_microsecond_in_miniseed_alone(tmp_path: Path) -> None:
    from storage.exports.mseed import load_obspy

    lake = Lake(tmp_path / "lake")
    lake.append_chunks([steady(k, shift_s=0.003 * (k % 2)) for k in range(4)], 7)
    (file,) = export(lake, tmp_path / "out", "mseed")
    look = load_obspy().io.mseed.util.get_record_information  # reading would join what is nearly contiguous
    starts = [look(file, offset=at)["starttime"].ns for at in range(0, Path(file).stat().st_size, 512)]
    assert starts == [START_NS + k * NS_PER_S + 3_000_000 * (k % 2) for k in range(4)]


def test_an_irregular_stream_keeps_its_times_or_is_refused(tmp_path: Path) -> None:
    lake, other = Lake(tmp_path / "lake"), Lake(tmp_path / "other")
    chunks = [steady(k, times=True) for k in range(3)]
    lake.append_chunks(chunks, 7)
    for name in ("wav", "mseed"):
        bad = run_command(
            "lake", "export", "--lake", lake.path, "--format", name, "--stream", "s01/n01/geo", "--out", tmp_path / "x"
        )
        assert bad.code == 1 and "a time for each sample" in bad.err and "csv or parquet" in bad.err
        assert not (tmp_path / "x").exists()
    for name in ("csv", "parquet"):
        (file,) = export(lake, tmp_path / name, name)
        run_command("lake", "import", file, "--lake", other.path, "--node", name).ok()
        back = read_chunks(Lake(other.path), streams=[StreamId("s01", name, "geo")])
        assert timed_samples(back) == timed_samples(chunks)
        assert all(np.array_equal(a.times_ns, b.times_ns) for a, b in zip(back, chunks, strict=True))


def test_quarantined_chunks_and_copies_are_left_out_and_counted(lake: Lake, tmp_path: Path) -> None:
    lake.quarantine([("s01", "n01", "e1", 2)], "conflict")
    (file,) = export(lake, tmp_path / "out", "csv")
    told = json.loads(Path(file + ".json").read_text())
    assert told["n_samples"] == 800 and told["left_out"] == {"quarantined_chunks": 1, "copies": 0}


def test_a_torn_file_is_no_hole(lake: Lake, tmp_path: Path) -> None:
    (file,) = live_files(lake.table_path("chunks"), 1)
    file.write_bytes(file.read_bytes()[:-9])
    arguments = ("--stream", "s01/n01/geo", "--out", tmp_path / "out")
    bad = run_command("lake", "export", "--lake", lake.path, *arguments)
    assert bad.code == 1 and "1 of the files that may hold this range are torn" in bad.err
    assert not (tmp_path / "out").exists()


def test_a_changed_sensitivity_makes_a_second_file(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    old = [steady(k) for k in range(2)]
    spec = StreamSpec(old[0].spec.id, "seismic", 100.0, ("z",), ("m/s",), (99.0,))
    new = [Chunk(spec, "e1", k, START_NS + k * NS_PER_S, old[0].samples_CN, CLOCK) for k in (2, 3)]
    lake.append_chunks([*old, *new], 7)
    files = export(lake, tmp_path / "out", "csv")
    assert [json.loads(Path(f + ".json").read_text())["spec"]["sensitivity"] for f in files] == [[10.0], [99.0]]


BAD: dict[str, tuple[tuple[str, ...], int, str]] = {
    "unknown stream": (("--stream", "s01/n01/gео"), 2, "is not SITE/NODE/STREAM"),
    "near stream": (("--stream", "s01/n1/geo"), 1, "nearest: s01/n01/geo"),
    "empty range": (
        ("--stream", "s01/n01/geo", "--from", "5", "--to", "6"),
        1,
        "it has 2020-09-13T12:26:40.000000000Z",
    ),
    "range backward": (("--stream", "s01/n01/geo", "--from", "6", "--to", "5"), 2, "is not after"),
    "naive time": (("--stream", "s01/n01/geo", "--from", "2026-01-01T00:00:00"), 2, "write 2026-01-01T00:00:00Z"),
    "no time": (("--stream", "s01/n01/geo", "--from", "yesterday"), 2, "is not a time"),
    "fill": (("--stream", "s01/n01/geo", "--format", "csv", "--fill"), 2, "no other way"),
    "seed id": (("--stream", "s01/n01/geo", "--format", "mseed", "--seed-id", "HHZ"), 1, "is not a SEED id"),
    "no stream": ((), 2, "Missing option"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused_with_what_to_do(case: str, lake: Lake, tmp_path: Path) -> None:
    arguments, code, text = BAD[case]
    bad = run_command("lake", "export", "--lake", lake.path, "--out", tmp_path / "out", *arguments)
    assert (bad.code, text in bad.plain) == (code, True), bad.err
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_or_is_there_is_refused(lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    arguments = ("lake", "export", "--lake", lake.path, "--stream", "s01/n01/geo", "--out")
    assert "cannot make the folder" in run_command(*arguments, tmp_path / "file").err
    run_command(*arguments, tmp_path / "out").ok()
    again = run_command(*arguments, tmp_path / "out")
    assert again.code == 1 and "there already" in again.err
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_import_refuses_a_changed_file_and_samples_that_are_there(lake: Lake, tmp_path: Path) -> None:
    (file,) = export(lake, tmp_path / "out", "csv")
    same = run_command("lake", "import", file, "--lake", lake.path)
    assert same.code == 1 and "already holds 9 chunks" in same.err
    Path(file).write_text(Path(file).read_text().replace("1000", "1001"))
    bad = run_command("lake", "import", file, "--lake", lake.path, "--node", "n02")
    assert bad.code == 1 and "SHA-256" in bad.err


def test_recordings_of_others_are_taken_when_it_is_said_whose_they_are(tmp_path: Path) -> None:
    from storage.exports.mseed import load_obspy

    obspy, lake = load_obspy(), Lake(tmp_path / "lake")
    traces = [
        obspy.Trace(np.arange(250, dtype=np.int32) + i, {"station": "A", "channel": f"HH{c}", "sampling_rate": 100.0})
        for i, c in enumerate("ZN")
    ]
    for t in traces:
        t.stats.starttime = obspy.UTCDateTime(ns=START_NS)
    obspy.Stream(traces).write(str(tmp_path / "f.mseed"), format="MSEED")
    file = ("lake", "import", tmp_path / "f.mseed", "--lake", lake.path)
    assert "set part to one of: .A..HHN, .A..HHZ" in run_command(*file).err
    bad = run_command(*file, "--part", ".A..HHN")
    assert bad.code == 1 and "--site --node --stream" in bad.err
    run_command(*file, "--part", ".A..HHN", "--site", "s01", "--node", "n01", "--stream", "geo").ok()
    chunks = read_chunks(Lake(lake.path))
    assert sum(c.n_samples for c in chunks) == 250 and chunks[0].start_ns == START_NS
    assert chunks[0].samples_CN[0, :3].tolist() == [1, 2, 3]


def test_a_wav_of_others_needs_its_start(tmp_path: Path) -> None:
    from tests.recording_files import write_wav

    lake, file = Lake(tmp_path / "lake"), write_wav(tmp_path / "a.wav", 12_000)
    whose = ("--lake", lake.path, "--site", "s01", "--node", "n01", "--stream", "mic")
    assert "give --start" in run_command("lake", "import", file, *whose).err
    for new in (2, 0):
        found = run_command("lake", "import", file, *whose, "--start", "2026-01-01T00:00:00Z", "--json").value()
        assert found["files"][0]["new"] == new
    damaged = tmp_path / "b.mseed"
    damaged.write_bytes(b"no records")
    assert "cannot be read as miniSEED" in run_command("lake", "import", damaged, *whose).err
