"""miniSEED files: channels, gaps, overlaps, records out of order."""

from __future__ import annotations

from pathlib import Path

import pytest

from collectors.recordings import open_recordings
from infomae_stream.errors import SourceError
from tests.sensor_files import T0_NS, miniseed_bytes, write_miniseed
from tests.sensor_rig import Rig, drain, pieces_of, samples_of

pytest.importorskip("obspy")


def test_records_become_one_recording_with_the_seed_id(tmp_path: Path) -> None:
    path = write_miniseed(tmp_path / "a.mseed", [(0, range(1000)), (10, range(1000, 2000))])
    recordings = open_recordings(path)
    assert recordings.description.seed_id == "AM.R1234.00.EHZ" and recordings.description.rate_hz == 100.0
    assert recordings.names == ("20220318T110027.000000000Z",)
    loaded = recordings.load(recordings.names[0])
    assert loaded.start_ns == T0_NS and loaded.samples_CN.tolist() == [list(range(2000))]


def test_records_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    segments = [(5, range(500, 1000)), (0, range(500)), (10, range(1000, 1500))]
    source = Rig(tmp_path).make(type="replay", path=write_miniseed(tmp_path / "a.mseed", segments).name, speed=0)
    pieces = pieces_of(source, drain(source))
    assert samples_of(pieces).tolist() == [list(range(1500))]
    assert {p.position.cursor for p in pieces} == {"20220318T110027.000000000Z"}
    assert source.specs()[0].seed_id == "AM.R1234.00.EHZ"


def test_a_gap_begins_another_recording(tmp_path: Path) -> None:
    path = write_miniseed(tmp_path / "a.mseed", [(0, range(500)), (7.5, range(750, 1000))])
    recordings = open_recordings(path)
    assert recordings.names == ("20220318T110027.000000000Z", "20220318T110034.500000000Z")
    assert recordings.load(recordings.names[1]).start_ns == T0_NS + 7_500_000_000


def test_overlapping_and_doubled_records_give_every_sample_once(tmp_path: Path) -> None:
    segments = [(0, range(500)), (3, range(300, 800)), (1, range(100, 200)), (0, range(500))]
    rig = Rig(tmp_path)
    source = rig.make(type="replay", path=write_miniseed(tmp_path / "a.mseed", segments).name, speed=0)
    assert samples_of(pieces_of(source, drain(source))).tolist() == [list(range(800))]
    assert rig.refused == {("imu", "row"): 800} and "samples overlap" in rig.details[0]


def test_one_of_several_channels_is_chosen_by_its_seed_id(tmp_path: Path) -> None:
    path = write_miniseed(tmp_path / "a.mseed", [(0, range(500))])
    with path.open("ab") as f:
        f.write(miniseed_bytes(T0_NS, range(200), channel="EHN"))
    with pytest.raises(SourceError, match=r"set part to one of: AM\.R1234\.00\.EHN, AM\.R1234\.00\.EHZ"):
        open_recordings(path)
    recordings = open_recordings(path, part="AM.R1234.00.EHN")
    assert recordings.load(recordings.names[0]).samples_CN.shape == (1, 200)


def test_a_torn_file_is_read_as_far_as_it_goes_or_refused(tmp_path: Path) -> None:
    path = write_miniseed(tmp_path / "a.mseed", [(0, range(5000))])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 300])
    try:
        recordings = open_recordings(path)
    except SourceError:
        return
    samples = recordings.load(recordings.names[0]).samples_CN[0]
    assert samples.tolist() == list(range(len(samples))) and len(samples) > 2000
