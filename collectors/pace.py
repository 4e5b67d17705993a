"""How fast a node may catch up: a token bucket for the backlog, beside which everything new goes at once."""

from __future__ import annotations

import random

from infomae_stream.clock import NS_PER_S, Clock

UNLIMITED = 1 << 60


class Pace:
    """`bytes_per_s` for the backlog, at most a second's worth saved up; 0 for no cap.

    What has just been accepted brings its own budget (`earn`), so that a node whose sensors make more than the cap is
    not held back for ever. After a connection with a backlog of more than a second's worth nothing goes for a random
    time up to `start_jitter_s`: the nodes of a hub all reconnect in the same moment, and must not start in it.
    """

    def __init__(self, clock: Clock, bytes_per_s: int, start_jitter_s: float, rng: random.Random) -> None:
        self._clock = clock
        self._bytes_per_s = bytes_per_s
        self._start_jitter_s = start_jitter_s
        self._rng = rng
        self._left = float(bytes_per_s)
        self._counted_ns = clock.monotonic_ns()
        self._start_ns = 0

    def connected(self, backlog_bytes: int) -> None:
        """A connection has begun, with so much waiting."""
        if backlog_bytes > self._bytes_per_s > 0:
            wait_s = self._rng.uniform(0, self._start_jitter_s)
            self._start_ns = self._clock.monotonic_ns() + round(wait_s * NS_PER_S)

    def left(self) -> int:
        """Bytes that may be published now; 0 or less for none."""
        if not self._bytes_per_s:
            return UNLIMITED
        now_ns = self._clock.monotonic_ns()
        if now_ns < self._start_ns:
            return 0
        if self._left < self._bytes_per_s:
            saved = self._left + (now_ns - self._counted_ns) / NS_PER_S * self._bytes_per_s
            self._left = min(saved, self._bytes_per_s)
        self._counted_ns = now_ns
        return int(self._left)

    def earn(self, n_bytes: int) -> None:
        """So much is new."""
        self._left = min(self._left, self._bytes_per_s) + n_bytes

    def spend(self, n_bytes: int) -> None:
        """So much was published; a record larger than what is left leaves a debt."""
        self._left -= n_bytes
