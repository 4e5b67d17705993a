"""Chunks that could not be taken, until there is room to write down that they are missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from infomae_stream.clock import NS_PER_S
from infomae_stream.types import StreamId

JOIN_NS: Final = 2 * NS_PER_S
MAX_GAPS: Final = 1000


@dataclass(slots=True)
class LostSpan:
    stream: StreamId
    start_ns: int
    end_ns: int
    reason: str
    n_samples: int


class GapLedger:
    """Neighbouring losses of a stream become one span, so that a full disk costs one record and not thousands."""

    def __init__(self) -> None:
        self._spans: list[LostSpan] = []

    def add(self, stream: StreamId, start_ns: int, end_ns: int, reason: str, n_samples: int) -> None:
        for span in reversed(self._spans):
            if span.stream != stream or span.reason != reason:
                continue
            if len(self._spans) < MAX_GAPS and not (-JOIN_NS <= start_ns - span.end_ns <= JOIN_NS):
                break
            span.start_ns, span.end_ns = min(span.start_ns, start_ns), max(span.end_ns, end_ns)
            span.n_samples += n_samples
            return
        self._spans.append(LostSpan(stream, start_ns, end_ns, reason, n_samples))

    def spans(self) -> list[LostSpan]:
        return list(self._spans)

    def clear(self) -> None:
        """They have been written down."""
        self._spans.clear()
