"""One hosted node as the detector sees it: its outbox, how far it has been read, what waits for the next commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from inference.detector import Draft
from inference.instants import Instant, InstantGatherer, Position
from infomae_stream.bundle import Bundle, ModalityContract
from infomae_stream.errors import OutboxFull
from infomae_stream.outbox import Outbox
from infomae_stream.telemetry import EventLog

POSITION_STATE: Final = "detector_position"
DESIRED_STATE: Final = "bundle_desired"
OBSERVED_STATE: Final = "bundle_observed"
_TAIL_CHUNKS: Final = 200  # one read; bounds how long a step takes, so also how long a stop waits
_MAX_PENDING: Final = 2000
_MAX_UNCOMMITTED: Final = 1000


class HostedNode:
    """Detections and the position are committed together: a kill repeats nothing and skips nothing."""

    def __init__(self, site: str, node: str, outbox: Outbox, log: EventLog) -> None:
        self.site, self.node = site, node
        self.outbox = outbox
        self._log = log
        self._position = self._load_position()
        self._gatherer: InstantGatherer | None = None
        self._changed = False
        self.uncommitted = 0
        self.observed = b""  # what the outbox should say of the bundle
        self._observed_committed = b""
        self._warned = ""

    def warn(self, event: str, error: Exception) -> None:
        """Log a trouble of this node, once as long as it stays the same."""
        if f"{event} {error}" != self._warned:
            self._warned = f"{event} {error}"
            self._log.warning(event, site=self.site, node=self.node, error=str(error))

    def serve(self, contracts: Mapping[str, ModalityContract] | None) -> None:
        """Cut windows as `contracts` say from the next read on; None when no bundle serves."""
        if self._gatherer is not None:
            self._position = self._gatherer.position()
        self._gatherer = None if contracts is None else InstantGatherer(contracts, self._position)

    def read(self) -> tuple[int, list[Instant]]:
        """How many chunks were read, and the instants that are decided now.

        Without a bundle the tail is skipped, so that nothing piles up."""
        gatherer = self._gatherer
        if gatherer is None:
            last_seq = self.outbox.last_seq()
            self._position = Position(last_seq + 1, last_seq, self._position.done_ns)
            return 0, []
        chunks = self.outbox.tail_chunks(gatherer.seen_seq, _TAIL_CHUNKS)
        for chunk in chunks:
            gatherer.push(chunk)
        self._changed = self._changed or bool(chunks)
        drained = len(chunks) < _TAIL_CHUNKS
        return len(chunks), gatherer.ready() if drained or gatherer.pending > _MAX_PENDING else []

    def take_dropped(self) -> Counter[str]:
        """Windows that never reached an instant, by reason, since the last call."""
        return self._gatherer.take_dropped() if self._gatherer is not None else Counter()

    def put(self, draft: Draft, bundle: Bundle) -> None:
        self.outbox.put_detection(
            site=draft.site,
            node=draft.node,
            start_ns=draft.start_ns,
            end_ns=draft.end_ns,
            label=draft.label,
            scores=draft.scores,
            modalities=draft.modalities,
            bundle_version=bundle.version,
            bundle_sha256=bundle.sha256,
        )
        self.uncommitted += 1

    def commit(self) -> int:
        """Commit what was put, and the position; return how many detections were lost because there was no room.

        Raises OutboxError when the file cannot be written now: everything stays for the next call, up to a limit.
        """
        if self._gatherer is not None and self._changed:
            self.outbox.put_state(POSITION_STATE, self._gatherer.position().dump())
        if self.observed != self._observed_committed:
            self.outbox.put_state(OBSERVED_STATE, self.observed)
        lost = 0
        try:
            self.outbox.commit()
            self._observed_committed = self.observed
        except OutboxFull as e:
            lost = self.uncommitted
            self.warn("outbox_full", e)
        self.uncommitted, self._changed = 0, False
        return lost

    def give_up_uncommitted(self) -> int:
        """Forget what could not be committed for long, so that it does not pile up; return how many detections."""
        if self.uncommitted <= _MAX_UNCOMMITTED:
            return 0
        self.outbox.discard()
        lost, self.uncommitted = self.uncommitted, 0
        return lost

    def _load_position(self) -> Position:
        stored = self.outbox.get_state(POSITION_STATE)
        if stored is None:
            return Position()
        try:
            return Position.load(stored)
        except ValueError as e:
            self._log.warning("position_unreadable", site=self.site, node=self.node, error=str(e))
            last_seq = self.outbox.last_seq()
            return Position(last_seq + 1, last_seq)
