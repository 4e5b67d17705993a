"""Which windows make a pair, and why others do not. Pure: windows in, pairs out.

A candidate is two windows of different modalities at one site and one grid start; of three modalities there are
three candidates.
A candidate is refused for the first reason of REASONS that holds for either window, clocks before signals: with a clock
that cannot be trusted nothing else that is known of the two windows' time is worth naming.

- clock_unsynchronised: a time source said that it does not follow any reference.
- clock_uncertainty: both uncertainties together are more than `max_clock_uncertainty_s`.
- clock_offset: the offsets that the two time sources reported differ by more than `max_clock_offset_s`.
- clock_jump: wall and monotonic time parted inside a window, so its samples do not lie where they say.
- coverage: too little of a window is real data.
- flatline: a channel never changed: a dead or stuck sensor, whose window would be aligned with anything.
- no_partner: there is a window of one modality only. Counted, not stored: most windows are alone, and need no row.

Two flags of a window do not refuse: "gap", since coverage already says how much is missing and what is left is true;
and "clipped", since a blow that exceeds a sensor's range happened at that moment all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Final

from infomae_stream.clock import NS_PER_S
from infomae_stream.hub_config import MatcherSettings
from infomae_stream.types import Pair, StreamSpec, Window

NO_PARTNER: Final = "no_partner"
REASONS: Final = (
    "clock_unsynchronised",
    "clock_uncertainty",
    "clock_offset",
    "clock_jump",
    "coverage",
    "flatline",
    NO_PARTNER,
)


def pair_windows(
    first: tuple[StreamSpec, Window | None], second: tuple[StreamSpec, Window | None], start_ns: int, s: MatcherSettings
) -> Pair:
    """The pair of two streams at `start_ns`, refused or not; None stands for a window without a single covered point.

    `lag_ns` is the second clock's offset minus the first's as their time sources reported them, not a measurement on
    the signals; 0 when a window is missing.
    """
    (spec_a, a), (spec_b, b) = sorted((first, second), key=lambda side: (side[0].modality, side[0].id))
    return Pair(
        site=spec_a.id.site,
        start_ns=start_ns,
        streams=(spec_a.id, spec_b.id),
        modalities=(spec_a.modality, spec_b.modality),
        coverage=min(a.coverage if a else 0.0, b.coverage if b else 0.0),
        lag_ns=b.clock.offset_ns - a.clock.offset_ns if a and b else 0,
        uncertainty_ns=a.clock.uncertainty_ns + b.clock.uncertainty_ns if a and b else 0,
        reason=refusal(a, b, s) if a and b else "coverage",
    )


def refusal(a: Window, b: Window, s: MatcherSettings) -> str:
    """The first of REASONS that holds for the two windows; "" when they make a pair."""
    if not (a.clock.synchronised and b.clock.synchronised):
        return "clock_unsynchronised"
    if a.clock.uncertainty_ns + b.clock.uncertainty_ns > s.max_clock_uncertainty_s * NS_PER_S:
        return "clock_uncertainty"
    if abs(a.clock.offset_ns - b.clock.offset_ns) > s.max_clock_offset_s * NS_PER_S:
        return "clock_offset"
    flags = a.flags | b.flags
    if "clock_jump" in flags:
        return "clock_jump"
    if min(a.coverage, b.coverage) < s.min_coverage:
        return "coverage"
    if "flatline" in flags:
        return "flatline"
    return ""


def candidates(specs: Iterable[StreamSpec], modalities: Sequence[str]) -> list[tuple[StreamSpec, StreamSpec]]:
    """All pairs of streams of one site that differ in modality, among the modalities that take part."""
    taking_part = sorted((s for s in specs if s.modality in modalities), key=lambda s: (s.modality, s.id))
    return [(a, b) for a, b in combinations(taking_part, 2) if a.modality != b.modality]
