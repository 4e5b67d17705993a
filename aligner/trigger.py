"""When to align. Pure: what is known in, why not now out."""

from __future__ import annotations

from dataclasses import dataclass

from infomae_stream.hub_config import Trigger

FIRST_RETRY_S = 30.0
LONGEST_RETRY_S = 3600.0


@dataclass(frozen=True)
class Situation:
    """`pairs`: of sites to learn from. `pairs_at_last_run`: at the start of the last run that came to a verdict.

    `settled_s`: since the number of pairs last changed. `since_run_s`: since the last run ended, None before the first.
    `failures`: runs that broke off since the last one that did not.
    """

    pairs: int
    pairs_at_last_run: int
    settled_s: float
    since_run_s: float | None
    failures: int
    train_labels: int
    validation_labels: int


def why_wait(now: Situation, t: Trigger) -> str:
    """Why no run starts now, for people; "" when one should."""
    if now.pairs < t.min_pairs:
        return f"{now.pairs} of {t.min_pairs} pairs"
    new = now.pairs - now.pairs_at_last_run
    if now.pairs_at_last_run and new < t.min_new_pairs:
        return f"{new} of {t.min_new_pairs} new pairs"
    if not now.train_labels:
        return "no labels to learn from"
    if not now.validation_labels:
        return "no labels of the validation sites"
    if now.settled_s < t.settle_s:
        return "pairs are still arriving"
    if now.since_run_s is not None:
        pause_s = t.min_interval_s
        if now.failures:
            pause_s = max(pause_s, min(FIRST_RETRY_S * 2 ** (now.failures - 1), LONGEST_RETRY_S))
        if now.since_run_s < pause_s:
            return f"next run in {pause_s - now.since_run_s:.0f} s" + (" (the last one failed)" if now.failures else "")
    return ""
