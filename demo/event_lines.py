"""Which events of the processes' logs a person sees, and in what words."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

Event = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """`tone` is "good", "bad", "news" or ""."""

    clock: str
    text: str
    tone: str = ""


_NOT_SHOWN: Final = ("ts", "level", "logger", "event", "process", "traceback")


def _plain(event: Event) -> str:
    fields = " ".join(f"{k}={v}" for k, v in event.items() if k not in _NOT_SHOWN)
    return f"{event['process']}: {event['event']} {fields}".strip()


def _verdict(event: Event) -> str:
    mark = "passed" if event["passed"] else "FAILED"
    return f"run {event['run']} gate {event['gate'].replace('_', ' ')} {mark}: {event['reason']}"


def _evaluated(event: Event) -> str:
    low, high = event["macro_f1_interval"]
    return (
        f"run {event['run']}: macro-F1 {event['macro_f1_before']:.2f} before, {event['macro_f1_after']:.2f} after "
        f"[{low:.2f}, {high:.2f}], {event['pairs']} pairs"
    )


def _not_promoted(event: Event) -> str:
    return f"run {event['run']} not released: {'; '.join(event['reasons'])}"


def _observed(event: Event) -> str:
    if event["state"] != "refused":  # what serves where is a column of its own
        return ""
    return f"{event['node']} refused v{event['version']} ({event.get('reason')})"


# event name -> (tone, words with the event's fields, or a function that makes them; "" hides it)
WORDS: Final[dict[str, tuple[str, str | Callable[[Event], str]]]] = {
    "child_started": ("", "{process} {child} runs, pid {pid}"),
    "child_ended": ("bad", "{process} {child} ended with {exit}, again in {again_in_s} s"),
    "broker_started": ("", "broker listens on {host}:{port}"),
    "alignment_started": ("news", "run {run} begins: {pairs} pairs"),
    "alignment_evaluated": ("good", _evaluated),
    "alignment_failed": ("bad", "run {run} failed: {error}"),
    "gate_verdict": ("", _verdict),
    "bundle_released": ("good", "bundle v{version} released, {sha256:.12}"),
    "candidate_not_promoted": ("news", _not_promoted),
    "bundle_install_begins": ("", "{process}: fetching bundle v{version}"),
    "bundle_serves": ("good", "{process}: v{version} verified, serves"),
    "bundle_refused": ("bad", "{process}: bundle v{version} refused ({reason})"),
    "bundle_observed": ("", _observed),
    "sources_finished": ("", "{process}: all recordings played"),
    "outbox_drained": ("", "{process}: all accepted is in the lake"),
}
HIDDEN: Final = ("training_progress", "matcher_tick", "no_bundle", "output")


def line_of(event: Event) -> Line | None:
    """The line for people, or None for an event of no interest to them. Warnings and errors are always shown."""
    if event["event"] in HIDDEN:
        return None
    at = time.strftime("%M:%S", time.localtime(event["ts"])) if "ts" in event else " " * 5
    loud = event.get("level") in ("warning", "error")
    tone, words = WORDS.get(event["event"], ("bad" if loud else "", _plain if loud else ""))
    try:
        text = words(event) if callable(words) else words.format(**event)
    except (KeyError, IndexError, TypeError, ValueError):  # another version of the process tells other fields
        text = _plain(event)
    return Line(at, text, tone) if text else None
