"""Every format of recordings: made files to the last value, broken ones, and the real ones where they are at hand."""

from __future__ import annotations

import warnings
import wave
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from collectors.recordings import Recordings, open_recordings
from collectors.sensing.archive import Archive
from collectors.sources import Reading
from infomae_stream.errors import SourceError
from tests.recording_files import write_csv, write_wav
from tests.sensor_files import (
    T0_NS,
    T0_S,
    forth_text,
    metamotion_text,
    metamotion_zip,
    mobifall_text,
    mobifall_zip,
    sac_bytes,
    us_tmd_text,
    write_zip,
)
from tests.sensor_rig import Rig, drain, pieces_of, samples_of

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real recordings (../shared/data) are not here")


def only(recordings: Recordings):  # type: ignore[no-untyped-def]
    (name,) = recordings.names
    return recordings.load(name)


def test_forth_rows_have_nine_channels_and_times_without_a_date(tmp_path: Path) -> None:
    path = tmp_path / "part1dev1.csv"
    path.write_text(forth_text([90791, 90830, 90830, 90850.5]), encoding="utf-8")
    recordings = open_recordings(path)
    assert not recordings.description.has_time and len(recordings.description.channels) == 9
    loaded = only(recordings)
    assert (loaded.times_ns - loaded.times_ns[0]).tolist() == [0, 39_000_000, 39_000_000, 59_500_000]
    np.testing.assert_allclose(loaded.samples_CN[:, 2], [2 + c / 10 for c in range(9)], rtol=1e-6)
    # Played, it needs a time for its first sample.
    rig = Rig(tmp_path)
    with pytest.raises(SourceError, match="set the option start"):
        rig.make(type="replay", path=path.name)
    (reading,) = drain(rig.make(type="replay", path=path.name, start="2022-03-18T11:00:27Z", speed=0))
    assert reading.times_ns is not None and reading.times_ns[0] == T0_NS


def test_mobifalls_sensors_keep_their_offset_to_each_other(tmp_path: Path) -> None:
    path = mobifall_zip(tmp_path / "sub2.zip")
    with pytest.raises(SourceError, match="set part to one of: acc, gyro"):
        open_recordings(path)
    gyro, acc = (only(open_recordings(path, part=part)) for part in ("gyro", "acc"))
    assert (gyro.start_ns, acc.start_ns) == (T0_NS, T0_NS + 95_000_000)
    assert acc.times_ns.tolist() == [T0_NS + 95_000_000 + k * 11_000_000 for k in range(50)]
    assert acc.samples_CN.shape == (3, 50)


def test_a_mobifall_file_alone_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "WAL_acc_2_1.txt"
    path.write_text(mobifall_text([7_000, 8_000]), encoding="utf-8")
    assert only(open_recordings(path)).start_ns == T0_NS
    path.write_text("#nothing\n@DATA\n1,2,3,4\n", encoding="utf-8")
    with pytest.raises(SourceError, match="no Datetime"):
        only(open_recordings(path))


def test_metamotion_takes_rate_and_units_from_the_file(tmp_path: Path) -> None:
    path = metamotion_zip(tmp_path / "participant_A.zip")
    recordings = open_recordings(path, part="gyroscope")
    d = recordings.description
    assert (d.rate_hz, d.units[0], d.kind) == (25.0, "deg/s", "gyroscope")
    assert recordings.names == ("A-squat-heavy_2022-03-18T12.00.27.000",)
    loaded = only(recordings)
    assert loaded.times_ns[:2].tolist() == [T0_NS, T0_NS + 40_000_000]


def test_us_tmd_gives_one_sensor_out_of_the_log_and_refuses_what_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / f"U01_Bus_{T0_S * 1000}.csv"
    path.write_text(us_tmd_text(), encoding="utf-8")
    acc = only(open_recordings(path, part="accelerometer"))
    assert acc.times_ns[:3].tolist() == [T0_NS + t * 1_000_000 for t in (2, 200, 400)]
    assert acc.samples_CN[:, 1].tolist() == pytest.approx([1, 1.1, 1.2])
    sound = only(open_recordings(path, part="sound"))
    assert sound.times_ns.tolist() == [T0_NS + 10_325_000_000] and sound.samples_CN.tolist() == [[41.5]]
    assert sound.refused.count == 1 and "line 52" in sound.refused.first


@pytest.mark.parametrize("order", "<>")
def test_sac_of_either_byte_order(tmp_path: Path, order: str) -> None:
    path = tmp_path / "a.sac"
    path.write_bytes(sac_bytes([1.0, -2.5, 3.0], order=order, begin_s=0.25))
    recordings = open_recordings(path)
    d = recordings.description
    assert (d.rate_hz, d.channels, d.seed_id) == (250.0, ("EHZ",), "XX.EB0002..EHZ")
    loaded = only(recordings)
    assert loaded.start_ns == T0_NS + 750_000_000
    assert loaded.samples_CN.tolist() == [[1.0, -2.5, 3.0]]


def test_sac_agrees_with_obspy(tmp_path: Path) -> None:
    obspy = pytest.importorskip("obspy")
    path = tmp_path / "a.sac"
    path.write_bytes(sac_bytes(range(100), begin_s=0.25))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it rounds the float32 rate, as we do
        (trace,) = obspy.read(str(path), format="SAC")
    loaded = only(open_recordings(path))
    assert trace.stats.starttime.ns == loaded.start_ns and trace.id == "XX.EB0002..EHZ"
    np.testing.assert_array_equal(trace.data, loaded.samples_CN[0])


@pytest.mark.parametrize("damage", ["short", "version", "uneven", "nan"])
def test_broken_sac_is_refused(tmp_path: Path, damage: str) -> None:
    data = bytearray(sac_bytes([1.0, 2.0]))
    if damage == "short":
        data = data[:-4]
    elif damage == "version":
        data[280 + 24 : 280 + 28] = b"\x07\0\0\0"
    elif damage == "uneven":
        data[280 + 35 * 4 : 280 + 36 * 4] = b"\0\0\0\0"
    else:
        data[632:636] = b"\0\0\xc0\x7f"
    path = tmp_path / "a.sac"
    path.write_bytes(bytes(data))
    with pytest.raises(SourceError, match=r"a\.sac"):
        only(open_recordings(path))


def test_wav_of_24_bits_keeps_its_counts(tmp_path: Path) -> None:
    counts = [0, 1, -1, 2**23 - 1, -(2**23)]
    with wave.open(str(tmp_path / "a.wav"), "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(3)
        f.setframerate(48_000)
        f.writeframes(b"".join(c.to_bytes(3, "little", signed=True) for c in counts))
    recordings = open_recordings(tmp_path / "a.wav")
    assert only(recordings).samples_CN.tolist() == [counts] and recordings.description.sensitivity == (2.0**23,)


@pytest.mark.parametrize(("subtype", "dtype"), [("PCM_16", np.int16), ("PCM_24", np.int32)])
def test_flac_gives_the_samples_that_went_in(tmp_path: Path, subtype: str, dtype: type) -> None:
    soundfile = pytest.importorskip("soundfile")
    counts = (np.arange(1000) * 30 - 15_000).astype(np.int16)
    samples_NC = np.stack([counts, -counts], axis=1)
    if dtype is np.int32:
        samples_NC = samples_NC.astype(np.int32) << 16
    soundfile.write(tmp_path / "a.flac", samples_NC, 16_000, subtype=subtype)
    recordings = open_recordings(tmp_path / "a.flac")
    loaded = only(recordings)
    assert loaded.samples_CN.dtype == dtype
    np.testing.assert_array_equal(loaded.samples_CN, samples_NC.T)
    assert recordings.description.rate_hz == 16_000


def test_hourly_files_follow_each_other_with_the_times_of_their_names(tmp_path: Path) -> None:
    for hour in ("20220318_120000", "20220318_110000"):
        write_wav(tmp_path / f"{hour}.wav", 8_000)
    rig = Rig(tmp_path)
    options = {"path": "*.wav", "stream": "mic", "start_pattern": "%Y%m%d_%H%M%S"}
    source = rig.make(type="replay", speed=0, **options)
    pieces = pieces_of(source, drain(source))
    assert [(p.start_ns - T0_NS) // 10**9 for p in pieces] == [-27, 3573]
    assert [p.position.cursor for p in pieces] == ["20220318_110000", "20220318_120000"]
    # A name that tells no time costs that file alone, and is told.
    write_wav(tmp_path / "aa.wav", 8_000)
    source = rig.make(type="replay", speed=0, **options)
    assert len(pieces_of(source, drain(source))) == 2
    assert rig.refused == {("mic", "recording"): 1} and "start_pattern" in rig.details[0]


def test_files_of_different_makes_are_no_series(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 800, 8_000)
    write_wav(tmp_path / "b.wav", 800, 16_000)
    with pytest.raises(SourceError, match=r"b\.wav: its channels, units or rate differ from those of a\.wav"):
        Rig(tmp_path).make(type="replay", path="*.wav", start="2022-03-18T11:00:27Z")


def test_recordings_are_chosen_by_patterns(tmp_path: Path) -> None:
    members = {f"{trial}_acc_2_{n}.txt": mobifall_text([7_000, 8_000]) for trial in ("WAL", "JOG") for n in (1, 2)}
    write_zip(tmp_path / "s.zip", members)
    source = Rig(tmp_path).make(type="replay", path="s.zip", recordings=["WAL_*", "JOG_acc_2_2"], speed=0)
    assert [r.cursor for r in drain(source)] == ["WAL_acc_2_1", "WAL_acc_2_2", "JOG_acc_2_2"]


def test_a_bad_row_is_refused_with_its_line_and_the_rest_is_played(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [0, 10, 20])
    text = path.read_text(encoding="utf-8").splitlines()
    text[2:2] = ["1,2,3,x,5,6,7,SEATED", '1,"2', "1,2,3,nan,5,6,7,SEATED"]
    path.write_text("\n".join(text), encoding="utf-8")
    rig = Rig(tmp_path)
    source = rig.make(type="replay", path="a.csv", speed=0)
    assert samples_of(pieces_of(source, drain(source))).shape == (6, 3)
    assert rig.refused == {("imu", "row"): 3} and "a: line 3" in rig.details[0]


def test_a_file_of_mostly_bad_rows_is_of_another_make(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [0])
    with path.open("a", encoding="utf-8") as f:
        f.write("x\n" * 5)
    with pytest.raises(SourceError, match="5 of 6 rows cannot be read; line 3"):
        only(open_recordings(path))


def test_a_file_of_no_known_make_names_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("time,value\n1,2\n", encoding="utf-8")
    with pytest.raises(SourceError, match=r"no known make \(geotec: .*; metamotion: .*; us_tmd: .*; forth: "):
        open_recordings(tmp_path / "a.csv")
    write_zip(tmp_path / "a.zip", {"readme.md": "no data"})
    with pytest.raises(SourceError, match="no known make"):
        open_recordings(tmp_path / "a.zip")


def test_a_zip_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "s.zip", {"a.txt": "0" * 100_000})
    archive = Archive(path, max_member_bytes=10_000)
    with pytest.raises(SourceError, match="100000 bytes are more than 10000"):
        archive.read("a.txt")
    archive.close()


def test_metamotion_rows_of_other_units_are_refused(tmp_path: Path) -> None:
    path = metamotion_zip(tmp_path / "a.zip")
    other = "B-squat_MetaWear_2022-03-19T12.00.27.000_C42732BE255C_Accelerometer_12.500Hz_1.4.4.csv"
    with zipfile.ZipFile(path, "a") as z:
        z.writestr(other, metamotion_text([T0_S * 1000], "m/s2"))
    rig = Rig(tmp_path)
    source = rig.make(type="replay", path="a.zip", part="accelerometer", speed=0)
    assert {r.cursor for r in drain(source)} == {"A-squat-heavy_2022-03-18T12.00.27.000"}
    assert rig.refused == {("imu", "recording"): 1}


# -- the real recordings -----------------------------------------------------------------------------------------------


def played(path: str, most: int = 3, **options: object) -> tuple[Rig, list[Reading], np.ndarray]:
    rig = Rig(DATA)
    recordings = open_recordings(DATA / path, part=str(options.get("part", ""))).names[:most]
    source = rig.make(type="replay", path=path, speed=0, recordings=list(recordings), **options)
    readings = drain(source)
    source.close()
    return rig, readings, samples_of(pieces_of(source, readings))


@needs_data
def test_real_geotec() -> None:
    _, _, samples_CN = played("geotec_phone_watch/s01/s01_01_sp.csv")
    assert samples_CN.shape[0] == 6 and samples_CN.shape[1] > 1300
    assert np.median(np.linalg.norm(samples_CN[:3], axis=0)) == pytest.approx(9.81, abs=0.7)  # gravity


@needs_data
@pytest.mark.parametrize(("part", "rate_hz"), [("acc", 90.0), ("gyro", 200.0)])
def test_real_mobifall(part: str, rate_hz: float) -> None:
    rig, readings, samples_CN = played("mobifall_v2/sub2.zip", part=part)
    assert len({r.cursor for r in readings}) == 3
    times_N = next(r.times_ns for r in readings)
    assert times_N is not None
    assert 1e9 / np.median(np.diff(times_N)) == pytest.approx(rate_hz, rel=0.15)
    if part == "acc":
        assert np.median(np.linalg.norm(samples_CN, axis=0)) == pytest.approx(9.81, abs=1.5)
    assert not rig.refused


@needs_data
def test_real_forth() -> None:
    rig, _, samples_CN = played("forth_trace_subset/part4/part4dev3.csv", start="2016-01-01T00:00:00Z")
    assert samples_CN.shape[0] == 9 and samples_CN.shape[1] > 30_000
    assert np.median(np.linalg.norm(samples_CN[:3], axis=0)) == pytest.approx(9.81, abs=1.0)
    assert not rig.refused


@needs_data
@pytest.mark.parametrize(("part", "unit"), [("accelerometer", "[g]"), ("gyroscope", "deg/s")])
def test_real_metamotion(part: str, unit: str) -> None:
    recordings = open_recordings(DATA / "metamotion_barbell" / "participant_A.zip", part=part)
    assert len(recordings.names) == 29 and recordings.description.units[0] == unit
    rig, _, samples_CN = played("metamotion_barbell/participant_A.zip", part=part)
    if part == "accelerometer":
        assert np.median(np.linalg.norm(samples_CN, axis=0)) == pytest.approx(1.0, abs=0.1)
    assert not rig.refused


@needs_data
def test_real_us_tmd_with_a_sensor_that_some_trips_lack() -> None:
    rig, readings, samples_CN = played("us_tmd_raw/U01.zip", part="accelerometer")
    assert len({r.cursor for r in readings}) == 3
    assert np.median(np.linalg.norm(samples_CN, axis=0)) == pytest.approx(9.81, abs=1.5)
    rig, readings, _ = played("us_tmd_raw/U02.zip", most=4, part="sound")
    assert all(abs(r.start_ns - int(r.cursor.split("_")[2]) * 10**6) < 36e12 for r in readings)
    rig = Rig(DATA)
    source = rig.make(type="replay", path="us_tmd_raw/U03.zip", part="gyroscope", speed=0)
    assert drain(source) == []
    assert rig.refused["imu", "recording"] == len(open_recordings(DATA / "us_tmd_raw" / "U03.zip", part="sound").names)


@needs_data
def test_real_sac_starts_when_its_name_says() -> None:
    rig, readings, samples_CN = played("seismic_vehicle_mini/sac.zip", most=53, stream="ehz")
    assert len({r.cursor for r in readings}) == 53 and samples_CN.shape[1] >= 51 * 1500
    assert not rig.refused
    for r in readings:
        if r.offset == 0:
            name = datetime.strptime(r.cursor[:13], "%y%m%d.%H%M%S").replace(tzinfo=UTC)
            # Names are in the local time of China.
            assert abs(r.start_ns / 1e9 - name.timestamp() + 8 * 3600) < 2


@needs_data
def test_real_wav() -> None:
    rig = Rig(DATA)
    source = rig.make(
        type="replay", path="hydrophone_leak_wav/*.wav", stream="hydrophone", start="2022-01-01T00:00:00Z", speed=0
    )
    readings = drain(source)
    assert len({r.cursor for r in readings}) == 5
    assert sum(r.samples_CN.shape[1] for r in readings) / 8000 == pytest.approx(185, abs=20)
