"""IMUs on I2C against a register model: setting up, bursts, an oscillator that is off, overflow, absent chips."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collectors.sources import check_options
from collectors.sources.i2c import I2cSource
from infomae_stream.clock import NS_PER_S, ManualClock
from infomae_stream.errors import ConfigError, SourceError
from tests.imu_model import ImuModel
from tests.sensor_rig import Rig, pieces_of, samples_of

CHIPS = ("mpu6050", "icm20948")


def make(model: ImuModel, rig: Rig, **options: Any) -> I2cSource:
    checked, cls = check_options({"type": "i2c", "chip": model.chip, **options}, where="node.toml", prefix=())
    return cls(checked, rig.context, lambda: model)  # type: ignore[no-any-return]


def run(model: ImuModel, source: I2cSource, clock: ManualClock, polls: int, rate_hz: float) -> list[Any]:
    """Polls every 50 ms; the chip samples at rate_hz and counts its samples."""
    readings, taken, began_ns = [], 0, clock.monotonic_ns()
    for _ in range(polls):
        clock.advance(0.05)
        while taken < (clock.monotonic_ns() - began_ns) / NS_PER_S * rate_hz:
            model.sample([taken % 30_000, *range(5)])
            taken += 1
        readings += source.poll(0.0)
    return readings


@pytest.mark.parametrize("chip", CHIPS)
def test_samples_come_out_as_they_went_in(chip: str, tmp_path: Path) -> None:
    model, rig = ImuModel(chip), Rig(tmp_path, ManualClock())
    source = make(model, rig)
    (spec,) = source.specs()
    assert spec.rate_hz == {"mpu6050": 100.0, "icm20948": 1125 / 11}[chip]
    readings = run(model, source, rig.clock, 200, spec.rate_hz)  # type: ignore[arg-type]
    pieces = pieces_of(source, readings)
    samples_CN = samples_of(pieces)
    assert samples_CN.dtype == np.int16 and samples_CN[0].tolist() == list(range(samples_CN.shape[1]))
    assert samples_CN[1:, -1].tolist() == [0, 1, 2, 3, 4]
    assert sum(p.hole_ns for p in pieces) == 0 and not rig.refused
    assert 0.99 < samples_CN.shape[1] / (10 * spec.rate_hz) < 1.01
    source.close()
    assert model.closed


@pytest.mark.parametrize(
    ("chip", "registers"),
    [
        ("mpu6050", {(0, 0x6B): 0x01, (0, 0x19): 9, (0, 0x1B): 0x10, (0, 0x1C): 0x18, (0, 0x23): 0x78}),
        (
            "icm20948",
            {(0, 0x06): 0x01, (2, 0x00): 10, (2, 0x01): 0x0D, (2, 0x14): 0x0F, (2, 0x11): 10, (0, 0x67): 0x1E},
        ),
    ],
)
def test_range_and_rate_are_in_the_registers(chip: str, registers: dict[Any, int], tmp_path: Path) -> None:
    model = ImuModel(chip)
    source = make(model, Rig(tmp_path), acc_range_g=16, gyro_range_deg_s=1000)
    assert {key: model.registers[key] for key in registers} == registers
    (spec,) = source.specs()
    # Full scale is 16 g and 1000 deg/s.
    assert 32768 / spec.sensitivity[0] == pytest.approx(16 * 9.80665)
    assert 32768 / spec.sensitivity[3] == pytest.approx(math.radians(1000))


def test_an_oscillator_that_is_three_percent_fast_shows_in_the_times_and_makes_no_gaps(tmp_path: Path) -> None:
    model, rig = ImuModel("mpu6050"), Rig(tmp_path, ManualClock())
    source = make(model, rig)
    readings = run(model, source, rig.clock, 1200, 103.0)  # type: ignore[arg-type]
    assert not rig.refused and sum(p.hole_ns for p in pieces_of(source, readings)) == 0
    times = np.concatenate([r.times_ns for r in readings])
    assert np.all(np.diff(times) >= 0)
    late = times[len(times) // 2 :]
    assert (len(late) - 1) / (late[-1] - late[0]) * 1e9 == pytest.approx(103.0, rel=2e-3)
    # A poll's newest sample is of its moment, on the average: the times lag behind nothing.
    polled_ns = rig.clock.now_ns() - np.arange(1200)[::-1] * 50_000_000
    lags_ns = polled_ns - np.array([r.times_ns[-1] for r in readings])
    assert abs(lags_ns[600:].mean()) < 3_000_000


def test_a_fifo_that_ran_over_is_a_gap_and_is_counted(tmp_path: Path) -> None:
    model, rig = ImuModel("mpu6050"), Rig(tmp_path, ManualClock())
    source = make(model, rig)
    readings = run(model, source, rig.clock, 20, 100.0)  # type: ignore[arg-type]
    for k in range(300):  # three seconds in which nobody came
        model.sample([k] * 6)
    rig.clock.advance(3.0)  # type: ignore[attr-defined]
    readings += source.poll(0.0)
    readings += run(model, source, rig.clock, 20, 100.0)  # type: ignore[arg-type]
    assert rig.refused == {("imu", "overflow"): 1}
    pieces = pieces_of(source, readings)
    assert sum(p.hole_ns for p in pieces) / NS_PER_S == pytest.approx(3.0, abs=0.1)
    assert samples_of(pieces)[0, 100:110].tolist() == list(range(10))  # whole frames again


def test_another_chip_is_told_by_its_answer(tmp_path: Path) -> None:
    model = ImuModel("mpu6050", who_am_i=0xEA)
    with pytest.raises(SourceError, match=r"i2c bus 1 address 0x68: it answers 0xea, a MPU-6050 answers 0x68; check"):
        make(model, Rig(tmp_path))
    assert model.closed


def test_nobody_at_the_address_is_told_with_what_to_check(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"address 0x69: the chip does not answer: Remote I/O error; check wiring"):
        make(ImuModel("mpu6050"), Rig(tmp_path), address=0x69)


def test_a_bus_that_is_off_is_told_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="the bus cannot be opened: No such file or directory; switch I2C on"):
        make(ImuModel("mpu6050"), Rig(tmp_path), bus=7)


def test_a_chip_that_is_pulled_out_fails_with_words(tmp_path: Path) -> None:
    model = ImuModel("icm20948")
    source = make(model, Rig(tmp_path))
    model.gone = True
    with pytest.raises(SourceError, match="does not answer"):
        source.poll(0.0)


def test_the_range_must_be_one_of_the_chips(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="acc_range_g"):
        make(ImuModel("mpu6050"), Rig(tmp_path), acc_range_g=5)


def test_the_library_has_what_is_used() -> None:
    smbus2 = pytest.importorskip("smbus2")
    assert bytes(smbus2.i2c_msg.write(0x68, [0x74])) == b"\x74"
    assert len(bytes(smbus2.i2c_msg.read(0x68, 252))) == 252
    for call in ("read_byte_data", "write_byte_data", "read_i2c_block_data", "i2c_rdwr", "close"):
        assert callable(getattr(smbus2.SMBus, call))
