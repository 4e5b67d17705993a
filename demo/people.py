"""Who takes part, what each device plays, and when: the cast of the demonstration.

The story needs scarce pairs. Of the people that are learned from, only a few wear both devices at once; the others wear
the phone in every other recording and the watch in the rest. Labels exist for their phones alone. Validation people
decide whether a model is released, unseen people show what it is worth; neither is ever learned from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

LEARN, VALIDATE, UNSEEN = "learn", "validate", "unseen"
GROUPS: Final = (LEARN, VALIDATE, UNSEEN)
PHONE, WATCH = "phone", "watch"
DEVICES: Final = (PHONE, WATCH)
WRONG_CLOCK_MS: Final = 180.0


@dataclass(frozen=True)
class Person:
    """`pairs`: wears both devices at once. `wrong_clock`: the watch runs 180 ms ahead, and its time source says so."""

    name: str
    group: str
    pairs: bool = False
    wrong_clock: bool = False


@dataclass(frozen=True)
class Play:
    """What one device plays: the first `prompt` recordings one after the other, `pause_s` before each later one.

    `speed`: recorded seconds a second. `start_after_s`: rest before the first.
    """

    recordings: tuple[str, ...]
    prompt: int
    speed: float
    pause_s: float
    start_after_s: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """The demonstration's length: who plays, how much of it at once, and the pauses of the rest."""

    cast: tuple[Person, ...]
    recordings: int  # at most this many of each person
    prompt: int  # of those who wear both devices and of unseen people: at once
    speed: float
    unseen_speed: float
    pause_s: float
    unseen_pause_s: float
    stagger_s: float  # unseen people start one after the other, so that somebody is always moving
    min_pairs: int
    min_new_pairs: int
    settle_s: float
    min_gain_over_unaligned: float = 0.05
    min_gain_over_serving: float = 0.0
    train: str = ""  # a table [align.train] for the hub's file


CAST: Final = (
    Person("s01", LEARN),
    Person("s02", LEARN, pairs=True),
    Person("s03", LEARN),
    Person("s04", LEARN, pairs=True),
    Person("s05", LEARN),
    Person("s06", LEARN, pairs=True),
    Person("s07", LEARN),
    Person("s08", LEARN, pairs=True, wrong_clock=True),
    Person("s09", LEARN),
    *(Person(name, VALIDATE, pairs=True) for name in ("s10", "s11", "s12")),
    *(Person(name, UNSEEN, pairs=True) for name in ("s13", "s14", "s15", "s16", "s17")),
)
FULL: Final = Schedule(
    cast=CAST,
    recordings=99,
    prompt=5,
    speed=6.0,
    unseen_speed=3.0,
    pause_s=25.0,
    unseen_pause_s=46.0,
    stagger_s=2.0,
    min_pairs=250,
    min_new_pairs=150,
    settle_s=4.0,
    min_gain_over_serving=0.02,
)
# The short version for tests: one of each kind of person.
REDUCED: Final = Schedule(
    cast=tuple(p for p in CAST if p.name in ("s01", "s02", "s03", "s08", "s10", "s13")),
    recordings=8,
    prompt=4,
    speed=8.0,
    unseen_speed=4.0,
    pause_s=6.0,
    unseen_pause_s=15.0,
    stagger_s=0.0,
    min_pairs=90,  # of more than four recordings: a batch has to have negatives
    min_new_pairs=10,
    settle_s=2.0,
    # What so little training gives is of no interest here: it is to travel the whole way.
    min_gain_over_unaligned=-1.0,
    min_gain_over_serving=0.0,
    train="""
[align.train]
threads = 1
[align.train.encoder]
width = 16
embedding_width = 32
[align.train.pretrain]
epochs = 1
[align.train.align]
steps = 20
critic_warm_up = 5
""",
)


def node_name(person: Person, device: str) -> str:
    return f"{person.name}-{device}"


def has_wrong_clock(person: Person, device: str) -> bool:
    return person.wrong_clock and device == WATCH


def play_of(person: Person, device: str, names: Sequence[str], schedule: Schedule) -> Play:
    """What `device` of `person` plays of its recordings `names`, which are in the order of time."""
    names = tuple(names)[: schedule.recordings]
    if not person.pairs:  # never both devices at the same time
        names = names[0::2] if device == PHONE else names[1::2]
    unseen = [p.name for p in schedule.cast if p.group == UNSEEN]
    if person.group == UNSEEN:
        delay_s = unseen.index(person.name) * schedule.stagger_s
        return Play(names, schedule.prompt, schedule.unseen_speed, schedule.unseen_pause_s, delay_s)
    slow = person.group == LEARN and person.pairs and not person.wrong_clock
    return Play(names, schedule.prompt if slow else len(names), schedule.speed, schedule.pause_s if slow else 0.0)


def group_of(site: str, cast: Sequence[Person] = CAST) -> str:
    """The group of a person by name; "" for a stranger."""
    return next((p.group for p in cast if p.name == site), "")
