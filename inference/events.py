"""What the windows of one node show -> events. No I/O, no clock.

A window is *on* for its highest class when the score of that class reaches the threshold `on`. An on-window begins an
event of its class; the event is held by every later window that is on for it, or in which its score is at least `off`
while no other class is on (the classes exclude each other). It ends when `merge_gap` has passed without a window that
holds it, is then left alone for `cool_down`, and is written in parts when it outlasts `max_ns`. Events of one class
never overlap.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from inference.detector import Seen
from infomae_stream.bundle import Bundle
from infomae_stream.clock import NS_PER_S
from infomae_stream.node_config import EventSettings
from infomae_stream.types import Event


@dataclass(frozen=True, slots=True)
class Draft:
    """A detection before it is numbered."""

    start_ns: int
    end_ns: int
    label: str
    scores: dict[str, float]
    modalities: tuple[str, ...]
    bundle_version: int
    bundle_sha256: str
    event: Event


@dataclass(frozen=True, slots=True)
class EventRules:
    """thresholds: class -> (on, off), 0 <= off <= on; times in nanoseconds of the data."""

    thresholds: Mapping[str, tuple[float, float]]
    merge_gap_ns: int
    min_windows: int
    cool_down_ns: int
    max_ns: int

    @classmethod
    def of(cls, settings: EventSettings, bundle: Bundle) -> EventRules:
        """The settings' thresholds where they have one; `on` is otherwise the bundle's, or 0 where it has none."""
        thresholds = {}
        for name in bundle.classes:
            on = max(0.0, settings.on.get(name, bundle.manifest.thresholds.get(name, 0.0)))
            thresholds[name] = on, min(on, settings.off.get(name, settings.off_ratio * on))
        return cls(
            thresholds,
            merge_gap_ns=round(settings.merge_gap_s * NS_PER_S),
            min_windows=settings.min_windows,
            cool_down_ns=round(settings.cool_down_s * NS_PER_S),
            max_ns=round(settings.max_s * NS_PER_S),
        )


@dataclass(slots=True)
class _Open:
    """An event that may go on. sums: of the scores over the `windows` of this part; total: windows of all parts.

    peak_score and attribution: of the best window of this part in which the class was the highest.
    """

    start_ns: int
    end_ns: int
    on: float
    off: float
    part: int = 1
    total: int = 0
    windows: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    peak_score: float = 0.0
    attribution: dict[str, float] = field(default_factory=dict)
    modalities: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def add(self, seen: Seen, name: str, *, highest: bool) -> None:
        score = seen.scores[name]
        if self.windows == 0 or (highest and score >= self.peak_score):
            self.peak_score, self.attribution = score, dict(seen.attribution) if highest else {}
        self.sums = {label: self.sums.get(label, 0.0) + s for label, s in seen.scores.items()}
        self.modalities = sorted({*self.modalities, *seen.modalities})
        self.missing = sorted({*self.missing, *seen.missing})
        self.end_ns = max(self.end_ns, seen.end_ns)
        self.windows += 1
        self.total += 1

    def next_part(self, seen: Seen) -> _Open:
        start_ns = max(self.end_ns, seen.start_ns)
        return _Open(start_ns, start_ns, self.on, self.off, self.part + 1, self.total)


class EventTracker:
    """One node's open events under one bundle. `dump` is its whole state: what it was fed may be forgotten then.

    `take_suppressed` counts on-windows that came to no event: brief (fewer than `min_windows`), cool_down.
    """

    def __init__(
        self, rules: EventRules, bundle_version: int, bundle_sha256: str, *, ended_ns: Mapping[str, int] | None = None
    ) -> None:
        """ended_ns: class -> end of its last event, of the tracker before."""
        self.bundle_version, self.bundle_sha256 = bundle_version, bundle_sha256
        self._rules = rules
        self.ended_ns = dict(ended_ns or {})
        self._open: dict[str, _Open] = {}
        self._last_start_ns = -1
        self._suppressed: Counter[str] = Counter()

    @property
    def any_open(self) -> bool:
        return bool(self._open)

    def take_suppressed(self) -> Counter[str]:
        suppressed, self._suppressed = self._suppressed, Counter()
        return suppressed

    def push(self, seen: Seen) -> list[Draft]:
        """The next window's scores, in the order of their starts; returns the events and parts that ended before it.

        A start that is not later than the one before it means that the clock was set back: all that is open ends.
        """
        drafts = self.pass_by(seen.start_ns)
        label = max(seen.scores, key=lambda name: seen.scores[name])
        is_on = seen.scores[label] >= self._rules.thresholds[label][0]
        for name, event in self._open.items():
            if (name == label) if is_on else (seen.scores[name] >= event.off):
                drafts += self._hold(name, seen, highest=name == label)
        if is_on and label not in self._open:
            self._begin(label, seen)
        return drafts

    def pass_by(self, start_ns: int) -> list[Draft]:
        """The same for a window that nobody looked at: nothing is known of it but its time."""
        drafts: list[Draft] = []
        if start_ns <= self._last_start_ns:
            drafts += self.close()
            self.ended_ns.clear()
        self._last_start_ns = start_ns
        over = [name for name, event in self._open.items() if start_ns > event.end_ns + self._rules.merge_gap_ns]
        return drafts + [draft for name in over for draft in self._end(name)]

    def close(self) -> list[Draft]:
        """End all that is open: nothing more comes under this bundle, or for a long time."""
        return [draft for name in list(self._open) for draft in self._end(name)]

    def dump(self) -> bytes:
        return json.dumps(
            {
                "v": 1,
                "bundle_version": self.bundle_version,
                "bundle_sha256": self.bundle_sha256,
                "last_start_ns": self._last_start_ns,
                "ended_ns": self.ended_ns,
                "open": {name: asdict(event) for name, event in self._open.items()},
            }
        ).encode()

    @classmethod
    def load(cls, content: bytes, rules: EventRules) -> EventTracker:
        """Raises ValueError when it is not what `dump` writes. `rules` hold for what begins from now on."""
        try:
            d: dict[str, Any] = json.loads(content)
            made = cls(rules, int(d["bundle_version"]), str(d["bundle_sha256"]), ended_ns=d["ended_ns"])
            made._last_start_ns = int(d["last_start_ns"])
            made._open = {name: _Open(**event) for name, event in d["open"].items()}
        except (KeyError, TypeError, AttributeError) as e:
            raise ValueError(f"not the state of open events: {content[:80]!r}") from e
        return made

    def _begin(self, label: str, seen: Seen) -> None:
        start_ns = seen.start_ns
        if label in self.ended_ns:
            ended_ns, cool_down_ns = self.ended_ns[label], self._rules.cool_down_ns
            if seen.end_ns <= ended_ns or (cool_down_ns and start_ns < ended_ns + cool_down_ns):
                self._suppressed["cool_down"] += 1
                return
            start_ns = max(start_ns, ended_ns)
        event = self._open[label] = _Open(start_ns, start_ns, *self._rules.thresholds[label])
        event.add(seen, label, highest=True)

    def _hold(self, name: str, seen: Seen, *, highest: bool) -> list[Draft]:
        event, drafts = self._open[name], []
        if seen.end_ns - event.start_ns > self._rules.max_ns and event.total >= self._rules.min_windows:
            drafts.append(self._draft(name, event, ongoing=True))
            event = self._open[name] = event.next_part(seen)
        event.add(seen, name, highest=highest)
        return drafts

    def _end(self, name: str) -> list[Draft]:
        event = self._open.pop(name)
        if event.total < self._rules.min_windows:
            self._suppressed["brief"] += event.windows
            return []
        self.ended_ns[name] = event.end_ns
        return [self._draft(name, event, ongoing=False)]

    def _draft(self, name: str, event: _Open, *, ongoing: bool) -> Draft:
        return Draft(
            start_ns=event.start_ns,
            end_ns=event.end_ns,
            label=name,
            scores={label: total / event.windows for label, total in event.sums.items()},
            modalities=tuple(event.modalities),
            bundle_version=self.bundle_version,
            bundle_sha256=self.bundle_sha256,
            event=Event(
                windows=event.windows,
                peak_score=event.peak_score,
                part=event.part,
                ongoing=ongoing,
                missing=tuple(event.missing),
                attribution=event.attribution,
                on=event.on,
                off=event.off,
            ),
        )
