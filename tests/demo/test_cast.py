"""Who plays what: pairs stay scarce, nobody is in two groups, everything fits the shipped recordings."""

from __future__ import annotations

import numpy as np
import pytest

from demo.people import CAST, FULL, LEARN, PHONE, REDUCED, UNSEEN, VALIDATE, WATCH, Person, Schedule, group_of, play_of
from demo.recordings import CLASSES, Interval, TrueLabels, file_of, label_intervals, read_recordings

NAMES = tuple(f"r{n}" for n in range(1, 8))


def person(name: str) -> Person:
    return next(p for p in CAST if p.name == name)


@pytest.mark.parametrize("schedule", [FULL, REDUCED], ids=["full", "reduced"])
def test_people_who_do_not_wear_both_never_play_one_recording_on_both_devices(schedule: Schedule) -> None:
    for p in schedule.cast:
        phone, watch = (set(play_of(p, device, NAMES, schedule).recordings) for device in (PHONE, WATCH))
        assert bool(phone & watch) == p.pairs, p.name
        assert phone and watch


@pytest.mark.parametrize("schedule", [FULL, REDUCED], ids=["full", "reduced"])
def test_every_part_of_the_story_has_its_person(schedule: Schedule) -> None:
    groups = {p.group for p in schedule.cast}
    assert groups == {LEARN, VALIDATE, UNSEEN}
    assert sum(p.wrong_clock for p in schedule.cast) == 1
    learn = [p for p in schedule.cast if p.group == LEARN]
    assert any(p.pairs and not p.wrong_clock for p in learn) and any(not p.pairs for p in learn)


def test_pairs_keep_arriving_and_unseen_people_play_on_while_the_rest_is_over() -> None:
    slow = play_of(person("s02"), PHONE, NAMES, FULL)
    unseen = play_of(person("s15"), WATCH, NAMES, FULL)
    prompt = play_of(person("s10"), PHONE, NAMES, FULL)
    assert slow.prompt < len(slow.recordings) and slow.pause_s > 0
    assert unseen.prompt < len(unseen.recordings) and unseen.pause_s > 0
    assert prompt.prompt == len(prompt.recordings)


def test_both_devices_of_one_person_keep_the_same_pace() -> None:
    for p in CAST:
        if p.pairs:
            assert play_of(p, PHONE, NAMES, FULL) == play_of(p, WATCH, NAMES, FULL)


def test_a_stranger_is_in_no_group() -> None:
    assert group_of("s99") == ""


@pytest.mark.parametrize("device", [PHONE, WATCH])
def test_recordings_of_everybody_are_shipped_with_known_labels(device: str) -> None:
    for p in CAST:
        recordings = read_recordings(file_of(p.name, device))
        assert len(recordings) >= 6
        assert {i.label for r in recordings for i in r.intervals} <= set(CLASSES)
        starts = [r.start_ns for r in recordings]
        assert starts == sorted(starts)


def test_label_intervals_cover_the_recording_without_overlap() -> None:
    times_ns = np.array([0, 10, 20, 15, 30, 40, 50], np.int64) * 1_000_000
    labels = np.array(["a", "a", "b", "b", "b", "a", "a"])
    step_ns = 1_000_000
    assert label_intervals(times_ns, labels) == (
        Interval(0, 20 * step_ns, "a"),
        Interval(20 * step_ns, 40 * step_ns, "b"),
        Interval(40 * step_ns, 60 * step_ns, "a"),
    )


def test_a_label_that_has_no_time_is_left_out() -> None:
    times_ns = np.array([0, 10, 10, 20], np.int64)
    labels = np.array(["a", "b", "c", "c"])
    assert [(i.label, i.start_ns) for i in label_intervals(times_ns, labels)] == [("a", 0), ("c", 10)]


def test_the_true_label_of_a_time_is_the_one_that_holds_longest() -> None:
    truth = TrueLabels([Interval(100, 200, "sit"), Interval(0, 100, "walk"), Interval(500, 600, "turn")])
    assert truth.of(0, 100) == "walk"
    assert truth.of(60, 160) == "sit"
    assert truth.of(70, 90) == "walk"
    assert truth.of(550, 750) == "", "held for a quarter of the time only"
    assert truth.of(300, 400) == ""
    assert truth.of(-50, 10) == ""
