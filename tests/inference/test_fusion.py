"""Chunks of several nodes, in any order, into instants."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from inference.fusion import FusionGatherer
from inference.instants import Instant
from infomae_stream.bundle import ModalityContract
from infomae_stream.node_config import NodeSettings
from infomae_stream.types import Chunk, ClockQuality, StreamId, StreamSpec
from tests.tiny_bundle import IMU_CHANNELS, IMU_UNITS, TinyBundle

S = 10**9
START_NS = 1_700_000_000 * S
NOW_NS = START_NS + 1000 * S
MODALITIES = {name: ModalityContract(**c) for name, c in TinyBundle().fields["modalities"].items()}


def chunk(node: str, second: float, *, seq: int | None = None, rate_hz: float = 100.0) -> Chunk:
    """One second of the node "phone" or "watch"."""
    spec = StreamSpec(StreamId("s01", node, "imu"), "imu", rate_hz, IMU_CHANNELS, IMU_UNITS, (100.0,) * 6,
                      f"{node}_imu")  # fmt: skip
    number = round(second * 10) if seq is None else seq
    samples = np.random.default_rng((len(node), number)).integers(-900, 900, size=(6, 100)).astype(np.int16)
    return Chunk(spec, "e", number, START_NS + round(second * S), samples, ClockQuality("test"))


def gatherer(**options: float) -> FusionGatherer:
    return FusionGatherer(MODALITIES, -1, **{"wait_s": 3.0, **options})


def run(made: FusionGatherer, chunks: list[Chunk], now_ns: int = NOW_NS) -> list[Instant]:
    found = []
    for one in chunks:
        made.push(one, now_ns)
        found += made.ready(now_ns)
    return [instant for instant in found if instant.start_ns >= START_NS]


def starts_s(instants: list[Instant]) -> list[float]:
    return [(i.start_ns - START_NS) / S for i in instants]


def nodes(instant: Instant) -> set[str]:
    return {window.spec.id.node for window in instant.windows}


def test_windows_of_two_nodes_make_one_instant() -> None:
    made = gatherer()
    instants = run(made, [chunk(node, i) for i in range(4) for node in ("phone", "watch")])
    assert starts_s(instants) == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert all(nodes(i) == {"phone", "watch"} for i in instants)
    assert instants[0].accepted_ns == NOW_NS
    assert made.take_dropped().total() == 0


def test_order_and_copies_change_nothing() -> None:
    chunks = [chunk(node, i) for i in range(6) for node in ("phone", "watch")]
    straight = gatherer()
    for one in chunks:
        straight.push(one, NOW_NS)
    want = straight.ready(NOW_NS)
    shuffled = [*chunks, *chunks]
    random.Random(3).shuffle(shuffled)
    made = gatherer()
    for one in shuffled:
        made.push(one, NOW_NS)
    got = made.ready(NOW_NS)
    assert [i.start_ns for i in got] == [i.start_ns for i in want] and len(want) > 8
    for a, b in zip(got, want, strict=True):
        assert nodes(a) == nodes(b)
        for one, other in itertools.product(a.windows, b.windows):
            if one.spec == other.spec:
                np.testing.assert_array_equal(one.x_CN, other.x_CN)
    run(made, chunks)
    assert made.take_dropped().total() == 0, "what came twice is neither late nor lost"


def test_a_node_that_is_a_little_behind_is_waited_for_and_one_far_behind_is_not() -> None:
    made = gatherer()
    ahead = run(made, [chunk("watch", 0), *(chunk("phone", i) for i in range(4))])
    assert starts_s(ahead) == []
    without = run(made, [chunk("phone", i) for i in range(4, 7)])
    assert starts_s(without)[0] == 0.0 and {len(i.windows) for i in without} <= {1, 2}
    assert nodes(without[-1]) == {"phone"}


def test_a_node_that_has_sent_nothing_yet_is_waited_for_as_long() -> None:
    made = FusionGatherer(MODALITIES, -1, wait_s=3.0, nodes=["phone", "watch"])
    assert run(made, [chunk("phone", i) for i in range(3)]) == []
    assert {len(i.windows) for i in run(made, [chunk("watch", i) for i in range(3)])} == {2}
    alone = FusionGatherer(MODALITIES, -1, wait_s=3.0, nodes=["phone", "watch"])
    assert starts_s(run(alone, [chunk("phone", i) for i in range(4)]))[:2] == [0.0, 0.5]


def test_what_comes_too_late_is_counted_and_what_follows_is_fused_again() -> None:
    made = gatherer()
    run(made, [chunk("phone", i) for i in range(10)])  # decided up to 8.0
    assert run(made, [chunk("watch", i) for i in range(8)]) == []
    assert made.take_dropped() == {"late": 16}
    both = run(made, [chunk(node, i) for i in range(8, 14) for node in ("watch", "phone") if (node, i) > ("phone", 9)])
    assert nodes(both[-1]) == {"phone", "watch"}


def test_a_node_whose_clock_is_ahead_does_not_silence_the_others() -> None:
    made = gatherer()
    now_ns = START_NS + 5 * S
    run(made, [chunk("watch", 3600 + i) for i in range(4)], now_ns)
    instants = run(made, [chunk("phone", i) for i in range(4)], now_ns)
    assert starts_s(instants) == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert made.take_dropped() == {"clock_ahead": 8}


def test_a_restart_decides_no_instant_twice() -> None:
    chunks = [chunk(node, i) for i in range(6) for node in ("phone", "watch")]
    first = gatherer()
    before = run(first, chunks[:8])
    again = FusionGatherer(MODALITIES, first.done_ns, wait_s=3.0)
    after = run(again, chunks)  # the broker gives all of it once more
    assert starts_s(before + after) == [i / 2 for i in range(9)]


def test_streams_that_no_encoder_reads_are_counted() -> None:
    made = gatherer()
    assert run(made, [chunk("sock", 0), chunk("phone", 0, rate_hz=50.0)]) == []
    assert made.take_dropped() == {"no_encoder": 2 + 4}


@pytest.mark.parametrize("node", ["phone", "watch"])
def test_memory_does_not_grow_with_time(node: str) -> None:
    made = gatherer()
    run(made, [chunk(node, i) for i in range(50)])
    assert sum(len(chunks) for chunks in made._chunks.values()) <= 4


@pytest.mark.parametrize(
    ("node", "text"),
    [
        ({}, r"sources\n.*one of them"),
        ({"sources": [{}], "fuse": {"nodes": ["a"]}}, r"sources\n.*one of them"),
        ({"fuse": {"nodes": ["a", "both"]}}, r"fuse\n.*cannot listen to itself"),
        ({"fuse": {"nodes": []}}, r"fuse\.nodes\n"),
    ],
)
def test_a_node_has_sensors_or_listens_to_other_nodes(node: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        NodeSettings.model_validate({"site": "s01", "node": "both", **node})
