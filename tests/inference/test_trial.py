from __future__ import annotations

from inference.trial import FAILURES, Trial
from infomae_stream.errors import BundleError

FAILURE = BundleError("gives NaN", reason="runtime", where="bundle 2")


def test_a_bundle_that_works_ends_its_trial() -> None:
    trial = Trial(6, 0.5, "bundle 2")
    assert [trial.passed(0.01, ()) for _ in range(5)] == [None] * 5 and not trial.over
    assert trial.passed(0.01, ()) is None and trial.over


def test_three_failures_end_it_however_far_apart() -> None:
    trial = Trial(20, 0.5, "bundle 2")
    for _ in range(FAILURES - 1):
        assert trial.failed(FAILURE) is None
        assert trial.passed(0.01, ()) is None
    assert trial.failed(FAILURE) is FAILURE


def test_after_the_trial_only_failures_in_a_row_count() -> None:
    trial = Trial(0, 0.5, "bundle 2")
    for _ in range(5):
        assert trial.failed(FAILURE) is None
        assert trial.passed(9.0, ("acoustic",)) is None  # slow and half blind: not the trial's matter any more
    assert [trial.failed(FAILURE) for _ in range(FAILURES)] == [None, None, FAILURE]


def test_a_modality_that_fails_beside_others_ends_the_trial_too() -> None:
    trial = Trial(20, 0.5, "bundle 2")
    found = [trial.passed(0.01, ("acoustic",)) for _ in range(FAILURES)]
    assert found[:-1] == [None, None] and found[-1] is not None
    assert found[-1].reason == "runtime" and "acoustic" in str(found[-1])


def test_slow_is_what_the_median_look_is() -> None:
    trial = Trial(30, 0.5, "bundle 2", before_s=0.1)
    taken = [9.0, 0.1, 9.0, 0.1, 0.1] * 2  # a busy moment is no verdict
    assert [trial.passed(s, ()) for s in taken] == [None] * 10
    found = [trial.passed(0.6, ()) for _ in range(10)]
    slow = [error for error in found if error is not None]
    assert slow and slow[0].reason == "slow" and "0.6 s a window" in str(slow[0])
    early = Trial(20, 0.5, "", before_s=0.1)
    assert [early.passed(0.6, ()) for _ in range(9)] == [None] * 9


def test_where_the_bundle_before_was_hardly_faster_the_machine_is_to_blame() -> None:
    trial = Trial(20, 0.5, "bundle 2", before_s=0.4)
    assert [trial.passed(0.7, ()) for _ in range(20)] == [None] * 20
    unknown = Trial(20, 0.5, "bundle 2")
    assert [unknown.passed(5.0, ()) for _ in range(20)] == [None] * 20
    assert unknown.typical_s == 5.0
