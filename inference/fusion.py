"""Chunks of several nodes of a site, in any order, into instants: all windows of all nodes that start together.

The nodes share the time grid, so their windows need no matching. A chunk may come twice, late, or after a later one; an
instant is decided once, when every stream that keeps up has moved past its end, and a stream that is more than
`wait_s` behind the newest is not waited for. No I/O, no clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Final

from inference.instants import Instant
from infomae_stream.bundle import ModalityContract
from infomae_stream.clock import NS_PER_S
from infomae_stream.types import Chunk, StreamId, Window
from infomae_stream.windower import cut_windows

AHEAD_S: Final = 5.0
_REMEMBERED: Final = 2000  # chunks of a stream, so that one that comes twice is known

_Identity = tuple[str, int]  # epoch, seq


class FusionGatherer:
    """`contracts`: the bundle's modalities. `take_dropped` gives the windows that never reach an instant, by reason:

    no_encoder (the bundle has none for the stream, or another rate, channels or units), late (their instant was decided
    without them), clock_ahead (of a time that is still to come: one node's wrong clock must not silence the site).
    """

    def __init__(
        self,
        contracts: Mapping[str, ModalityContract],
        done_ns: int,
        *,
        wait_s: float,
        nodes: Collection[str] = (),
    ) -> None:
        """nodes: those that are awaited from the first chunk on, whosever it is, even if they have sent nothing yet."""
        self.done_ns = done_ns
        self._awaited = set(nodes)
        self._first_ns = -1  # start of the first chunk
        self._contracts = contracts
        self._grid = next(iter(contracts.values())).grid  # all modalities of a bundle share window and hop
        self._wait_ns = round(wait_s * NS_PER_S)
        self._chunks: dict[StreamId, list[Chunk]] = {}
        self._watermarks: dict[StreamId, int] = {}
        self._known: dict[StreamId, dict[_Identity, None]] = {}
        self._dropped: Counter[str] = Counter()

    def take_dropped(self) -> Counter[str]:
        dropped, self._dropped = +self._dropped, Counter()
        return dropped

    def push(self, chunk: Chunk, now_ns: int) -> None:
        """Take a chunk that came at `now_ns`, by this machine's clock."""
        stream = chunk.spec.id
        if self._came_before(stream, (chunk.epoch, chunk.seq)):
            return
        contract = self._contracts.get(chunk.spec.modality)
        if contract is None or not contract.fits(chunk.spec):
            self._dropped["no_encoder"] += self._starts(chunk.start_ns, chunk.end_ns)
            return
        if chunk.end_ns > now_ns + AHEAD_S * NS_PER_S:
            self._dropped["clock_ahead"] += self._starts(chunk.start_ns, chunk.end_ns)
            return
        self._dropped["late"] += self._starts(chunk.start_ns, min(chunk.end_ns, self.done_ns + 1))
        if chunk.end_ns > self.done_ns:
            self._chunks.setdefault(stream, []).append(chunk)
            self._watermarks[stream] = max(self._watermarks.get(stream, 0), chunk.end_ns)
            self._awaited.discard(stream.node)
            self._first_ns = chunk.start_ns if self._first_ns < 0 else self._first_ns

    def ready(self, now_ns: int) -> list[Instant]:
        """Instants that are decided now, in order, each once."""
        if not self._watermarks:
            return []
        reached_ns = [*self._watermarks.values(), *(self._first_ns for _ in self._awaited)]
        slowest_ns = min(ns for ns in reached_ns if ns >= max(reached_ns) - self._wait_ns)
        first_ns, self.done_ns = self.done_ns + 1, max(self.done_ns, slowest_ns - self._grid.window_ns)
        found: dict[int, list[Window]] = {}
        for stream, chunks in self._chunks.items():
            grid = self._contracts[chunks[0].spec.modality].grid if chunks else self._grid
            for window in cut_windows(_of_newest_spec(chunks), grid, first_ns, self.done_ns + 1):
                found.setdefault(window.start_ns, []).append(window)
            self._chunks[stream] = [c for c in chunks if c.end_ns > self.done_ns - self._grid.window_ns]
        return [Instant(start_ns, tuple(windows), now_ns) for start_ns, windows in sorted(found.items())]

    def _came_before(self, stream: StreamId, identity: _Identity) -> bool:
        known = self._known.setdefault(stream, {})
        if identity in known:
            return True
        known[identity] = None
        if len(known) > _REMEMBERED:
            del known[next(iter(known))]
        return False

    def _starts(self, first_ns: int, end_ns: int) -> int:
        """How many windows start in [first_ns, end_ns)."""
        hop_ns = self._grid.hop_ns
        return max(0, (end_ns - 1) // hop_ns - (first_ns - 1) // hop_ns)


def _of_newest_spec(chunks: list[Chunk]) -> list[Chunk]:
    """Without those of before the stream's description changed: their samples mean something else."""
    return [chunk for chunk in chunks if chunk.spec == max(chunks, key=lambda c: c.start_ns).spec]
