"""What tests of sources share: a context that remembers refusals, and readings made into chunks as the node does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from collectors.chunker import Chunker, Piece
from collectors.sources import Position, Reading, Source, SourceContext, make_source
from infomae_stream.clock import Clock, ManualClock
from infomae_stream.errors import SourceClosed
from infomae_stream.types import Chunk, ClockQuality


class Rig:
    """A node's place: `make` builds a source in it; `refused` counts (stream, reason), `details` keeps the words."""

    def __init__(self, folder: Path, clock: Clock | None = None, positions: dict[str, Position] | None = None) -> None:
        self.folder = folder
        self.clock = clock or ManualClock()
        self.refused: Counter[tuple[str, str]] = Counter()
        self.details: list[str] = []
        self.context = SourceContext("s01", "s01-node", folder, self.clock, (positions or {}).get, self._refuse)

    def make(self, **raw: Any) -> Any:
        return make_source(raw, self.context, where="node.toml", prefix=("nodes", "0", "sources", "0"))

    def _refuse(self, stream: str, reason: str, count: int = 1, detail: str = "") -> None:
        self.refused[stream, reason] += count
        self.details.append(detail)


def drain(source: Source, most: int = 10_000) -> list[Reading]:
    """All readings of a source that ends."""
    readings: list[Reading] = []
    try:
        while len(readings) < most:
            readings += source.poll(0.1)
    except SourceClosed:
        pass
    return readings


def pieces_of(source: Source, readings: Sequence[Reading], stream: str = "") -> list[Piece]:
    """Readings of one stream (the first where none is named) through the chunker, each piece a valid chunk."""
    spec = next(s for s in source.specs() if not stream or s.id.stream == stream)
    chunker = Chunker(spec)
    mine = [r for r in readings if r.stream == spec.id.stream]
    pieces = [p for r in mine for p in chunker.push(r)] + chunker.flush()
    for p in pieces:
        Chunk(spec, "e", 0, p.start_ns, p.samples_CN, ClockQuality("t"), p.times_ns)
    return pieces


def samples_of(pieces: Sequence[Piece]) -> Any:
    return np.concatenate([p.samples_CN for p in pieces], axis=1)
