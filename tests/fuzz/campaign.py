"""One run of fuzzing: broken inputs for a target, each held to three rules.

Nothing bad is accepted (and nothing is read as anything else than it says), nothing raises but the reader's own
refusals, and memory stays in proportion to the input.
"""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from dataclasses import dataclass, field
from typing import Any

from tests.fuzz.targets import Target

# Python's smallest list takes 56 bytes and its place in another 8; readers refuse inputs that hold very many.
MEMORY_FACTOR = 16


@dataclass
class Tally:
    """bad: inputs that the judge refuses; harmless: broken ones that still say something valid, and were read so."""

    bad: int = 0
    accepted: int = 0
    crashed: int = 0
    misread: int = 0
    over_strict: int = 0
    harmless: int = 0
    peak_bytes: int = 0
    over_memory: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.accepted or self.crashed or self.misread or self.over_memory)


def run(target: Target, rng: random.Random, bad: int) -> Tally:
    """Until `bad` inputs that the judge refuses have been tried."""
    tally = Tally()
    tracemalloc.start()
    try:
        while tally.bad < bad:
            breaker = rng.choice(target.breakers)
            try_input(target, breaker(rng, target.valid(rng)), tally)
    finally:
        tracemalloc.stop()
    return tally


def try_input(target: Target, payload: bytes, tally: Tally) -> None:
    """Hold one input to the rules."""
    expected = target.judge(payload)
    tally.bad += expected is None
    measured = tracemalloc.is_tracing()
    if measured:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
    said: Any = None
    verdict = ""
    try:
        said = target.says(payload)
    except target.refusals as e:
        del e  # its traceback holds the frames
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # noqa: BLE001 - whatever it is, it is a find; a panic of Rust is no Exception
        verdict = f"crashed: {type(e).__name__}: {str(e)[:80]}"
        tally.crashed += 1
    if measured:
        used = tracemalloc.get_traced_memory()[1] - before
        tally.peak_bytes = max(tally.peak_bytes, used)
        if used > MEMORY_FACTOR * len(payload) + target.memory_floor:
            tally.over_memory += 1
            verdict = verdict or f"{used} bytes of memory for {len(payload)}"
    if said is not None and expected is None:
        tally.accepted += 1
        verdict = "accepted"
    elif said is not None and not same(said, expected):
        tally.misread += 1
        verdict = "misread"
    elif said is None and expected is not None and not verdict:
        tally.over_strict += 1
        note(tally, target, payload, "refused although valid")
    else:
        tally.harmless += expected is not None
    if verdict:
        note(tally, target, payload, verdict)


def note(tally: Tally, target: Target, payload: bytes, verdict: str) -> None:
    if len(tally.examples) < 10:
        digest = hashlib.sha256(payload).hexdigest()[:12]
        tally.examples.append(f"{target.name} {digest} {verdict}: {payload[:400]!r}")


def same(said: Any, expected: Any) -> bool:
    """Equal in value and in type: True is not 1."""
    if isinstance(said, dict) and isinstance(expected, dict):
        return said.keys() == expected.keys() and all(same(said[name], expected[name]) for name in said)
    return type(said) is type(expected) and repr(said) == repr(expected)
