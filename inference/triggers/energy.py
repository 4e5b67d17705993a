"""Level above a slow noise floor, in decibels.   C channels, N samples, M new ones."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from inference.signal_power import SignalPower
from infomae_stream.clock import NS_PER_S
from infomae_stream.config import Settings

_LEAST_POWER: Final = 1e-30  # all zeros have no logarithm


class EnergyOptions(Settings):
    block_s: float = Field(0.25, gt=0)  # levels are taken over this
    on_db: float = Field(6.0, gt=0)  # above the floor: wakes
    off_db: float = Field(3.0, ge=0)  # above the floor: below it, sleeps again
    rise_s: float = Field(60.0, gt=0)  # the floor follows louder blocks with this time constant
    fall_s: float = Field(5.0, gt=0)  # ... and softer ones with this
    warm_up_s: float = Field(10.0, ge=0)  # awake for so long at first
    corner_hz: float = Field(1.0, ge=0)  # of the high-pass before it; 0: none

    @model_validator(mode="after")
    def _ordered(self) -> EnergyOptions:
        if self.off_db > self.on_db:
            raise ValueError("off_db is above on_db")
        return self


class EnergyTrigger:
    Options = EnergyOptions

    def __init__(self, options: EnergyOptions, rate_hz: float) -> None:
        self._options = options
        self._rate_hz = rate_hz
        self._power = SignalPower(rate_hz, options.corner_hz)
        self._floor_db = math.nan
        self._seen = 0  # samples since the stream began
        self._on = False
        self._awake_ns = -1  # end of the last block that was on

    def awake(self, start_ns: int, x_CN: NDArray[np.float32]) -> bool:
        power_M, first_ns, anew = self._power.take(start_ns, x_CN)
        if anew:
            self._floor_db, self._seen, self._on, self._awake_ns = math.nan, 0, False, -1
        n_blocks = max(1, round(len(power_M) / (self._options.block_s * self._rate_hz)))
        done = 0
        for block in np.array_split(power_M, n_blocks) if len(power_M) else ():
            done += len(block)
            self._take(10 * math.log10(max(float(block.mean()), _LEAST_POWER)), len(block) / self._rate_hz)
            if self._on:
                self._awake_ns = first_ns + round(done * NS_PER_S / self._rate_hz)
        self._seen += len(power_M)
        return self._seen < self._options.warm_up_s * self._rate_hz or self._awake_ns > start_ns

    def _take(self, level_db: float, block_s: float) -> None:
        o = self._options
        if math.isnan(self._floor_db):
            self._floor_db = level_db
        above_db = level_db - self._floor_db
        self._on = above_db >= (o.off_db if self._on else o.on_db)
        self._floor_db += above_db * -math.expm1(-block_s / (o.rise_s if above_db > 0 else o.fall_s))
