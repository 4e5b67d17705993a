"""Row 1, matcher and aligner: kill -9 of `hub align` at random, at the failpoints of its commits, in training.

What it matches is put into the lake meanwhile, in any order and late. Which windows make pairs is told by arithmetic
from the seconds that there are; every pair must be in the lake, and no judgement twice.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from infomae_stream.bundle import generate_keys, save_keys
from infomae_stream.clock import NS_PER_S
from infomae_stream.types import Chunk
from storage import query
from storage.duck import open_tables
from storage.lake import Lake
from storage.learning_tables import append_labels
from storage.rows import LabelInterval
from tests.brokers import Broker
from tests.faults.processes import Program, Stuck, wait_for
from tests.faults.trial import TrialResult
from tests.recordings import T0, recording

SITES: Final = ("s01", "s02", "s06", "s07")
DEVICES: Final = ("phone", "watch")
SECONDS: Final = 48  # each class for 4 s in turn
CLASSES: Final = ("rest", "walk", "run")
RHYTHMS_HZ: Final = (0.0, 1.6, 4.5)
PLACES: Final = (
    "segment.before_sync",
    "segment.before_rename",
    "segment.after_rename",
    "lake.before_commit",
    "lake.before_folder_sync",
    "lake.after_commit",
)
SETTLE_S: Final = 180.0
Key = tuple[str, int]  # a site, and a window's start in halves of a second after T0


def trial(rng: random.Random, folder: Path) -> TrialResult:
    return killed(rng, folder, trains=rng.random() < 0.5)


def killed(rng: random.Random, folder: Path, *, trains: bool) -> TrialResult:
    broker = Broker("mosquitto", folder)
    align = Program("align", folder, ["hub", "align", "--config", "hub.toml"])
    _configure(folder, broker.port, min_pairs=60 if trains else 10**6)
    lake = Lake(folder / "lake")
    if trains:
        append_labels(lake, _labels())
    there = {(site, device): _seconds(rng) for site in SITES for device in DEVICES}
    failures: list[str] = []
    try:
        broker.start()
        over_at = _match(rng, align, lake, there)
        wait_for(lambda: _keep_up(align) and _pairs(lake) == _expected(there), SETTLE_S, "every pair is found")
        recovery_s = time.monotonic() - over_at
        if trains:
            failures += _kill_in_training(rng, align, folder)
        if (code := align.stop()) != 0:
            failures.append(f"align ended with {code} after SIGTERM")
    except Stuck as e:
        recovery_s = 0.0
        failures.append(str(e))
    finally:
        align.weigh()
        align.kill()
        broker.kill()
    return _judge(lake, there, align, failures, recovery_s)


def _configure(folder: Path, port: int, min_pairs: int) -> None:
    save_keys(folder / "keys", generate_keys()[0])
    (folder / "hub.toml").write_text(
        f"[mqtt]\nport = {port}\n[metrics]\nalign_port = 0\n"
        '[matcher]\nmodalities = ["phone_imu", "watch_imu"]\ninterval_s = 0.2\n'
        f'[align]\nclasses = {json.dumps(CLASSES)}\nvalidation_sites = ["s06"]\ntest_sites = ["s07"]\n'
        f"[align.trigger]\nmin_pairs = {min_pairs}\nmin_new_pairs = 1000\nsettle_s = 0.5\n"
        "[align.train]\nthreads = 1\npretrain.epochs = 1\nfront_end.max_hz = 10.0\n"
        "encoder = { width = 16, depths = [1, 1], heads = 2 }\n"
        "align = { steps = 20, critic_warm_up = 5, shared_width = 8, private_width = 8, view_copies = 2 }\n"
        '[gates]\nmin_gain_over_unaligned = -1.0\n[release]\nsigning_key = "keys/release.pem"\nport = 0\n',
        encoding="utf-8",
    )


# -- what there is to find ---------------------------------------------------------------------------------------------


def _seconds(rng: random.Random) -> set[int]:
    """Those that arrive of one recording: some are lost, most come."""
    return {s for s in range(SECONDS) if rng.random() < 0.96 or s == SECONDS - 1}


def _rhythm_hz(second: int) -> float:
    return RHYTHMS_HZ[second // 4 % 3]


def _labels() -> list[LabelInterval]:
    return [
        LabelInterval(
            site,
            f"{site}-{device}",
            T0 + second * NS_PER_S,
            T0 + (second + 1) * NS_PER_S,
            CLASSES[second // 4 % 3],
            "train" if site in SITES[:2] and device == "phone" else "evaluate",
        )
        for site in SITES
        for device in DEVICES
        for second in range(SECONDS)
    ]


def _chunks(rng: random.Random, there: dict[tuple[str, str], set[int]]) -> Iterator[list[Chunk]]:
    """All of them in batches: by and large in order, but each now and then much later."""
    found = []
    for (site, device), seconds in there.items():
        for chunk in recording(site, device, 0, SECONDS, rhythm_hz=_rhythm_hz):
            if chunk.seq in seconds:
                late = rng.uniform(10, 40) if rng.random() < 0.1 else 0
                found.append((chunk.seq + rng.uniform(0, 3) + late, chunk))
    ordered = [chunk for _, chunk in sorted(found, key=lambda item: item[0])]
    while ordered:
        n = rng.randint(10, 60)
        yield ordered[:n]
        del ordered[:n]


def _expected(there: dict[tuple[str, str], set[int]]) -> Counter[Key]:
    """Windows of 2 s, every half second, all of whose seconds came from both devices: anything less is refused."""
    return Counter(
        (site, start)
        for site in SITES
        for start in range(2 * (SECONDS - 2) + 1)
        if all({half // 2 for half in range(start, start + 4)} <= there[site, device] for device in DEVICES)
    )


def _pairs(lake: Lake) -> Counter[Key]:
    half_ns = NS_PER_S // 2
    return Counter((p.site, (p.start_ns - T0) // half_ns) for p in query.read_pairs(lake, paired_only=True))


# -- killing -----------------------------------------------------------------------------------------------------------


def _match(rng: random.Random, align: Program, lake: Lake, there: dict[tuple[str, str], set[int]]) -> float:
    """Put in what there is while align is killed; when the last kill was."""
    batches = list(_chunks(rng, there))
    places = rng.sample(PLACES, 3)
    align.start(f"{places.pop()}=kill@{rng.randint(1, 2)}")
    kill_at = rng.randrange(len(batches))
    for i, batch in enumerate(batches):
        lake.append_chunks(batch, time.time_ns())
        _go_on(align, places, rng.uniform(0, 0.6))
        if i == kill_at:
            align.kill()
            align.start(f"{places.pop()}=kill@1" if places else "")
    return time.monotonic()


def _go_on(align: Program, places: list[str], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        _keep_up(align, places)
        time.sleep(0.03)


def _keep_up(align: Program, places: list[str] | None = None) -> bool:
    """Start it again when it has died at a failpoint. Raises Stuck when it has ended otherwise."""
    if not align.running:
        hits = len(align.hits)
        code = align.exit_code()
        if len(align.hits) == hits:
            raise Stuck(f"align ended by itself with {code}")
        align.start(f"{places.pop()}=kill@1" if places else "")
    return True


def _kill_in_training(rng: random.Random, align: Program, folder: Path) -> list[str]:
    """At a random moment of a run: its process goes, too, nothing of it is released, and the next start runs anew."""
    wait_for(lambda: _keep_up(align) and _events(align, "alignment_started"), SETTLE_S, "a run")
    pid = int(_events(align, "alignment_started")[-1]["pid"])
    time.sleep(rng.uniform(0, 6))
    align.kill()
    wait_for(lambda: not _alive(pid), 60, "the orphaned training process has ended")
    bundles = list((folder / "aligner" / "bundles").glob("*"))
    align.start()
    wait_for(lambda: _keep_up(align) and len(_events(align, "alignment_started")) == 2, SETTLE_S, "another run")
    numbers = [event["run"] for event in _events(align, "alignment_started")]
    wrong = [] if len(set(numbers)) == 2 else [f"a run's folder was used again: {numbers}"]
    return wrong + ([f"a killed run has released {bundles}"] if bundles else [])


def _events(align: Program, name: str) -> list[dict[str, Any]]:
    found = []
    for line in align.log().splitlines():
        with suppress(ValueError):
            found.append(json.loads(line))
    return [line for line in found if isinstance(line, dict) and line.get("event") == name]


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


# -- judging -----------------------------------------------------------------------------------------------------------


def _judge(
    lake: Lake, there: dict[tuple[str, str], set[int]], align: Program, failures: list[str], recovery_s: float
) -> TrialResult:
    expected, found = _expected(there), _pairs(lake)
    twice = (found - expected) & expected
    if false := found - expected - twice:
        failures.append(f"pairs of windows that are not whole: {list(false)[:3]}")
    if "Traceback" in align.log():
        failures.append(f"a traceback in {align.log_path}")
    return TrialResult(
        accepted=expected.total(),
        lost=(expected - found).total(),
        logical_duplicates=twice.total(),
        physical_duplicates=_judged_twice(lake),
        peak_memory_bytes=align.peak_memory_bytes,
        recovery_s=recovery_s,
        failures=tuple(failures),
        hits=tuple(f"align {hit}" for hit in align.hits),
    )


def _judged_twice(lake: Lake) -> int:
    """Rows that say of a candidate what an earlier row had said."""
    said = "site, start_ns, streams, modalities, coverage, lag_ns, uncertainty_ns, reason"
    with open_tables(lake, {"pairs": None}) as db:
        sql = f"SELECT count(*) - (SELECT count(*) FROM (SELECT DISTINCT {said} FROM pairs)) FROM pairs"
        return sum(n for (n,) in db.execute(sql).fetchall())
