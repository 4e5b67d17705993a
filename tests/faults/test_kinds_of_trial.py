"""Kinds of trial that their rows draw seldom, once each; and the judge of the pairs, which must be able to say no."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from infomae_stream.clock import NS_PER_S
from infomae_stream.types import Chunk, ClockQuality, Pair, StreamId, StreamSpec
from tests.faults.faked_clock import FakedClock, missing_for_faked_clocks
from tests.faults.processes import Program
from tests.faults.rows import false_pairs, killed_aligner, killed_detector, partition
from tests.faults.trial import TrialResult

BEGAN_NS = 1_700_000_000 * NS_PER_S
needs_faketime = pytest.mark.skipif(bool(missing_for_faked_clocks()), reason=missing_for_faked_clocks())


@pytest.mark.slow
@pytest.mark.parametrize(
    "trial",
    [
        pytest.param(killed_detector.trial, id="detector"),
        pytest.param(partial(killed_aligner.killed, trains=False), id="matcher"),
        pytest.param(partial(partition.partitioned, linked=False), id="partition by proxy"),
    ],
)
def test_a_kind_of_trial_passes(tmp_path: Path, trial: Callable[[random.Random, Path], TrialResult]) -> None:
    result = trial(random.Random(5), tmp_path)
    assert result.passed and result.accepted > 15, result


def heard(node: str, stamped_s: float, true_s: float) -> Chunk:
    """Four seconds of samples that say their true time, stamped as from `stamped_s` on (after BEGAN_NS)."""
    stream = StreamId("s01", node, "imu")
    spec = StreamSpec(stream, "imu", false_pairs.RATE_HZ, ("time",), ("ms",), (1.0,), f"{node}_imu")
    said_N = np.arange(4 * false_pairs.RATE_HZ) * (1000 // false_pairs.RATE_HZ) + round(true_s * 1000)
    start_ns = BEGAN_NS + round(stamped_s * NS_PER_S)
    return Chunk(spec, "e1", 1, start_ns, said_N[None].astype(np.int32), ClockQuality("test"))


@pytest.mark.parametrize(("wrong_s", "lies"), [(0.0, 0), (2.4, 0), (2.6, 1), (-4.0, 1), (86_400.0, 1)])
def test_a_pair_is_false_when_its_windows_are_of_other_times(wrong_s: float, lies: int) -> None:
    chunks = [heard("phone", 100.0, 100.0), heard("watch", 100.0, 100.0 + wrong_s)]
    streams = (chunks[0].spec.id, chunks[1].spec.id)
    pair = Pair("s01", BEGAN_NS + 101 * NS_PER_S, streams, ("phone_imu", "watch_imu"), 1.0, 0, 1)
    assert len(false_pairs.false_pairs([pair], chunks, BEGAN_NS)) == lies


@needs_faketime
def test_a_faked_clock_is_wrong_and_its_time_source_knows_while_sleeping_goes_on(tmp_path: Path) -> None:
    clock = FakedClock(tmp_path / "clock")
    program = Program("node", tmp_path, ["node", "collect"])
    clock.give_to(program)
    clock.set("+4000")
    look = "import time; began = time.monotonic(); time.sleep(0.2); print(time.time(), time.monotonic() - began)"
    environment = {**program.environment, "LD_PRELOAD": str(program.preload[0])}
    before_s = time.time()
    shown = subprocess.run([sys.executable, "-c", look], env=environment, capture_output=True, text=True, check=True)
    now_s, slept_s = map(float, shown.stdout.split())
    assert now_s >= before_s + 4000 and slept_s >= 0.19
    tracking = subprocess.run(["chronyc"], env=environment, capture_output=True, text=True, check=True).stdout
    assert 3990 < float(tracking.split(",")[4]) < now_s - before_s + 60
