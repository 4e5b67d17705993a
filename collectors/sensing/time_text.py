"""Times as people and devices write them, into nanoseconds UTC: exact where the text is."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator

from infomae_stream.clock import NS_PER_S

UNITS_NS: Final = {"s": NS_PER_S, "ms": 1_000_000, "us": 1_000, "ns": 1}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _known_unit(unit: str) -> str:
    if unit not in UNITS_NS and unit != "iso" and "%" not in unit:
        raise ValueError("is none of s, ms, us, ns, iso, nor a pattern like '%d.%m.%Y %H:%M:%S.%f'")
    return unit


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as e:
        raise ValueError(f"{name!r} is no time zone; write one like Europe/Berlin") from e
    return name


TimeUnit = Annotated[str, AfterValidator(_known_unit)]
ZoneName = Annotated[str, AfterValidator(_known_zone)]


def time_reader(unit: str, time_zone: str = "UTC") -> Callable[[str], int]:
    """A function from text to nanoseconds since 1970, or since anywhere for numbers; it raises ValueError.

    unit: s, ms, us or ns for numbers, `iso` for ISO 8601, else a strptime pattern. time_zone: of texts that name none.
    """
    if unit in UNITS_NS:
        unit_ns = UNITS_NS[unit]

        def number(text: str) -> int:
            try:
                value = Decimal(text.replace(",", ".")) * unit_ns
            except InvalidOperation as e:
                raise ValueError(f"{text[:40]!r} is no time in {unit}") from e
            if not value.is_finite() or abs(value) >= 2**62:
                raise ValueError(f"{text[:40]!r} is no time in {unit}")
            return int(value.to_integral_value())

        return number
    zone = ZoneInfo(time_zone)

    def moment(text: str) -> int:
        when = datetime.fromisoformat(text) if unit == "iso" else datetime.strptime(text, unit)
        since = (when if when.tzinfo else when.replace(tzinfo=zone)).astimezone(UTC) - _EPOCH
        return (since.days * 86_400 + since.seconds) * NS_PER_S + since.microseconds * 1000

    return moment
