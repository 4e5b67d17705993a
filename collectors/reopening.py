"""Sensors that are not there, or fail, are opened again: a plug that was put (back) in needs nobody to come by."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

from collectors.sources import Reading, Source, SourceContext, check_options
from infomae_stream.clock import NS_PER_S
from infomae_stream.config import Settings
from infomae_stream.errors import SourceError
from infomae_stream.types import StreamSpec

FIRST_BACKOFF_S: Final = 1.0
LONGEST_BACKOFF_S: Final = 60.0


def source_key(raw: dict[str, Any]) -> str:
    """The same for two `[[nodes.sources]]` tables that say the same."""
    return json.dumps(raw, sort_keys=True, default=str)


def open_source(raw: dict[str, Any], context: SourceContext, *, where: str, prefix: tuple[str, ...]) -> Reopening:
    """What a `[[nodes.sources]]` table describes, opened when it is there. Raises ConfigError with the dotted key."""
    options, cls = check_options(raw, where=where, prefix=prefix)

    def make() -> Source:
        source: Source = cls(options, context)
        return source

    return Reopening(make, context, kind=str(raw["type"]), key=source_key(raw), live=getattr(cls, "live", False))


class Reopening:
    """What `make` gives, as soon and as long as it works.

    A source that is not there at first is tried again until it is. One that fails later is opened again when it is
    `live` (a sensor; it must give the same streams), and raises SourceError otherwise (a file).
    missing: why there is none now; "" while there is. specs() is empty until it was there once, and never changes then.
    """

    Options: ClassVar[type[Settings]] = Settings

    def __init__(
        self, make: Callable[[], Source], context: SourceContext, *, kind: str = "", key: str = "", live: bool = True
    ) -> None:
        self._make, self._clock, self._refuse = make, context.clock, context.refuse
        self.kind, self.key, self._live = kind, key, live
        self._source: Source | None = None
        self._specs: tuple[StreamSpec, ...] = ()
        self._backoff_s = FIRST_BACKOFF_S
        self._retry_ns = 0
        self.missing = ""
        try:
            self._open()
        except SourceError as e:
            self._lose(e)

    def specs(self) -> Sequence[StreamSpec]:
        return self._specs

    def poll(self, timeout_s: float) -> Sequence[Reading]:
        """The source's readings; none while it is not there."""
        try:
            if self._source is None:
                if self._clock.monotonic_ns() < self._retry_ns:
                    self._clock.sleep(timeout_s)
                    return []
                self._open()
            assert self._source is not None
            readings = self._source.poll(timeout_s)
        except SourceError as e:
            if self._source is not None and not self._live:
                raise
            self._lose(e)
            return []
        if readings:
            self._backoff_s = FIRST_BACKOFF_S
        return readings

    def close(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            with contextlib.suppress(OSError, SourceError):  # it may be gone already
                source.close()

    def _open(self) -> None:
        source = self._make()
        specs = tuple(source.specs())
        if self._specs and specs != self._specs:
            source.close()
            raise SourceError("the sensor that came back gives other streams", fix="restart the node")
        self._source, self._specs, self.missing = source, specs, ""

    def _lose(self, error: SourceError) -> None:
        stream, reason = (self._specs[0].id.stream, "sensor_lost") if self._specs else ("", "sensor_absent")
        self._refuse(stream, reason, 1, str(error))
        self.missing = str(error)
        self.close()
        self._retry_ns = self._clock.monotonic_ns() + round(self._backoff_s * NS_PER_S)
        self._backoff_s = min(2 * self._backoff_s, LONGEST_BACKOFF_S)
