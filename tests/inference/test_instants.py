from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from inference.instants import Instant, InstantGatherer, Position
from infomae_stream.bundle import ModalityContract
from infomae_stream.types import Chunk, ClockQuality, StreamId, StreamSpec
from tests.tiny_bundle import IMU_CHANNELS, IMU_UNITS, TinyBundle

S = 10**9
START_NS = 1_700_000_000 * S
MODALITIES = {name: ModalityContract(**c) for name, c in TinyBundle().fields["modalities"].items()}


def spec_of(modality: str, **changed: Any) -> StreamSpec:
    fields: dict[str, Any] = {
        "id": StreamId("s01", "s01-n", modality),
        "kind": "imu",
        "rate_hz": 100.0,
        "channels": IMU_CHANNELS,
        "units": IMU_UNITS,
        "sensitivity": (100.0,) * 6,
        "modality": modality,
    }
    return StreamSpec(**{**fields, **changed})


def chunk(seq: int, modality: str, second: float, **changed: Any) -> Chunk:
    """One second of a stream."""
    samples = np.random.default_rng(seq).integers(-900, 900, size=(6, 100)).astype(np.int16)
    return Chunk(
        spec_of(modality, **changed),
        "e",
        seq,
        START_NS + round(second * S),
        samples,
        ClockQuality("test"),
        None,
        START_NS + seq,
    )


def run(gatherer: InstantGatherer, chunks: list[Chunk]) -> list[Instant]:
    found = []
    for one in chunks:
        gatherer.push(one)
        found += gatherer.ready()
    return found


def starts_s(instants: list[Instant]) -> list[float]:
    return [(i.start_ns - START_NS) / S for i in instants]


def test_windows_that_start_together_make_one_instant() -> None:
    gatherer = InstantGatherer(MODALITIES, Position())
    chunks = [chunk(2 * i + j + 1, m, i) for i in range(4) for j, m in enumerate(("phone_imu", "watch_imu"))]
    instants = run(gatherer, chunks)
    whole = [i for i in instants if i.start_ns >= START_NS]
    assert starts_s(whole) == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert all(len(i.windows) == 2 for i in whole)
    assert whole[0].accepted_ns == START_NS + 4


def test_a_silent_stream_is_not_waited_for_for_ever() -> None:
    gatherer = InstantGatherer(MODALITIES, Position(), wait_s=3.0)
    both = [chunk(1, "phone_imu", 0), chunk(2, "watch_imu", 0)]
    alone = [chunk(2 + i, "phone_imu", i) for i in range(1, 8)]
    instants = [i for i in run(gatherer, both + alone) if i.start_ns >= START_NS]
    assert starts_s(instants) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0]
    # The window at 0 began to be seen by the watch, but never finished: the phone decides alone.
    assert [len(i.windows) for i in instants] == [1] * 13
    gatherer.push(chunk(20, "watch_imu", 1))
    gatherer.push(chunk(21, "watch_imu", 2))
    assert gatherer.ready() == []
    assert gatherer.take_dropped()["late"] > 0


def test_an_instant_waits_for_a_stream_that_is_a_little_behind() -> None:
    gatherer = InstantGatherer(MODALITIES, Position())
    assert starts_s([i for i in run(gatherer, [chunk(1, "watch_imu", 0)]) if i.start_ns >= START_NS]) == []
    ahead = run(gatherer, [chunk(2, "phone_imu", 0), chunk(3, "phone_imu", 1), chunk(4, "phone_imu", 2)])
    assert [i for i in ahead if i.start_ns >= START_NS] == []
    caught_up = run(gatherer, [chunk(5, "watch_imu", 1), chunk(6, "watch_imu", 2)])
    whole = [i for i in caught_up if i.start_ns >= START_NS]
    assert starts_s(whole) == [0.0, 0.5, 1.0] and all(len(i.windows) == 2 for i in whole)


@pytest.mark.parametrize("kill_after", range(1, 12))
def test_a_restart_anywhere_decides_every_instant_once_and_from_the_same_samples(kill_after: int) -> None:
    chunks = [chunk(2 * i + j + 1, m, i) for i in range(6) for j, m in enumerate(("phone_imu", "watch_imu"))]
    never_killed = InstantGatherer(MODALITIES, Position())
    straight = run(never_killed, chunks)
    first = InstantGatherer(MODALITIES, Position())
    before = run(first, chunks[:kill_after])
    position = Position.load(first.position().dump())
    again = InstantGatherer(MODALITIES, position)
    after = run(again, [c for c in chunks if c.seq > again.seen_seq])
    assert starts_s(before + after) == starts_s(straight)
    for one, other in zip(before + after, straight, strict=True):
        assert len(one.windows) == len(other.windows)
        for a, b in zip(one.windows, other.windows, strict=True):
            assert (a.coverage, a.spec) == (b.coverage, b.spec)
            np.testing.assert_array_equal(a.x_CN, b.x_CN)
    assert first.take_dropped() + again.take_dropped() == never_killed.take_dropped()


@pytest.mark.parametrize("read_again", range(4))
def test_a_second_restart_before_all_is_read_again_forgets_nothing(read_again: int) -> None:
    chunks = [chunk(i + 1, "phone_imu", i) for i in range(6)]
    first = InstantGatherer(MODALITIES, Position())
    run(first, chunks[:4])
    second = InstantGatherer(MODALITIES, first.position())
    needed = [c for c in chunks[:4] if c.seq > second.seen_seq]
    run(second, needed[:read_again])
    assert second.position() == first.position()


def test_a_restart_reads_only_what_it_needs() -> None:
    gatherer = InstantGatherer(MODALITIES, Position())
    run(gatherer, [chunk(i + 1, "phone_imu", i) for i in range(100)])
    assert 100 - gatherer.position().replay_seq < 6


def test_streams_without_an_encoder_are_counted() -> None:
    gatherer = InstantGatherer(MODALITIES, Position())
    strangers = [
        chunk(1, "sock_imu", 0),
        chunk(2, "phone_imu", 0, rate_hz=50.0),
        chunk(3, "phone_imu", 0, units=("g",) * 6),
        chunk(4, "phone_imu", 0, channels=IMU_CHANNELS[::-1]),
    ]
    assert run(gatherer, strangers) == []
    assert gatherer.take_dropped() == {"no_encoder": 2 + 4 + 2 + 2}
    assert gatherer.take_dropped() == {}
    assert gatherer.position() == Position(replay_seq=5, seen_seq=4, done_ns=-1)


def test_a_clock_that_is_set_back_does_not_silence_the_node() -> None:
    gatherer = InstantGatherer(MODALITIES, Position())
    run(gatherer, [chunk(i + 1, "phone_imu", 3600 + i) for i in range(5)])
    after = run(gatherer, [chunk(i + 6, "phone_imu", i) for i in range(5)])
    assert starts_s([i for i in after if i.start_ns >= START_NS]) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]


def test_a_position_of_garbage_is_a_value_error() -> None:
    for content in (b"", b"[]", b"{}", b'{"replay_seq":"x","seen_seq":1,"done_ns":1}'):
        with pytest.raises(ValueError, match=r"position|invalid|JSON|Expecting"):
            Position.load(content)
