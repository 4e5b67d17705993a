"""One hosted node as the detector sees it: its feed of instants, its events, what waits for the next commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from inference.detector import Seen
from inference.events import Draft, EventRules, EventTracker
from inference.instants import Instant
from inference.outbox_feed import Feed
from inference.trigger_gate import TriggerGate
from infomae_stream.bundle import Bundle
from infomae_stream.clock import NS_PER_S, Clock
from infomae_stream.errors import OutboxFull
from infomae_stream.node_config import EventSettings
from infomae_stream.outbox import Outbox
from infomae_stream.telemetry import EventLog

POSITION_STATE: Final = "detector_position"
EVENTS_STATE: Final = "detector_events"
DESIRED_STATE: Final = "bundle_desired"
OBSERVED_STATE: Final = "bundle_observed"
_MAX_UNCOMMITTED: Final = 1000


class HostedNode:
    """Detections, open events and the position are committed together: a kill repeats nothing and skips nothing."""

    def __init__(
        self,
        site: str,
        node: str,
        outbox: Outbox,
        feed: Feed,
        gate: TriggerGate,
        settings: EventSettings,
        clock: Clock,
        log: EventLog,
    ) -> None:
        self.site, self.node = site, node
        self.outbox = outbox
        self.gate = gate
        self._feed = feed
        self._settings = settings
        self._clock = clock
        self._log = log
        self._committed = {key: outbox.get_state(key) for key in (POSITION_STATE, EVENTS_STATE)}
        self._tracker: EventTracker | None = None
        self._suppressed: Counter[str] = Counter()
        self._moved_ns = clock.monotonic_ns()  # when the last instant came
        self.uncommitted = 0
        self.observed = b""  # what the outbox should say of the bundle
        self._warned = ""

    def warn(self, event: str, error: Exception) -> None:
        """Log a trouble of this node, once as long as it stays the same."""
        if f"{event} {error}" != self._warned:
            self._warned = f"{event} {error}"
            self._log.warning(event, site=self.site, node=self.node, error=str(error))

    def serve(self, bundle: Bundle | None) -> list[Draft]:
        """Work for this bundle from the next read on, or for none; the events that end because it is another one."""
        self._feed.serve(None if bundle is None else bundle.manifest.modalities)
        rules = EventRules({}, 0, 1, 0, 1) if bundle is None else EventRules.of(self._settings, bundle)
        before = self._tracker or self._load_tracker(rules)
        if bundle is not None and before is not None and before.bundle_sha256 == bundle.sha256:
            self._tracker = before
            return []
        self._tracker = None
        drafts: list[Draft] = []
        if before is not None:
            drafts = before.close()
            self._suppressed += before.take_suppressed()
        if bundle is not None:
            ended_ns = {} if before is None else before.ended_ns
            self._tracker = EventTracker(rules, bundle.version, bundle.sha256, ended_ns=ended_ns)
        return drafts

    def read(self) -> tuple[int, list[Instant]]:
        """How many chunks were read, and the instants that are decided now. Raises OutboxError."""
        n_chunks, instants = self._feed.read()
        if instants:
            self._moved_ns = self._clock.monotonic_ns()
        return n_chunks, instants

    def observe(self, start_ns: int, seen: Seen | None) -> list[Draft]:
        """What an instant showed, None when nobody looked; the events, or parts of them, that have ended."""
        if self._tracker is None:
            return []
        return self._tracker.pass_by(start_ns) if seen is None else self._tracker.push(seen)

    def end_idle(self) -> list[Draft]:
        """The events that were open when the windows stopped coming, once that is `idle_s` ago."""
        if self._tracker is None or not self._tracker.any_open:
            return []
        idle_ns = self._clock.monotonic_ns() - self._moved_ns
        return self._tracker.close() if idle_ns > self._settings.idle_s * NS_PER_S else []

    def take_dropped(self) -> Counter[str]:
        """Windows that never reached an instant, by reason, since the last call."""
        return self._feed.take_dropped()

    def take_suppressed(self) -> Counter[str]:
        """Windows that were on and came to no event, by reason, since the last call."""
        suppressed, self._suppressed = self._suppressed, Counter()
        return suppressed if self._tracker is None else suppressed + self._tracker.take_suppressed()

    def put(self, drafts: Sequence[Draft]) -> None:
        for draft in drafts:
            self.outbox.put_detection(
                site=self.site,
                node=self.node,
                start_ns=draft.start_ns,
                end_ns=draft.end_ns,
                label=draft.label,
                scores=draft.scores,
                modalities=draft.modalities,
                bundle_version=draft.bundle_version,
                bundle_sha256=draft.bundle_sha256,
                event=draft.event,
            )
            self.uncommitted += 1

    def commit(self) -> int:
        """Commit what was put, and the state; return how many detections were lost because there was no room.

        Raises OutboxError when the file cannot be written now: everything stays for the next call, up to a limit.
        """
        states = {
            POSITION_STATE: self._feed.position(),
            EVENTS_STATE: b"" if self._tracker is None else self._tracker.dump(),
            OBSERVED_STATE: self.observed or None,
        }
        changed = {key: s for key, s in states.items() if s is not None and s != (self._committed.get(key) or b"")}
        for key, state in changed.items():
            self.outbox.put_state(key, state)
        lost = 0
        try:
            self.outbox.commit()
            self._committed.update(changed)
        except OutboxFull as e:
            lost = self.uncommitted
            self.warn("outbox_full", e)
        self.uncommitted = 0
        return lost

    def give_up_uncommitted(self) -> int:
        """Forget what could not be committed for long, so that it does not pile up; return how many detections."""
        if self.uncommitted <= _MAX_UNCOMMITTED:
            return 0
        self.outbox.discard()
        lost, self.uncommitted = self.uncommitted, 0
        return lost

    def close(self) -> None:
        """What was not committed will be detected again."""
        self._feed.close()
        self.outbox.close()

    def _load_tracker(self, rules: EventRules) -> EventTracker | None:
        stored = self._committed[EVENTS_STATE]
        if not stored:
            return None
        try:
            return EventTracker.load(stored, rules)
        except ValueError as e:
            self._log.warning("events_unreadable", site=self.site, node=self.node, error=str(e))
            return None
