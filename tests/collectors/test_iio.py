"""Industrial I/O: layouts of records, what is set in sysfs, times, and what the messages say when it is not to be."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collectors.sensing.iio_layout import RecordLayout, ScanElement
from collectors.sources import Source
from infomae_stream.clock import NS_PER_S, ManualClock
from infomae_stream.errors import SourceError
from tests.iio_tree import ATTRIBUTES, SIX_AXES, IioTree
from tests.sensor_rig import Rig, pieces_of, samples_of

NOW = 1_700_000_000 * NS_PER_S


def record(k: int, time_ns: int) -> bytes:
    """Six int16, four bytes of padding, the time."""
    return struct.pack("<6h4xq", *(k + axis for axis in range(6)), time_ns)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[IioTree]:
    made = IioTree(tmp_path)
    yield made
    made.close()


@pytest.fixture
def source(tree: IioTree, tmp_path: Path) -> Iterator[Any]:
    made = Rig(tmp_path, ManualClock(NOW)).make(type="iio", rate_hz=104, **tree.options)
    yield made
    made.close()


def make(tree: IioTree, **options: Any) -> Source:
    return Rig(tree.sysfs, ManualClock(NOW)).make(type="iio", **{"rate_hz": 104, **tree.options, **options})  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("described", "stored", "value"),
    [
        ("le:s12/16>>4", b"\xf0\xff", -1),
        ("le:s12/16>>4", b"\x1f\x00", 1),
        ("be:s16/16>>0", b"\xff\xfe", -2),
        ("be:u12/16>>0", b"\xff\xff", 4095),
        ("le:s24/32>>8", b"\xff\xff\xff\x7f", 2**23 - 1),
        ("le:s32/32>>0", b"\x00\x00\x00\x80", -(2**31)),
        ("le:s64/64>>0", b"\xff" * 8, -1),
        ("le:u8/8>>0", b"\xff", 255),
    ],
)
def test_stored_words_become_values(described: str, stored: bytes, value: int) -> None:
    layout = RecordLayout([ScanElement.parse("a", "0", described)])
    assert layout.decode(stored)["a"].tolist() == [value]


@pytest.mark.parametrize("described", ["", "le:s16", "le:f16/16>>0", "le:s16/16X3>>0", "le:s20/16>>0", "le:s16/24>>0"])
def test_an_unknown_type_is_refused(described: str) -> None:
    with pytest.raises(SourceError, match="in_accel_x"):
        ScanElement.parse("in_accel_x", "0", described)


def test_elements_are_aligned_to_their_size_and_records_to_the_largest() -> None:
    types = {"a": (0, "le:s16/16>>0"), "c": (5, "le:s64/64>>0"), "b": (2, "le:s32/32>>0"), "d": (6, "le:s8/8>>0")}
    layout = RecordLayout([ScanElement.parse(n, str(i), t) for n, (i, t) in types.items()])
    assert layout.record_bytes == 24
    data = struct.pack("<hxxiqb7x", 1, 2, 3, 4) + struct.pack("<hxxiqb7x", -1, -2, -3, -4)
    assert {n: v.tolist() for n, v in layout.decode(data).items()} == {
        "a": [1, -1],
        "b": [2, -2],
        "c": [3, -3],
        "d": [4, -4],
    }


def test_records_become_samples_with_the_drivers_times(tree: IioTree, source: Any) -> None:
    times = [NOW + k * 9_615_385 for k in range(300)]
    data = b"".join(record(k, t) for k, t in enumerate(times))
    readings = []
    for i in range(0, len(data), 1000):  # records arrive cut anywhere
        tree.give(data[i : i + 1000])
        readings += source.poll(0.0)
    pieces = pieces_of(source, readings)
    samples_CN = samples_of(pieces)
    assert samples_CN.dtype == np.int16
    np.testing.assert_array_equal(samples_CN, np.arange(300) + np.arange(6)[:, None])
    assert [t for p in pieces for t in p.times_ns.tolist()] == times  # type: ignore[union-attr]
    (spec,) = source.specs()
    assert (spec.kind, spec.channels, spec.units) == (
        "imu",
        ("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z"),
        ("m/s2",) * 3 + ("rad/s",) * 3,
    )
    assert spec.sensitivity[0] == pytest.approx(1 / 0.000598) and spec.sensitivity[5] == pytest.approx(1 / 0.000153)


def test_the_device_is_set_up_and_switched_off_again(tree: IioTree) -> None:
    source = make(tree, watermark=20, quantities=["accel"])
    assert [tree.text(f"scan_elements/{name}_en") for name in SIX_AXES] == ["1"] * 3 + ["0"] * 3 + ["1"]
    said = {n: tree.text(n) for n in ATTRIBUTES if "buffer" in n or n in ("sampling_frequency",)}
    assert said == {
        "buffer/enable": "1",
        "buffer/length": "512",
        "buffer/watermark": "20",
        "sampling_frequency": "104",
    }
    assert tree.text("current_timestamp_clock") == "realtime"
    assert source.specs()[0].kind == "accelerometer"
    source.close()
    assert tree.text("buffer/enable") == "0"


def test_a_device_is_found_by_its_name_whatever_its_number(tmp_path: Path) -> None:
    other = IioTree(tmp_path, {"in_accel_x": (0, "le:s16/16>>0")}, {**ATTRIBUTES, "name": "other"}, number=0)
    tree = IioTree(tmp_path, number=3)
    source = make(tree)
    assert tree.text("buffer/enable") == "1"
    source.close()
    with pytest.raises(
        SourceError, match=r"no device 'bno055'; devices: other \(iio:device0\), lsm6dso \(iio:device3\)"
    ):
        make(tree, device="bno055")
    tree.close()
    other.close()


def test_without_time_stamps_the_arrival_counts_and_its_uncertainty_is_told(tmp_path: Path) -> None:
    elements = {name: e for name, e in SIX_AXES.items() if "accel" in name}
    tree = IioTree(tmp_path, elements)
    clock = ManualClock(NOW)
    source = Rig(tmp_path, clock).make(type="iio", rate_hz=100, watermark=10, **tree.options)
    readings = []
    rng = np.random.default_rng(0)
    for k in range(100):
        clock.advance(0.1 + float(rng.normal(0, 0.002)) if k else 0.1)
        tree.give(struct.pack("<30h", *range(30)))
        readings += source.poll(0.0)
    assert {r.uncertainty_ns for r in readings} == {200_000_000}
    pieces = pieces_of(source, readings)
    assert sum(p.hole_ns for p in pieces) == 0 and samples_of(pieces).shape == (3, 1000)
    source.close()
    tree.close()


def test_an_offset_is_added_before_the_scale(tmp_path: Path) -> None:
    elements = {"in_accel_x": (0, "le:u12/16>>0"), "in_timestamp": (1, "le:s64/64>>0")}
    tree = IioTree(tmp_path, elements, {**ATTRIBUTES, "in_accel_x_offset": "-2048", "in_accel_x_scale": "0.01"})
    source = make(tree)
    tree.give(struct.pack("<H6xqH6xq", 2048, NOW, 2148, NOW + 10**7))
    (reading,) = source.poll(0.0)
    assert reading.samples_CN.tolist() == [[0, 100]]
    assert source.specs()[0].sensitivity == (100.0,)
    source.close()
    tree.close()


def test_clipping_is_judged_by_the_bits_of_the_sensor(tmp_path: Path) -> None:
    tree = IioTree(tmp_path, {"in_accel_x": (0, "le:s12/16>>4"), "in_timestamp": (1, "le:s64/64>>0")})
    source = make(tree)
    tree.give(struct.pack("<h6xq", 2047 << 4, NOW))
    (reading,) = source.poll(0.0)
    assert (reading.samples_CN.tolist(), reading.full_scale) == ([[2047]], 2047.0)
    source.close()
    tree.close()


def test_a_rate_that_the_device_does_not_take_is_told(tree: IioTree) -> None:
    rate = tree.device / "sampling_frequency"
    rate.unlink()
    (tree.device / "sampling_frequency_available").write_text("12.5 26 52 104\n", encoding="ascii")
    rate.symlink_to("/dev/null")  # takes any value and keeps none, as a driver with its own mind
    with pytest.raises(SourceError, match=r"it runs at 0 Hz, not at rate_hz 100; it can: 12\.5 26 52 104"):
        make(tree, rate_hz=100)


def test_a_device_without_a_buffer_is_told(tmp_path: Path) -> None:
    tree = IioTree(tmp_path, {})
    with pytest.raises(SourceError, match="it has no buffered accel or anglvel or magn; needs a driver with a buffer"):
        make(tree)
    with pytest.raises(SourceError, match="no quantity 'gravity'"):
        make(tree, quantities=["gravity"])
    tree.close()


def test_a_device_that_goes_away_ends_the_source_with_words(tree: IioTree) -> None:
    source = make(tree)
    tree.fifo.unlink()
    tree.fifo.mkdir()
    source.close()
    with pytest.raises(SourceError, match="the device failed: Bad file descriptor"):
        source.poll(0.0)
