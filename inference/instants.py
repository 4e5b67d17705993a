"""One node's chunks, in the order of their sequence numbers, into instants: all its windows that start together.

An instant is decided once, when every stream that is still alive has moved past its end; a stream that is more than
`wait_s` behind is not waited for. `Position` says how far this has come, so that a killed detector goes on from there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from infomae_stream.bundle import ModalityContract
from infomae_stream.clock import NS_PER_S
from infomae_stream.types import Chunk, StreamId, Window
from infomae_stream.windower import Windower

WAIT_S: Final = 3.0  # of the data's own time


@dataclass(frozen=True, slots=True)
class Position:
    """done_ns: instants up to here are decided. seen_seq: the last chunk read.

    replay_seq: the first chunk that undecided windows may need; a detector that starts again reads from there, and
    decides nothing up to `done_ns` a second time.
    """

    replay_seq: int = 1
    seen_seq: int = 0
    done_ns: int = -1

    def dump(self) -> bytes:
        return json.dumps({"v": 1, **asdict(self)}).encode()

    @classmethod
    def load(cls, content: bytes) -> Position:
        """Raises ValueError when it is not what `dump` writes."""
        try:
            d = json.loads(content)
            return cls(int(d["replay_seq"]), int(d["seen_seq"]), int(d["done_ns"]))
        except (KeyError, TypeError) as e:
            raise ValueError(f"not a position: {content[:80]!r}") from e


@dataclass(frozen=True, slots=True)
class Instant:
    """`accepted_ns`: wall time at which the node took the newest chunk that it needed."""

    start_ns: int
    windows: tuple[Window, ...]
    accepted_ns: int


class InstantGatherer:
    """`contracts`: the bundle's modalities. `take_dropped` gives the windows that never reach an instant, by reason:

    no_encoder (the bundle has none for the stream, or another rate, channels or units), late (their instant was decided
    without them), clock_step (undecided when the clock stepped back).
    """

    def __init__(
        self, contracts: Mapping[str, ModalityContract], position: Position, *, wait_s: float = WAIT_S
    ) -> None:
        self._contracts = contracts
        self._grid = next(iter(contracts.values())).grid  # all modalities of a bundle share window and hop
        self._wait_ns = round(wait_s * NS_PER_S)
        self._replay_seq, self._replayed_to = position.replay_seq, position.seen_seq
        self._seen_seq = position.replay_seq - 1
        self._done_ns = position.done_ns
        self._windowers: dict[StreamId, Windower] = {}
        self._watermarks: dict[StreamId, int] = {}
        self._last_start_ns: dict[StreamId, int] = {}
        self._pending: dict[int, list[tuple[Window, int]]] = {}
        self._held: list[tuple[int, int]] = []  # (seq, end_ns) of chunks that a restart would need
        self._dropped: Counter[str] = Counter()

    @property
    def seen_seq(self) -> int:
        """Read on after this sequence number."""
        return self._seen_seq

    @property
    def pending(self) -> int:
        return len(self._pending)

    def position(self) -> Position:
        seen_seq = max(self._seen_seq, self._replayed_to)
        needed = [seq for seq, _ in self._held]
        if self._seen_seq < self._replayed_to:  # killed again before it has read what it must read again
            needed.append(self._replay_seq)
        return Position(min(needed, default=seen_seq + 1), seen_seq, self._done_ns)

    def take_dropped(self) -> Counter[str]:
        dropped, self._dropped = self._dropped, Counter()
        return dropped

    def push(self, chunk: Chunk) -> None:
        """Take the next chunk; sequence numbers rise."""
        self._seen_seq = chunk.seq
        replayed = chunk.seq <= self._replayed_to
        stream = chunk.spec.id
        contract = self._contracts.get(chunk.spec.modality)
        if contract is None or not contract.fits(chunk.spec):
            if not replayed:
                self._dropped["no_encoder"] += _starts_within(chunk, self._grid.hop_ns)
            return
        if chunk.start_ns < self._last_start_ns.get(stream, 0) - self._grid.window_ns:
            self._step_back()
        windower = self._windowers.get(stream)
        if windower is None or windower.spec != chunk.spec:
            windower = self._windowers[stream] = Windower(chunk.spec, contract.grid)
        self._last_start_ns[stream] = chunk.start_ns
        self._watermarks[stream] = max(self._watermarks.get(stream, 0), chunk.end_ns)
        self._held.append((chunk.seq, chunk.end_ns))
        for window in windower.push(chunk):
            if window.start_ns > self._done_ns:
                self._pending.setdefault(window.start_ns, []).append((window, chunk.accepted_ns))
            elif not replayed:
                self._dropped["late"] += 1

    def ready(self) -> list[Instant]:
        """Instants that are decided now, in order, each once. Call it when all that is stored has been pushed."""
        if not self._watermarks:
            return []
        newest_ns = max(self._watermarks.values())
        slowest_ns = min(w for w in self._watermarks.values() if w >= newest_ns - self._wait_ns)
        self._done_ns = max(self._done_ns, slowest_ns - self._grid.window_ns)
        instants = []
        for start_ns in sorted(s for s in self._pending if s <= self._done_ns):
            found = self._pending.pop(start_ns)
            instants.append(Instant(start_ns, tuple(w for w, _ in found), max(accepted for _, accepted in found)))
        self._held = [held for held in self._held if held[1] > self._done_ns - self._grid.window_ns]
        return instants

    def _step_back(self) -> None:
        """The node's clock was set back: everything starts anew, so that a corrected clock never silences a node."""
        self._dropped["clock_step"] += sum(len(found) for found in self._pending.values())
        self._pending, self._held, self._done_ns = {}, [], -1
        self._windowers, self._watermarks, self._last_start_ns = {}, {}, {}


def _starts_within(chunk: Chunk, hop_ns: int) -> int:
    """How many windows would have started in this chunk."""
    return (chunk.end_ns - 1) // hop_ns - (chunk.start_ns - 1) // hop_ns
