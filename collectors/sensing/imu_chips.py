"""Registers of the IMUs that the i2c source knows: how to wake them, and where their FIFO is.

Numbers are those of InvenSense's register maps: MPU-6000/6050 revision 4.2, ICM-20948 revision 1.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Protocol

GRAVITY: Final = 9.80665
FRAME_BYTES: Final = 12  # three accelerations, three rates, 16 bits each, high byte first
GYRO_RANGES: Final = (250, 500, 1000, 2000)  # deg/s
ACC_RANGES: Final = (2, 4, 8, 16)  # g


class Registers(Protocol):
    """One device on the bus; raises OSError when it does not answer."""

    def read(self, register: int) -> int: ...

    def write(self, register: int, value: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Mpu6050:
    """MPU-6000 and MPU-6050.

    who_am_i: register, value. base_hz: rates are this divided by a whole number. fifo_count: register of the high byte.
    """

    name: str = "MPU-6050"
    who_am_i: tuple[int, int] = (0x75, 0x68)
    base_hz: float = 1000.0
    fifo_bytes: int = 1024
    fifo_count: int = 0x72
    fifo_data: int = 0x74

    def start(self, bus: Registers, divider: int, acc: int, gyro: int) -> None:
        """Wake the chip, set ranges (indices into ACC_RANGES, GYRO_RANGES) and rate, and begin to fill the FIFO."""
        bus.write(0x6B, 0x01)  # PWR_MGMT_1: awake, clocked by the gyroscope, which is steadier
        bus.write(0x6C, 0x00)  # PWR_MGMT_2: all axes on
        bus.write(0x1A, 0x01)  # CONFIG: low pass at 188 Hz, which makes the base rate 1 kHz
        bus.write(0x19, divider - 1)  # SMPLRT_DIV
        bus.write(0x1B, gyro << 3)  # GYRO_CONFIG
        bus.write(0x1C, acc << 3)  # ACCEL_CONFIG
        bus.write(0x38, 0x10)  # INT_ENABLE: the overflow flag needs it
        self.reset_fifo(bus)

    def overflowed(self, bus: Registers) -> bool:
        """Samples were lost since the last call."""
        return bool(bus.read(0x3A) & 0x10)  # INT_STATUS; reading clears it

    def reset_fifo(self, bus: Registers) -> None:
        """Empty the FIFO and fill it anew from a frame's first byte."""
        bus.write(0x23, 0x00)  # FIFO_EN: nothing, so that it starts with a frame's first byte
        bus.write(0x6A, 0x04)  # USER_CTRL: reset
        bus.write(0x6A, 0x40)  # USER_CTRL: FIFO on
        bus.write(0x23, 0x78)  # FIFO_EN: three rates, accelerations


@dataclass(frozen=True, slots=True)
class Icm20948:
    """As Mpu6050, with four banks of registers, chosen by REG_BANK_SEL."""

    name: str = "ICM-20948"
    who_am_i: tuple[int, int] = (0x00, 0xEA)
    base_hz: float = 1125.0
    fifo_bytes: int = 512
    fifo_count: int = 0x70
    fifo_data: int = 0x72

    def start(self, bus: Registers, divider: int, acc: int, gyro: int) -> None:
        self._bank(bus, 0)
        bus.write(0x06, 0x01)  # PWR_MGMT_1: awake, best clock
        bus.write(0x07, 0x00)  # PWR_MGMT_2: all axes on
        self._bank(bus, 2)
        bus.write(0x00, divider - 1)  # GYRO_SMPLRT_DIV
        bus.write(0x01, 0x01 | gyro << 1 | 0x01 << 3)  # GYRO_CONFIG_1: filter on, 152 Hz
        bus.write(0x10, (divider - 1) >> 8)  # ACCEL_SMPLRT_DIV_1
        bus.write(0x11, (divider - 1) & 0xFF)  # ACCEL_SMPLRT_DIV_2
        bus.write(0x14, 0x01 | acc << 1 | 0x01 << 3)  # ACCEL_CONFIG: filter on, 246 Hz
        self._bank(bus, 0)
        bus.write(0x12, 0x1F)  # INT_ENABLE_2: overflow of the FIFO
        self.reset_fifo(bus)

    def overflowed(self, bus: Registers) -> bool:
        return bool(bus.read(0x1B) & 0x1F)  # INT_STATUS_2; reading clears it

    def reset_fifo(self, bus: Registers) -> None:
        bus.write(0x67, 0x00)  # FIFO_EN_2: nothing, so that it starts with a frame's first byte
        bus.write(0x03, 0x40)  # USER_CTRL: FIFO on
        bus.write(0x68, 0x1F)  # FIFO_RST
        bus.write(0x68, 0x00)
        bus.write(0x67, 0x1E)  # FIFO_EN_2: accelerations, three rates

    @staticmethod
    def _bank(bus: Registers, number: int) -> None:
        bus.write(0x7F, number << 4)


CHIPS: Final[dict[str, Mpu6050 | Icm20948]] = {"mpu6050": Mpu6050(), "icm20948": Icm20948()}


def counts_per_unit(acc: int, gyro: int) -> tuple[float, float]:
    """Counts per m/s2 and per rad/s, as the data sheets of both families give them for each range."""
    return 32768 / ACC_RANGES[acc] / GRAVITY, 32768 / GYRO_RANGES[gyro] * 180 / math.pi
