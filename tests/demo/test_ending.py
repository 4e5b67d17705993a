"""The demonstration ends when its story is told, and not before."""

from __future__ import annotations

from typing import Any

from demo.alignment_story import Candidate, Story
from demo.story_loop import QUIET_S, Ending, phase_of
from demo.watching import Facts

JUDGED = Story(candidates=(Candidate(1, "promoted"), Candidate(2, "not_promoted")))


def finished(*processes: str) -> list[dict[str, Any]]:
    return [{"event": "sources_finished", "process": name} for name in processes]


def test_ends_once_all_has_arrived_and_the_later_candidate_is_judged() -> None:
    ending, facts = Ending(collectors=2), Facts(n_detections=5)
    ending.note(finished("phones", "watches"))
    assert not ending.reached(facts, JUDGED, 100.0), "something may still come"
    assert ending.reached(facts, JUDGED, 100.0 + QUIET_S)


def test_waits_for_every_collector() -> None:
    ending = Ending(collectors=2)
    ending.note(finished("phones") + finished("phones"))
    ending.reached(Facts(), JUDGED, 0.0)
    assert not ending.reached(Facts(), JUDGED, 100.0)


def test_waits_while_an_outbox_holds_something() -> None:
    ending, facts = Ending(collectors=1), Facts()
    ending.note(finished("phones"))
    facts.node("s01", "s01-phone").outbox_bytes = 100.0
    for second in range(20):
        assert not ending.reached(facts, JUDGED, float(second))
    facts.node("s01", "s01-phone").outbox_bytes = 0.0
    assert ending.reached(facts, JUDGED, 19.0 + QUIET_S)


def test_what_was_seen_before_the_last_recording_ended_does_not_count() -> None:
    ending, facts = Ending(collectors=1), Facts()
    for second in range(20):  # a pause: nothing waits anywhere
        assert not ending.reached(facts, JUDGED, float(second))
    ending.note(finished("phones"))
    assert not ending.reached(facts, JUDGED, 20.0)
    assert ending.reached(facts, JUDGED, 20.0 + QUIET_S)


def test_waits_while_a_collector_does_not_say_how_full_its_outboxes_are() -> None:
    ending, facts = Ending(1, collecting=frozenset({"phones_collect"})), Facts()
    ending.note(finished("phones"))
    for second in range(20):
        assert not ending.reached(facts, JUDGED, float(second))
    facts.answering.add("phones_collect")
    assert not ending.reached(facts, JUDGED, 20.0)
    assert ending.reached(facts, JUDGED, 20.0 + QUIET_S)


def test_waits_while_detections_arrive() -> None:
    ending, facts = Ending(collectors=1), Facts()
    ending.note(finished("phones"))
    for second in range(20):
        facts.n_detections += 1
        assert not ending.reached(facts, JUDGED, float(second))


def test_waits_for_the_later_candidate() -> None:
    ending, facts = Ending(collectors=1), Facts()
    ending.note(finished("phones"))
    first = Story(candidates=JUDGED.candidates[:1])
    running = Story(candidates=JUDGED.candidates, running=True)
    ending.reached(facts, first, 0.0)
    assert not ending.reached(facts, first, 100.0)
    assert not ending.reached(facts, running, 100.0)


def test_waits_until_every_node_has_the_newest_bundle_or_refused_it() -> None:
    ending, facts = Ending(collectors=1), Facts(status={"bundle": {"version": 2}})
    ending.note(finished("phones"))
    one, other = facts.node("s01", "s01-phone"), facts.node("s02", "s02-phone")
    one.bundle_version, other.bundle_version = 2, 1
    ending.reached(facts, JUDGED, 0.0)
    assert not ending.reached(facts, JUDGED, 100.0)
    other.bundle_state = "refused"
    assert ending.reached(facts, JUDGED, 101.0)


def test_phases_follow_the_story() -> None:
    ending, facts = Ending(collectors=1), Facts()
    assert phase_of(facts, Story(), ending) == "nodes come up"
    facts.node("s01", "s01-phone").samples = 100.0
    assert "fill the lake" in phase_of(facts, Story(), ending)
    assert phase_of(facts, Story(running=True), ending) == "aligning"
    assert "later candidate" in phase_of(facts, Story(candidates=JUDGED.candidates[:1], running=True), ending)
    assert "detect" in phase_of(facts, JUDGED, ending)
    ending.note(finished("phones"))
    assert "played" in phase_of(facts, JUDGED, ending)
