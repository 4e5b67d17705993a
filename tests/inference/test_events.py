"""Windows into events, against a slow form that looks at the whole history at once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.detector import Seen
from inference.events import Draft, EventRules, EventTracker
from infomae_stream.node_config import EventSettings

HOP_NS, WINDOW_NS = 5, 20
RULES = EventRules({"a": (0.6, 0.4), "b": (0.6, 0.4)}, merge_gap_ns=5, min_windows=1, cool_down_ns=0, max_ns=10**6)


def seen(k: int, a: float, *, modalities: tuple[str, ...] = ("x",), missing: tuple[str, ...] = ()) -> Seen:
    """The window of number k: class "a" has the score `a`, class "b" half of the rest."""
    scores = {"a": a, "b": (1 - a) / 2, "c": (1 - a) / 2}
    return Seen("s", "n", k * HOP_NS, k * HOP_NS + WINDOW_NS, scores, modalities, missing, {"x": a / 2})


def tracker(rules: EventRules = RULES) -> EventTracker:
    thresholds = {"c": (2.0, 2.0), **rules.thresholds}
    return EventTracker(replace(rules, thresholds=thresholds), 3, "ab")


def run(made: EventTracker, windows: list[Seen]) -> list[Draft]:
    return [draft for window in windows for draft in made.push(window)] + made.close()


def spans(drafts: list[Draft]) -> list[tuple[int, int]]:
    return [(d.start_ns, d.end_ns) for d in drafts]


def test_an_event_begins_at_on_and_is_held_down_to_off() -> None:
    scores = [0.5, 0.7, 0.9, 0.5, 0.45, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]
    (draft,) = run(tracker(), [seen(k, a) for k, a in enumerate(scores)])
    assert (draft.label, draft.start_ns, draft.end_ns) == ("a", 1 * HOP_NS, 4 * HOP_NS + WINDOW_NS)
    assert (draft.event.windows, draft.event.peak_score, draft.event.part, draft.event.ongoing) == (4, 0.9, 1, False)
    assert draft.scores["a"] == pytest.approx((0.7 + 0.9 + 0.5 + 0.45) / 4)
    assert sum(draft.scores.values()) == pytest.approx(1.0)
    assert draft.event.attribution == {"x": 0.45}, "that of the peak"
    assert (draft.event.on, draft.event.off) == (0.6, 0.4)
    assert (draft.bundle_version, draft.bundle_sha256) == (3, "ab")


def test_an_event_is_told_once_its_gap_has_passed_and_not_before() -> None:
    made = tracker()
    assert made.push(seen(0, 0.9)) == []
    assert all(made.push(seen(k, 0.1)) == [] for k in range(1, 6))  # up to 20 + 5
    assert spans(made.push(seen(6, 0.1))) == [(0, 20)]


def test_events_that_are_no_further_apart_than_the_gap_are_one() -> None:
    for quiet, want in ((4, [(0, 45)]), (5, [(0, 20), (30, 50)])):
        scores = [0.9, *[0.1] * quiet, 0.9]
        windows = [seen(k, a) for k, a in enumerate(scores)]
        assert spans(run(tracker(), windows)) == want


def test_a_window_that_is_on_for_another_class_holds_no_event() -> None:
    rules = replace(RULES, thresholds={"a": (0.5, 0.2), "b": (0.5, 0.2)})
    made = tracker(rules)
    made.push(seen(0, 0.8))
    drafts = []
    for k in range(1, 9):
        drafts += made.push(replace(seen(k, 0.0), scores={"a": 0.3, "b": 0.6, "c": 0.1}))
    assert [(d.label, *s) for d, s in zip(drafts, spans(drafts), strict=True)] == [("a", 0, 20)]
    assert [(d.label, d.start_ns) for d in made.close()] == [("b", 5)]


def test_a_long_event_is_written_in_parts_that_touch() -> None:
    drafts = run(tracker(replace(RULES, max_ns=40)), [seen(k, 0.9) for k in range(12)])
    assert spans(drafts) == [(0, 40), (40, 75)]
    assert [(d.event.part, d.event.ongoing) for d in drafts] == [(1, True), (2, False)]
    assert sum(d.event.windows for d in drafts) == 12


def test_brief_events_are_not_told_but_counted() -> None:
    made = tracker(replace(RULES, min_windows=3))
    scores = [0.9, 0.9, *[0.1] * 8, 0.9, 0.9, 0.9, *[0.1] * 8]
    assert [d.event.windows for d in run(made, [seen(k, a) for k, a in enumerate(scores)])] == [3]
    assert made.take_suppressed() == {"brief": 2}
    assert made.take_suppressed() == {}


def test_after_an_event_its_class_cools_down() -> None:
    made = tracker(replace(RULES, cool_down_ns=50))
    scores = [0.9, *[0.1] * 7, *[0.9] * 8]  # the event ends at 20; windows 8 .. 13 start before 70
    drafts = run(made, [seen(k, a) for k, a in enumerate(scores)])
    assert spans(drafts) == [(0, 20), (70, 95)]
    assert made.take_suppressed() == {"cool_down": 6}


def test_modalities_that_came_and_went_are_both_told() -> None:
    windows = [seen(0, 0.9, modalities=("x", "y")), seen(1, 0.8, missing=("y",))]
    (draft,) = run(tracker(), windows)
    assert (draft.modalities, draft.event.missing) == (("x", "y"), ("y",))


def test_a_clock_that_is_set_back_ends_what_is_open() -> None:
    made = tracker(replace(RULES, cool_down_ns=10**6))
    assert made.push(seen(100, 0.9)) == []
    assert spans(made.push(seen(3, 0.9))) == [(500, 520)]
    assert spans(made.close()) == [(15, 35)], "and the cool-down of a time to come is none"


def test_a_clock_that_is_set_back_is_noticed_after_a_restart_too() -> None:
    made = tracker()
    made.push(seen(100, 0.9))
    again = EventTracker.load(made.dump(), RULES)
    assert spans(again.pass_by(15)) == [(500, 520)]


def test_windows_that_nobody_looked_at_let_time_pass() -> None:
    made = tracker()
    made.push(seen(0, 0.9))
    assert made.pass_by(25) == []
    assert spans(made.pass_by(26)) == [(0, 20)]


def test_a_tracker_of_the_next_bundle_does_not_overlap_the_last_event() -> None:
    made = tracker()
    made.push(seen(0, 0.9))
    made.close()
    after = EventTracker(RULES, 4, "cd", ended_ns=made.ended_ns)
    after.push(seen(1, 0.9))
    (draft,) = after.close()
    assert (draft.start_ns, draft.end_ns, draft.bundle_version) == (20, 25, 4)


def test_a_state_of_garbage_is_a_value_error() -> None:
    for content in (b"", b"[]", b"{}", b'{"open": {"a": {"x": 1}}}', tracker().dump().replace(b"{}", b"[1]", 1)):
        with pytest.raises(ValueError, match=r"state of open events|JSON|Expecting"):
            EventTracker.load(content, RULES)


def test_settings_whose_off_is_above_on_are_refused() -> None:
    with pytest.raises(ValueError, match=r"off\.a is above on\.a"):
        EventSettings(on={"a": 0.5}, off={"a": 0.6})


# -- properties --------------------------------------------------------------------------------------------------------

SCORES = st.lists(st.sampled_from([0.1, 0.35, 0.5, 0.65, 0.9]), max_size=60)
SKIPS = st.sets(st.integers(0, 59), max_size=20)
ANY_RULES = st.builds(
    EventRules,
    thresholds=st.just({"a": (0.6, 0.4), "b": (0.42, 0.2), "c": (2.0, 2.0)}),
    merge_gap_ns=st.integers(0, 40),
    min_windows=st.integers(1, 4),
    cool_down_ns=st.integers(0, 60),
    max_ns=st.integers(1, 100),
)


def history(scores: list[float], skips: set[int]) -> list[Seen]:
    return [seen(k, a) for k, a in enumerate(scores) if k not in skips]


def is_on(window: Seen, rules: EventRules) -> str:
    """The class that it is on for, "" for none."""
    label = max(window.scores, key=lambda name: window.scores[name])
    return label if window.scores[label] >= rules.thresholds[label][0] else ""


@settings(deadline=None)
@given(SCORES, SKIPS, ANY_RULES)
def test_events_of_a_class_never_overlap_and_hold_every_window_that_was_on(
    scores: list[float], skips: set[int], rules: EventRules
) -> None:
    made = EventTracker(rules, 1, "ab")
    windows = history(scores, skips)
    drafts = run(made, windows)
    for name in rules.thresholds:
        mine = spans([d for d in drafts if d.label == name])
        assert all(first[1] <= second[0] for first, second in pairwise(mine))
    assert all(d.start_ns < d.end_ns for d in drafts)
    missed = 0
    for window in windows:
        label = is_on(window, rules)
        inside = any(d.label == label and d.start_ns < window.end_ns <= d.end_ns for d in drafts)
        missed += bool(label) and not inside
    suppressed = made.take_suppressed()
    held_below_on = (
        sum(d.event.windows for d in drafts) + suppressed.total() - sum(bool(is_on(w, rules)) for w in windows)
    )
    assert missed <= suppressed.total()
    assert held_below_on >= 0, "every on-window stands in a part or is counted"


@settings(deadline=None)
@given(SCORES, SKIPS, ANY_RULES)
def test_parts_of_an_event_touch_and_are_no_longer_than_allowed(
    scores: list[float], skips: set[int], rules: EventRules
) -> None:
    drafts = run(EventTracker(rules, 1, "ab"), history(scores, skips))
    for name in rules.thresholds:
        mine = [d for d in drafts if d.label == name]
        for first, second in pairwise(mine):
            assert first.event.ongoing == (second.event.part == first.event.part + 1)
            if first.event.ongoing:
                gap_ns = second.start_ns - first.end_ns
                assert 0 <= gap_ns <= rules.merge_gap_ns
        # One window is never cut, and an event of fewer than `min_windows` windows is not written yet.
        longest = max(rules.max_ns, WINDOW_NS + (rules.min_windows - 1) * (WINDOW_NS + rules.merge_gap_ns + HOP_NS))
        assert all(d.end_ns - d.start_ns <= longest for d in mine)


@settings(deadline=None)
@given(SCORES, SKIPS, ANY_RULES, st.lists(st.integers(0, 60), max_size=3))
def test_a_restart_from_any_committed_state_gives_the_same_events(
    scores: list[float], skips: set[int], rules: EventRules, kills: list[int]
) -> None:
    windows = history(scores, skips)
    straight = EventTracker(rules, 1, "ab")
    want = run(straight, windows)
    made, got, counted = EventTracker(rules, 1, "ab"), [], Counter[str]()
    for k, window in enumerate(windows):
        if k in kills:
            counted += made.take_suppressed()
            made = EventTracker.load(made.dump(), rules)
        got += made.push(window)
    got += made.close()
    assert got == want
