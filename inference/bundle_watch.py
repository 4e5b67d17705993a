"""Whether this node has a bundle that would serve again after a restart: in a metric, and in the log each way."""

from __future__ import annotations

import hashlib
from typing import Final

from inference.bundle_keeper import BundleKeeper
from infomae_stream.bundle import Bundle
from infomae_stream.clock import NS_PER_S, Clock
from infomae_stream.facts import Facts
from infomae_stream.telemetry import EventLog, Telemetry

LOOK_EVERY_NS: Final = 4 * NS_PER_S  # with the next report after that


class BundleWatch:
    """Looks at the serving bundle's file, which is in memory and may be gone or rotten on the disk all the same."""

    def __init__(self, keeper: BundleKeeper, clock: Clock, telemetry: Telemetry, log: EventLog) -> None:
        self._keeper, self._clock = keeper, clock
        self._gauge = telemetry.gauge("infomae_bundle_healthy")
        self._facts = Facts(clock, log)
        self._looked_ns = clock.monotonic_ns() - LOOK_EVERY_NS
        self._read: tuple[int, ...] = ()  # what the file looked like when its bytes were read
        self._hash = ""

    def look(self) -> None:
        """Every few seconds; in between it returns at once."""
        now_ns = self._clock.monotonic_ns()
        if now_ns - self._looked_ns < LOOK_EVERY_NS:
            return
        self._looked_ns = now_ns
        detector = self._keeper.detector
        wrong = "none serves; nothing is detected" if detector is None else self._wrong(detector.bundle)
        self._gauge.set(not wrong)
        self._facts.tell(not wrong, "bundle_lost", "bundle_back", reason=wrong)

    def _wrong(self, bundle: Bundle) -> str:
        """What is wrong with the bundle that serves; "" when nothing is."""
        installed = self._keeper.store.current
        if installed is None or installed.sha256 != bundle.sha256:
            return ""  # an install or a revert is under way, and has its own words
        path = self._keeper.store.path(installed)
        try:
            now = path.stat()
            read = (now.st_ino, now.st_size, now.st_mtime_ns)
            if read != self._read:
                self._hash = hashlib.sha256(path.read_bytes()).hexdigest()
                self._read = read
        except OSError as e:
            self._read = ()
            return f"its file cannot be read ({e.strerror}); it serves until the next restart"
        if self._hash != installed.sha256:
            return "its file has changed on the disk; it serves until the next restart"
        if bundle.manifest.expires_ns <= self._clock.now_ns():
            return "it has expired; it goes on serving"
        return ""
