"""Yes-or-no facts of a program, told in its log when they turn bad and when they are good again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from infomae_stream.clock import NS_PER_S, Clock
from infomae_stream.telemetry import EventLog

REPEAT_NS: Final = 600 * NS_PER_S  # what stays bad is told again


@dataclass(slots=True)
class _State:
    bad_since_ns: int | None = None
    told_ns: int | None = None


class Facts:
    """labels: fields of every line."""

    def __init__(self, clock: Clock, log: EventLog, **labels: str) -> None:
        self._clock, self._log, self._labels = clock, log, labels
        self._states: dict[tuple[str, str], _State] = {}

    def tell(self, good: bool, lost: str, back: str, *, key: str = "", after_s: float = 0.0, **fields: Any) -> bool:
        """lost, back: the events' names. False once it has been bad for `after_s`. key: which of several."""
        state = self._states.setdefault((lost, key), _State())
        now_ns = self._clock.monotonic_ns()
        if good:
            if state.told_ns is not None and state.bad_since_ns is not None:
                bad_s = round((now_ns - state.bad_since_ns) / NS_PER_S, 1)
                self._log.info(back, **self._labels, **fields, after_s=bad_s)
            state.bad_since_ns = state.told_ns = None
            return True
        if state.bad_since_ns is None:
            state.bad_since_ns = now_ns
        bad_ns = now_ns - state.bad_since_ns
        if bad_ns < after_s * NS_PER_S:
            return True
        if state.told_ns is None or now_ns - state.told_ns >= REPEAT_NS:
            self._log.warning(lost, **self._labels, **fields, for_s=round(bad_ns / NS_PER_S, 1))
            state.told_ns = now_ns
        return False

    def forget(self, lost: str, key: str) -> None:
        self._states.pop((lost, key), None)
