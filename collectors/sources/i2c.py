"""IMUs on an I2C bus without a kernel driver, through smbus2 (extra `imu`): MPU-6050 and ICM-20948 families.

The chip fills its FIFO at its own pace; each poll empties it. C channels, N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from collectors.sensing.extras import extra
from collectors.sensing.imu_chips import ACC_RANGES, CHIPS, FRAME_BYTES, GYRO_RANGES, counts_per_unit
from collectors.sensing.sample_clock import DriftingClock
from collectors.sources import Reading, SourceContext
from infomae_stream.clock import NS_PER_S
from infomae_stream.config import Settings
from infomae_stream.errors import SourceError
from infomae_stream.node_config import Id
from infomae_stream.types import StreamId, StreamSpec

BURST_BYTES: Final = 252  # a whole number of frames, below what bus drivers take at once
TOLERANCE_NS: Final = 100_000_000  # beyond this the times start anew
CHANNELS: Final = ("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z")


class I2cOptions(Settings):
    chip: Literal["mpu6050", "icm20948"]
    bus: int = Field(1, ge=0)
    address: int = Field(0x68, ge=0x03, le=0x77)  # 0x69 where the pin AD0 is high
    stream: Id = "imu"
    modality: str = ""
    rate_hz: float = Field(100.0, gt=0, le=500)  # the nearest that the chip can do is declared
    acc_range_g: Literal[2, 4, 8, 16] = 4
    gyro_range_deg_s: Literal[250, 500, 1000, 2000] = 500


class I2cSource:
    """Live. Times are those of the reads, smoothed: they follow the chip's oscillator, which is percents off."""

    Options: ClassVar[type[Settings]] = I2cOptions
    live: ClassVar[bool] = True

    def __init__(self, options: I2cOptions, context: SourceContext, library: Callable[[], Any] | None = None) -> None:
        self._options, self._clock, self._refuse = options, context.clock, context.refuse
        self._smbus2 = (library or _load_smbus2)()
        self._chip = CHIPS[options.chip]
        self._where = f"i2c bus {options.bus} address {options.address:#04x}"
        self._bus = self._open()
        try:
            self._check_identity()
            divider = min(max(round(self._chip.base_hz / options.rate_hz), 1), 256)
            acc, gyro = ACC_RANGES.index(options.acc_range_g), GYRO_RANGES.index(options.gyro_range_deg_s)
            self._chip.start(self, divider, acc, gyro)
        except OSError as e:
            self._bus.close()
            raise self._failed(e) from e
        except SourceError:
            self._bus.close()
            raise
        rate_hz = self._chip.base_hz / divider
        per_m_s2, per_rad_s = counts_per_unit(acc, gyro)
        self._spec = StreamSpec(
            id=StreamId(context.site, context.node, options.stream),
            kind="imu",
            rate_hz=rate_hz,
            channels=CHANNELS,
            units=("m/s2",) * 3 + ("rad/s",) * 3,
            sensitivity=(per_m_s2,) * 3 + (per_rad_s,) * 3,
            modality=options.modality,
        )
        self._times = DriftingClock(rate_hz, tolerance_ns=TOLERANCE_NS)
        # A read finds samples that are up to a period old, and the loop comes by when it can.
        self._uncertainty_ns = round(NS_PER_S / rate_hz) + 2_000_000

    def specs(self) -> Sequence[StreamSpec]:
        return (self._spec,)

    def poll(self, timeout_s: float) -> Sequence[Reading]:
        """All frames in the FIFO. When it has run over, what it held is refused: where a frame begins is unknown."""
        try:
            waiting = self._count()
            if waiting < FRAME_BYTES and timeout_s > 0:
                self._clock.sleep(timeout_s)
                waiting = self._count()
            if self._chip.overflowed(self) or waiting >= self._chip.fifo_bytes:
                self._chip.reset_fifo(self)
                self._times.restart()
                self._refuse(self._spec.id.stream, "overflow", 1, f"the FIFO of {self._chip.fifo_bytes} bytes ran over")
                return []
            now_ns, monotonic_ns = self._clock.now_ns(), self._clock.monotonic_ns()
            data = self._burst(waiting - waiting % FRAME_BYTES)
        except OSError as e:
            raise self._failed(e) from e
        return [self._reading(data, now_ns, monotonic_ns)] if data else []

    def close(self) -> None:
        self._bus.close()

    def read(self, register: int) -> int:
        """One register, for the chip's own code. Raises OSError."""
        return int(self._bus.read_byte_data(self._options.address, register))

    def write(self, register: int, value: int) -> None:
        """One register, for the chip's own code. Raises OSError."""
        self._bus.write_byte_data(self._options.address, register, value)

    def _reading(self, data: bytes, now_ns: int, monotonic_ns: int) -> Reading:
        samples_CN: NDArray[np.int16] = np.frombuffer(data, dtype=">i2").reshape(-1, len(CHANNELS)).T.astype(np.int16)
        times_N = self._times.place(now_ns, samples_CN.shape[1])
        start_ns = int(times_N[0])
        return Reading(
            self._spec.id.stream,
            start_ns,
            samples_CN,
            times_N,
            monotonic_ns=max(monotonic_ns - (now_ns - start_ns), 1),
            uncertainty_ns=self._uncertainty_ns,
        )

    def _count(self) -> int:
        high, low = self._bus.read_i2c_block_data(self._options.address, self._chip.fifo_count, 2)
        return int(high) << 8 | int(low)

    def _burst(self, n_bytes: int) -> bytes:
        data = b""
        while len(data) < n_bytes:
            ask = self._smbus2.i2c_msg.write(self._options.address, [self._chip.fifo_data])
            answer = self._smbus2.i2c_msg.read(self._options.address, min(BURST_BYTES, n_bytes - len(data)))
            self._bus.i2c_rdwr(ask, answer)
            data += bytes(answer)
        return data

    def _check_identity(self) -> None:
        register, known = self._chip.who_am_i
        found = self.read(register)
        if found != known:
            said = f"it answers {found:#04x}, a {self._chip.name} answers {known:#04x}"
            raise SourceError(said, where=self._where, fix="check chip and address (`i2cdetect -y 1` lists them)")

    def _open(self) -> Any:
        try:
            return self._smbus2.SMBus(self._options.bus)
        except OSError as e:
            fix = "switch I2C on (`raspi-config`, interfaces) and let the service's user into the group i2c"
            raise SourceError(f"the bus cannot be opened: {e.strerror}", where=self._where, fix=fix) from e

    def _failed(self, error: OSError) -> SourceError:
        fix = "check wiring, supply and address (`i2cdetect -y 1` lists who answers)"
        return SourceError(f"the chip does not answer: {error.strerror or error}", where=self._where, fix=fix)


def _load_smbus2() -> Any:
    return extra("smbus2", "imu", "IMUs on I2C")
