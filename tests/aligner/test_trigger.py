from __future__ import annotations

from dataclasses import replace

import pytest

from aligner.trigger import Situation, why_wait
from infomae_stream.hub_config import Trigger

TRIGGER = Trigger(min_pairs=100, min_new_pairs=50, settle_s=5, min_interval_s=60)
GO = Situation(
    pairs=120, pairs_at_last_run=0, settled_s=9, since_run_s=None, failures=0, train_labels=9, validation_labels=9
)


def test_enough_settled_pairs_with_labels_start_a_run() -> None:
    assert why_wait(GO, TRIGGER) == ""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pairs": 99}, "99 of 100 pairs"),
        ({"pairs_at_last_run": 100}, "20 of 50 new pairs"),
        ({"settled_s": 4.9}, "pairs are still arriving"),
        ({"train_labels": 0}, "no labels to learn from"),
        ({"validation_labels": 0}, "no labels of the validation sites"),
        ({"pairs_at_last_run": 60, "since_run_s": 20.0}, "next run in 40 s"),
        ({"since_run_s": 61.0, "failures": 3}, "next run in 59 s (the last one failed)"),
    ],
)
def test_what_is_missing_is_told(change: dict[str, float], says: str) -> None:
    assert why_wait(replace(GO, **change), TRIGGER) == says  # type: ignore[arg-type]


def test_a_failed_run_is_tried_again_without_new_pairs() -> None:
    assert why_wait(replace(GO, since_run_s=61.0, failures=2), TRIGGER) == ""
