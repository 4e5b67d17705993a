"""Sensors that fail are opened again: a plug that was pulled and put back needs nobody to come by."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

from collectors.sources import Reading, Source, SourceContext, make_source
from infomae_stream.clock import NS_PER_S
from infomae_stream.config import Settings
from infomae_stream.errors import SourceError
from infomae_stream.types import StreamSpec

FIRST_BACKOFF_S: Final = 1.0
LONGEST_BACKOFF_S: Final = 60.0


def open_source(raw: dict[str, Any], context: SourceContext, *, where: str, prefix: tuple[str, ...]) -> Source:
    """As make_source; a live sensor that fails later is opened again until it is back. Raises as make_source does."""

    def make() -> Source:
        return make_source(raw, context, where=where, prefix=prefix)

    source = make()
    return Reopening(source, make, context) if getattr(source, "live", False) else source


class Reopening:
    """`source` for as long as it works, then what `reopen` gives; it must give the same streams."""

    Options: ClassVar[type[Settings]] = Settings

    def __init__(self, source: Source, reopen: Callable[[], Source], context: SourceContext) -> None:
        self._source: Source | None = source
        self._specs = tuple(source.specs())
        self._reopen, self._clock, self._refuse = reopen, context.clock, context.refuse
        self._backoff_s = FIRST_BACKOFF_S
        self._retry_ns = 0

    def specs(self) -> Sequence[StreamSpec]:
        return self._specs

    def poll(self, timeout_s: float) -> Sequence[Reading]:
        """The sensor's readings; none while it is gone."""
        try:
            if self._source is None:
                if self._clock.monotonic_ns() < self._retry_ns:
                    self._clock.sleep(timeout_s)
                    return []
                self._source = self._open()
            readings = self._source.poll(timeout_s)
        except SourceError as e:
            self._refuse(self._specs[0].id.stream, "sensor_lost", 1, str(e))
            self.close()
            self._retry_ns = self._clock.monotonic_ns() + round(self._backoff_s * NS_PER_S)
            self._backoff_s = min(2 * self._backoff_s, LONGEST_BACKOFF_S)
            return []
        if readings:
            self._backoff_s = FIRST_BACKOFF_S
        return readings

    def close(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            with contextlib.suppress(OSError, SourceError):  # it may be gone already
                source.close()

    def _open(self) -> Source:
        source = self._reopen()
        if tuple(source.specs()) != self._specs:
            source.close()
            raise SourceError("the sensor that came back gives other streams", fix="restart the node")
        return source
