"""Row 10, pairs: the clocks of two nodes step, stand still and drift while the matcher works; no pair may be a lie.

Both nodes hear a publisher that says nothing but what time it truly is, and stamp it by their own clock as it arrives.
So every stored sample tells how wrong its stamp is, and two windows that make a pair may differ by no more than the
matcher allows. The nodes' time source is a stand-in of chronyc that knows what the clock of its node is off by.
"""

from __future__ import annotations

import random
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aligner.matcher import Matcher
from infomae_stream.clock import NS_PER_S
from infomae_stream.hub_config import MatcherSettings
from infomae_stream.node_config import MqttSettings
from infomae_stream.session import MqttSession
from infomae_stream.types import Chunk, Pair, StreamId
from storage import query
from storage.lake import Lake
from storage.verify import compare
from tests.brokers import Broker
from tests.faults.faked_clock import FakedClock
from tests.faults.processes import Program, Stuck, wait_for
from tests.faults.trial import TrialResult

DEVICES: Final = ("phone", "watch")
SECONDS: Final = 12.0  # in which the clocks are wrong now and then
RATE_HZ: Final = 50
BLOCK: Final = 5  # samples of one message
ARRIVAL_MS: Final = 900  # how uncertain a stamp taken on arrival is said to be: much, for busy machines
SETTINGS: Final = MatcherSettings(
    modalities=[f"{device}_imu" for device in DEVICES], max_clock_uncertainty_s=2.0, max_clock_offset_s=0.5
)
ALLOWED_S: Final = SETTINGS.max_clock_uncertainty_s + SETTINGS.max_clock_offset_s
# Into times at which the other node has samples, or will have some when its clock does the same.
CLOCKS: Final = ("+4", "+5", "+7", "+70", "-70", "+1d", "freeze", "+0 x1.0002")


def trial(rng: random.Random, folder: Path) -> TrialResult:
    with ExitStack() as stack:
        broker = Broker("mosquitto", folder)
        stack.callback(broker.kill)
        broker.start()
        clocks = [FakedClock(folder / device) for device in DEVICES]
        nodes = [_node(folder, device, broker.port) for device in DEVICES]
        programs = [*nodes, _ingest(folder, broker.port)]
        for node, clock in zip(nodes, clocks, strict=True):
            clock.give_to(node)
        for program in programs:
            stack.callback(program.kill)
            program.start()
        lake = Lake(folder / "lake")
        matcher = Matcher(SETTINGS, folder / "matcher.json")
        with Publisher(broker.port) as publisher:
            wait_for(lambda: all(_accepted(folder, device) for device in DEVICES), 60, "both nodes have samples")
            _match_for(2 * SETTINGS.window_s, matcher, lake)
            until = time.monotonic() + SECONDS
            while time.monotonic() < until:
                rng.choice(clocks).set(rng.choice(CLOCKS))
                _match_for(rng.uniform(1, 3.5), matcher, lake)
                if rng.random() < 0.7:
                    rng.choice(clocks).set("+0")
                    _match_for(rng.uniform(0, 2.5), matcher, lake)
        over_at = time.monotonic()
        failures = _finish(folder, programs, list(zip(nodes, clocks, strict=True)), lake)
        matcher.update(lake)
        result = _judge(folder, lake, publisher.began_ns, failures)
        return replace(
            result,
            peak_memory_bytes=max(p.peak_memory_bytes for p in programs),
            recovery_s=time.monotonic() - over_at,
        )


def _node(folder: Path, device: str, port: int) -> Program:
    (folder / f"{device}.toml").write_text(
        f"state_dir = 'state'\ntruth_log_dir = 'truth'\n[detect]\nenabled = false\n[mqtt]\nport = {port}\n"
        "[metrics]\ncollect_port = 0\ndetect_port = 0\n[outbox]\ncommit_interval_s = 0.1\nkeep_s = 0\n"
        "reserve_bytes = 0\n[uplink]\nmax_bytes_per_s = 0\nstart_jitter_s = 0.0\nresend_after_s = 0.5\n"
        f"[[nodes]]\nsite = 's01'\nnode = '{device}'\nclock = {{ source = 'chrony' }}\n"
        f"[[nodes.sources]]\ntype = 'mqtt'\nkind = 'imu'\nmodality = '{device}_imu'\nrate_hz = {RATE_HZ}\n"
        "channels = ['time']\nunits = ['ms']\npayload = { form = 'raw', dtype = 'int32' }\n"
        f"topics = {{ 'truth' = 'imu' }}\narrival_uncertainty_ms = {ARRIVAL_MS}\nbroker = {{ port = {port} }}\n",
        encoding="utf-8",
    )
    return Program(device, folder, ["node", "collect", "--config", f"{device}.toml"])


def _ingest(folder: Path, port: int) -> Program:
    (folder / "hub.toml").write_text(
        f"[mqtt]\nport = {port}\n[metrics]\ningest_port = 0\n[ingest]\ncommit_interval_s = 0.1\n"
        "[matcher]\nmodalities = ['phone_imu', 'watch_imu']\n[align]\nclasses = ['walking', 'standing']\n",
        encoding="utf-8",
    )
    return Program("ingest", folder, ["hub", "ingest", "--config", "hub.toml"])


class Publisher(threading.Thread):
    """Says ten times a second what time it is: of each sample how many ms after `began_ns` it was taken."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._session = MqttSession(MqttSettings(port=port), "publisher")
        self._end = threading.Event()
        self.began_ns = time.time_ns()

    def run(self) -> None:
        first = 0
        while not self._end.wait(max(self._due_s(first + BLOCK - 1) - time.time(), 0)):
            samples_N = np.arange(first, first + BLOCK) * (1000 // RATE_HZ)
            # Late blocks are left out: what is said must be true when it is said.
            if time.time() - self._due_s(first + BLOCK - 1) < 0.3:
                self._session.publish("truth", samples_N.astype("<i4").tobytes())
            first += BLOCK

    def _due_s(self, sample: int) -> float:
        return self.began_ns / NS_PER_S + sample / RATE_HZ

    def __enter__(self) -> Publisher:
        self._session.start()
        wait_for(lambda: self._session.connected, 60, "the publisher is connected")
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._end.set()
        self.join()
        self._session.close()


def _match_for(seconds: float, matcher: Matcher, lake: Lake) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        matcher.update(lake)
        time.sleep(0.2)


def _accepted(folder: Path, device: str) -> int:
    path = folder / "truth" / f"{device}.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _finish(folder: Path, programs: list[Program], nodes: list[tuple[Program, FakedClock]], lake: Lake) -> list[str]:
    """The nodes store what was in the making, and come up once more to send it; then everything ends."""
    try:
        ended = [(node.name, node.stop()) for node, _ in nodes]
        for node, clock in nodes:
            clock.take_from(node)
            node.start()
        wait_for(lambda: compare(folder / "truth", lake).lost == 0, 180, "what was accepted has arrived", every_s=0.3)
        wait_for(lambda: all(p.up for p in programs), 60, "the programs run")
        ended += [(program.name, program.stop()) for program in programs]
    except Stuck as e:
        return [str(e)]
    wrong = [f"{name} ended with {code} after SIGTERM" for name, code in ended if code]
    return wrong + [f"a traceback in {p.log_path}" for p in programs if "Traceback" in p.log()]


def _judge(folder: Path, lake: Lake, began_ns: int, failures: list[str]) -> TrialResult:
    found = compare(folder / "truth", lake)
    pairs = query.read_pairs(lake, paired_only=True)
    lies = false_pairs(pairs, query.read_chunks(lake), began_ns)
    wrong = [f"{len(lies)} of {len(pairs)} pairs are false: {'; '.join(lies[:3])}"] if lies else []
    wrong += [] if pairs else ["there is no pair: the trial tried nothing"]
    wrong += list(found.examples if not found.passed else ())
    return TrialResult(
        accepted=found.accepted,
        lost=found.lost,
        logical_duplicates=found.logical_duplicates,
        physical_duplicates=found.physical_duplicates,
        failures=(*failures, *wrong),
    )


def false_pairs(pairs: list[Pair], chunks: list[Chunk], began_ns: int) -> list[str]:
    """Pairs of windows whose true times are farther apart than the matcher allows, in words."""
    stamps: dict[StreamId, NDArray[np.int64]] = {}
    off_s: dict[StreamId, NDArray[np.float64]] = {}  # the true time minus the stamp, of each sample
    for stream in {c.spec.id for c in chunks}:
        here = [c for c in chunks if c.spec.id == stream]
        stamps[stream] = np.concatenate([c.sample_times_ns() for c in here])
        true_N = np.concatenate([c.samples_CN[0] for c in here]).astype(np.int64) * 1_000_000 + began_ns
        off_s[stream] = (true_N - stamps[stream]) / NS_PER_S
    window_ns = round(SETTINGS.window_s * NS_PER_S)
    found = []
    for pair in pairs:
        a, b = (off_s[s][(stamps[s] >= pair.start_ns) & (stamps[s] < pair.start_ns + window_ns)] for s in pair.streams)
        # A late message or two are no other time.
        apart_s = max(np.quantile(np.abs(a - np.median(b)), 0.9), np.quantile(np.abs(b - np.median(a)), 0.9))
        if apart_s > ALLOWED_S:
            found.append(
                f"at {pair.start_ns}: {apart_s:.1f} s apart, said to be within {pair.uncertainty_ns / 1e9:.1f}"
            )
    return found
