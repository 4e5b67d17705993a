"""The demonstration from start to end: what it waits for, and when it is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from demo.alignment_story import Story, read_story
from demo.deployment import Deployment
from demo.watching import Facts, Watcher

UPDATE_S: Final = 0.5
TABLE_EVERY_S: Final = 2.0
QUIET_S: Final = 6.0  # no detection and nothing in any outbox for so long: all has arrived


@dataclass
class Ending:
    """Watches for the end: sources played, outboxes drained, the later candidate judged.

    `collecting`: the processes that tell how full the outboxes are; while one does not answer, nobody knows.
    """

    collectors: int
    candidates_wanted: int = 2
    collecting: frozenset[str] = frozenset()
    _finished: set[str] = field(default_factory=set)
    _counted: tuple[int, float] = (-1, 0.0)

    def note(self, events: list[dict[str, Any]]) -> None:
        self._finished |= {e["process"] for e in events if e["event"] == "sources_finished"}

    @property
    def sources_finished(self) -> bool:
        return len(self._finished) >= self.collectors

    def reached(self, facts: Facts, story: Story, now_s: float) -> bool:
        known = self.sources_finished and self.collecting <= facts.answering
        if self._counted[0] != facts.n_detections or facts.outbox_bytes > 0 or not known:
            self._counted = (facts.n_detections, now_s)
        quiet = now_s - self._counted[1] >= QUIET_S
        judged = len(story.candidates) >= self.candidates_wanted and not story.running
        return self.sources_finished and quiet and judged and told_everywhere(facts)


def told_everywhere(facts: Facts) -> bool:
    """Every node has said what it made of the newest bundle: it serves it, or has refused it."""
    version = (facts.status.get("bundle") or {}).get("version", 0)
    return all(n.bundle_version >= version or n.bundle_state == "refused" for n in facts.nodes.values())


def phase_of(facts: Facts, story: Story, ending: Ending) -> str:
    """One line for the top of the view."""
    if not facts.samples:
        return "nodes come up"
    if story.running:
        return "aligning" if not story.candidates else "a later candidate is in training"
    if not story.candidates:
        return "recordings fill the lake"
    if ending.sources_finished:
        return "everything has been played; the rest arrives"
    return "watches detect with a head that never saw a watch label"


@dataclass(frozen=True)
class Result:
    status: dict[str, Any]
    ended_early: dict[str, int]  # processes that ended by themselves, with their exit codes
    in_time: bool


def play(
    deployment: Deployment,
    watcher: Watcher,
    limit_s: float,
    show: Callable[[Facts, list[dict[str, Any]], str], None],
    each_turn: Callable[[Facts, Story], None] = lambda _facts, _story: None,
    candidates: int = 2,
) -> Result:
    """Run until the story is told or `limit_s` is over. Raises KeyboardInterrupt through; `show` draws each turn."""
    began_s = time.monotonic()
    collecting = frozenset(name for name in deployment.ports.metrics() if name.endswith("_collect"))
    ending = Ending(len(collecting), candidates, collecting)
    table_due_s = 0.0
    labels_open = True
    while True:
        now_s = time.monotonic()
        events = watcher.update(UPDATE_S)
        ending.note(events)
        story = read_story(watcher.facts.status)
        if labels_open and watcher.facts.samples:
            labels_open = deployment.import_next_labels()
        if now_s >= table_due_s:
            deployment.processes.table()
            table_due_s = now_s + TABLE_EVERY_S
        each_turn(watcher.facts, story)
        show(watcher.facts, events, phase_of(watcher.facts, story, ending))
        dead = {name: code for name, code in deployment.processes.ended().items() if name != "labels"}
        in_time = now_s - began_s < limit_s
        if dead or not in_time or ending.reached(watcher.facts, story, now_s):
            return Result(watcher.facts.status, dead, in_time)
