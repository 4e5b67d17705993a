"""The replay source: pacing, pauses, formats, exports of the lake, files that are not what they should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collectors.recordings import open_recordings
from collectors.recordings.parquet import ParquetDecoder
from collectors.sources import Reading, Source, SourceContext, make_source
from infomae_stream.clock import ManualClock
from infomae_stream.errors import SourceClosed, SourceError
from infomae_stream.types import Chunk, ClockQuality, StreamId, StreamSpec
from tests.recording_files import T0_MS, write_excerpt, write_wav


def replay(folder: Path, clock: ManualClock, **options: Any) -> Source:
    context = SourceContext("s01", "s01-phone", folder, clock, lambda stream: None)
    return make_source({"type": "replay", **options}, context, where="t", prefix=())


def test_times_are_those_of_the_recording_whatever_the_speed(tmp_path: Path) -> None:
    write_excerpt(tmp_path / "a.parquet", {"r1": [0, 13, 13, 20]})
    clock = ManualClock()
    source = replay(tmp_path, clock, path="a.parquet", speed=0)
    (reading,) = source.poll(0.0)
    assert reading.times_ns is not None
    assert ((reading.times_ns // 1_000_000) - T0_MS).tolist() == [0, 13, 13, 20]
    assert reading.samples_CN[:, 1].tolist() == [10, 11, 12, 13, 14, 15]
    (spec,) = source.specs()
    assert (spec.modality, spec.kind, spec.sensitivity[0], str(spec.id)) == (
        "phone_imu",
        "imu",
        400.0,
        "s01/s01-phone/imu",
    )


def played(source: Source, clock: ManualClock, seconds: float, step_s: float = 0.1) -> list[tuple[float, Reading]]:
    began_ns, got = clock.monotonic_ns(), []
    while clock.monotonic_ns() - began_ns < seconds * 1e9:
        try:
            got += [((clock.monotonic_ns() - began_ns) / 1e9, r) for r in source.poll(0.0)]
        except SourceClosed:
            break
        clock.advance(step_s)
    return got


def test_recordings_follow_each_other_with_pauses_and_the_prompt_ones_without(tmp_path: Path) -> None:
    ten_seconds = list(range(0, 10_000, 10))
    write_excerpt(tmp_path / "a.parquet", {name: ten_seconds for name in ("r1", "r2", "r3", "r4")})
    clock = ManualClock()
    options = {"speed": 10, "pause_s": 3, "prompt_recordings": 2, "start_after_s": 5}
    got = played(replay(tmp_path, clock, path="a.parquet", **options), clock, 60)
    first = {name: min(t for t, r in got if r.cursor == name) for name in ("r1", "r2", "r3", "r4")}
    assert first["r1"] == pytest.approx(5.0, abs=0.11)
    assert first["r2"] == pytest.approx(6.0, abs=0.11)
    assert first["r3"] == pytest.approx(10.0, abs=0.21)
    assert first["r4"] == pytest.approx(14.0, abs=0.31)
    assert sum(r.samples_CN.shape[1] for _, r in got) == 4000


def test_only_the_named_recordings_are_played(tmp_path: Path) -> None:
    write_excerpt(tmp_path / "a.parquet", {"r1": [0], "r2": [10], "r3": [20]})
    clock = ManualClock()
    got = played(replay(tmp_path, clock, path="a.parquet", recordings=["r3", "r1"], speed=0), clock, 5)
    assert [r.cursor for _, r in got] == ["r3", "r1"]


def test_a_recording_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    write_excerpt(tmp_path / "a.parquet", {"r1": [0]})
    with pytest.raises(SourceError, match="no recording 'r9'; there are: r1"):
        replay(tmp_path, ManualClock(), path="a.parquet", recordings=["r9"])


def test_wav_needs_a_start_and_has_exact_times(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 16_000)
    with pytest.raises(SourceError, match="option start"):
        replay(tmp_path, ManualClock(), path="a.wav")
    clock = ManualClock()
    source = replay(tmp_path, clock, path="a.wav", stream="mic", start="2026-01-01T00:00:00Z")
    got = played(source, clock, 5, step_s=0.5)
    assert got[-1][1].times_ns is None
    starts = [r.start_ns for _, r in got]
    assert starts[0] == 1_767_225_600 * 10**9
    offsets = [round((s - starts[0]) * 8e-6) for s in starts]
    assert offsets == [r.offset for _, r in got]


def test_a_decoder_that_was_killed_is_started_again(tmp_path: Path) -> None:
    write_excerpt(tmp_path / "a.parquet", {"r1": [0, 10]})
    decoder = ParquetDecoder()
    for _ in range(2):
        assert decoder.decode(tmp_path / "a.parquet", tmp_path)["recordings"] == [["r1", 0, 2]]
        assert decoder._child is not None
        decoder._child.kill()
        decoder._child.wait()
    decoder.close()


def test_a_missing_file_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere\.parquet"):
        replay(tmp_path, ManualClock(), path="nowhere.parquet")


def test_rows_of_the_lake_come_back_as_one_recording_without_duplicates(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from storage.rows import chunk_rows

    spec = StreamSpec(
        StreamId("s01", "n", "imu"), "imu", 100.0, ("x", "y"), ("m/s2", "m/s2"), (400.0, 200.0), "watch_imu"
    )
    chunks = []
    for seq, start_ms in ((2, 1000), (1, 0), (1, 0)):
        samples_CN = (np.arange(200, dtype=np.int16).reshape(2, 100) + start_ms).astype(np.int16)
        chunks.append(Chunk(spec, "e", seq, start_ms * 10**6, samples_CN, ClockQuality("t")))
    pq.write_table(chunk_rows(chunks, 0), tmp_path / "lake.parquet")
    recordings = open_recordings(tmp_path / "lake.parquet")
    assert recordings.names == ("s01_n_imu",)
    loaded = recordings.load("s01_n_imu")
    assert loaded.times_ns is not None
    assert loaded.times_ns.tolist() == [i * 10**7 for i in range(200)]
    np.testing.assert_array_equal(loaded.samples_CN[:, :100], chunks[1].samples_CN)
    np.testing.assert_array_equal(loaded.samples_CN[:, 100:], chunks[0].samples_CN)
    assert recordings.description.modality == "watch_imu"


EXCERPT = Path(__file__).parents[2] / "demo" / "recordings" / "geotec_phone_watch"


def test_the_shipped_excerpt_holds_all_people_with_int16_counts() -> None:
    files = sorted(f.name for f in EXCERPT.glob("*.parquet"))
    assert files == sorted(f"s{i:02d}_{device}.parquet" for i in range(1, 18) for device in ("phone", "watch"))
    recordings = open_recordings(EXCERPT / "s01_watch.parquet")
    loaded = recordings.load("s01_01")
    assert loaded.samples_CN.dtype == np.int16 and loaded.samples_CN.shape[0] == 6
    acc_3N = loaded.samples_CN[:3] / recordings.description.sensitivity[0]
    assert np.median(np.linalg.norm(acc_3N, axis=0)) == pytest.approx(9.81, abs=0.5)  # gravity
    assert loaded.times_ns is not None and 0.9 < len(loaded.times_ns) / np.ptp(loaded.times_ns) * 1e7 < 1.2
    assert (EXCERPT / "ATTRIBUTION.md").read_text(encoding="utf-8").count("CC BY 4.0")
