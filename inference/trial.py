"""The first windows that a bundle looks at after its swap: they decide whether it stays. No I/O, no clock."""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Final

from infomae_stream.errors import BundleError

FAILURES: Final = 3  # one window may hold what no graph can digest
_FEWEST_TIMED: Final = 10  # a machine may be busy for a moment
_TIMED: Final = 50
_SLOWER: Final = 2.0  # than the bundle before it: else the machine is busy, and going back would not help


class Trial:
    """Takes the outcome of each look at an instant; gives the error for which the bundle has to go, or None.

    windows: how many looks the trial lasts. longest_s: what the median look may take. before_s: what it took with the
    bundle before, None when nobody knows: then nothing is too slow.
    Three failures end it, afterwards three in a row; slowness and modalities that fail beside others count during the
    trial only.
    """

    def __init__(self, windows: int, longest_s: float, where: str, before_s: float | None = None) -> None:
        self._left = windows
        self._longest_s = longest_s
        self._where = where
        self._before_s = before_s
        self._taken_s: deque[float] = deque(maxlen=_TIMED)
        self._failures = 0

    @property
    def over(self) -> bool:
        return self._left <= 0

    @property
    def typical_s(self) -> float | None:
        """The median of the last looks; None before there are ten."""
        return median(self._taken_s) if len(self._taken_s) >= _FEWEST_TIMED else None

    def end(self) -> None:
        """It has served long enough, however little there was to look at."""
        self._left = 0
        self._failures = 0

    def failed(self, error: BundleError) -> BundleError | None:
        """A look that gave nothing."""
        self._failures += 1
        self._left -= 1
        return error if self._failures >= FAILURES else None

    def passed(self, taken_s: float, broken: tuple[str, ...]) -> BundleError | None:
        """A look that gave scores, perhaps without the modalities `broken`."""
        self._taken_s.append(taken_s)
        if self.over:
            self._failures = 0
            return None
        self._left -= 1
        self._failures += bool(broken)
        if self._failures >= FAILURES:
            what = f"{FAILURES} windows failed, the last in the encoder of {', '.join(broken)}"
            return BundleError(what, reason="runtime", where=self._where)
        typical_s, before_s = self.typical_s, self._before_s
        if typical_s is None or before_s is None or typical_s <= max(self._longest_s, _SLOWER * before_s):
            return None
        return BundleError(
            f"takes {typical_s:.3g} s a window; {self._longest_s:.3g} s is there, the one before took {before_s:.3g} s",
            reason="slow",
            where=self._where,
            fix="release a smaller model, or raise detect.max_realtime_factor",
        )
