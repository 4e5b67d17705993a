"""The clock is an argument, never a global: services take a `Clock`, tests hand them a `ManualClock`."""

from __future__ import annotations

import time
from typing import Protocol

NS_PER_S = 1_000_000_000


class Clock(Protocol):
    def now_ns(self) -> int:
        """Wall time, integer nanoseconds UTC since 1970."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since an unknown start; never steps back."""

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass on this clock."""


class SystemClock:
    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class ManualClock:
    """A clock that moves only when it is told to; `sleep` moves it and returns at once."""

    def __init__(self, now_ns: int = 1_700_000_000 * NS_PER_S) -> None:
        self._now_ns = now_ns
        self._monotonic_ns = 0

    def now_ns(self) -> int:
        return self._now_ns

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def advance(self, seconds: float) -> None:
        step_ns = round(seconds * NS_PER_S)
        self._now_ns += step_ns
        self._monotonic_ns += step_ns

    def step(self, seconds: float) -> None:
        """Move the wall clock alone, as a time server's correction does."""
        self._now_ns += round(seconds * NS_PER_S)

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)
