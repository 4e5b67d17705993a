"""Where a node's instants come from: the interface of it, and the outbox that a collector on this machine fills."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final, Protocol

from inference.instants import Instant, InstantGatherer, Position
from infomae_stream.bundle import ModalityContract
from infomae_stream.outbox import Outbox

_TAIL_CHUNKS: Final = 200  # one read; bounds how long a step takes, so also how long a stop waits
_MAX_PENDING: Final = 2000


class Feed(Protocol):
    def serve(self, contracts: Mapping[str, ModalityContract] | None) -> None:
        """Cut windows as `contracts` say from the next read on; None when no bundle serves."""

    def read(self) -> tuple[int, list[Instant]]:
        """How many chunks were read, and the instants that are decided now, in order. Never blocks.

        Without a bundle everything is skipped, so that nothing piles up. Raises OutboxError.
        """

    def take_dropped(self) -> Counter[str]:
        """Windows that never reached an instant, by reason, since the last call."""

    def position(self) -> bytes | None:
        """Where to go on after a kill, to be committed with what came of the instants; None while no bundle serves."""

    def close(self) -> None:
        """Give back what is open; the outbox stays open."""


class OutboxFeed:
    """`stored`: the position that was committed last. Raises ValueError when it cannot be read."""

    def __init__(self, outbox: Outbox, stored: bytes | None) -> None:
        self._outbox = outbox
        self._position = Position() if stored is None else Position.load(stored)
        self._gatherer: InstantGatherer | None = None

    def serve(self, contracts: Mapping[str, ModalityContract] | None) -> None:
        if self._gatherer is not None:
            self._position = self._gatherer.position()
        self._gatherer = None if contracts is None else InstantGatherer(contracts, self._position)

    def read(self) -> tuple[int, list[Instant]]:
        gatherer = self._gatherer
        if gatherer is None:
            last_seq = self._outbox.last_seq()
            self._position = Position(last_seq + 1, last_seq, self._position.done_ns)
            return 0, []
        chunks = self._outbox.tail_chunks(gatherer.seen_seq, _TAIL_CHUNKS)
        for chunk in chunks:
            gatherer.push(chunk)
        drained = len(chunks) < _TAIL_CHUNKS
        return len(chunks), gatherer.ready() if drained or gatherer.pending > _MAX_PENDING else []

    def take_dropped(self) -> Counter[str]:
        return self._gatherer.take_dropped() if self._gatherer is not None else Counter()

    def position(self) -> bytes | None:
        return None if self._gatherer is None else self._gatherer.position().dump()

    def close(self) -> None:
        return
