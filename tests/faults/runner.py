"""Runs trials of many rows, some at once, each in a process that may die or hang without taking the round with it."""

from __future__ import annotations

import faulthandler
import multiprocessing
import queue
import random
import shutil
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Final

from tests.faults.trial import Row, TrialResult

TRIAL_TIMEOUT_S: Final = 600


@dataclass(frozen=True, slots=True)
class Task:
    """Trial `index` of a row (`target`: module:attribute); its folder is made, and removed again when it passed."""

    number: int
    target: str
    seed: int
    index: int
    folder: Path


def load_row(target: str) -> Row:
    """Raises ImportError or AttributeError when the row is not there."""
    module, _, attribute = target.partition(":")
    row: Row = getattr(import_module(module), attribute)
    return row


def available(numbers: Sequence[int], table: Mapping[int, str]) -> tuple[dict[int, Row], dict[int, str]]:
    """Rows that can run here, and why each of the others cannot."""
    rows, missing = {}, {}
    for number in numbers:
        try:
            row = load_row(table[number])
            why = row.missing()
        except KeyError:
            why = f"the matrix has no such row; it has {', '.join(map(str, table))}"
        except (ImportError, AttributeError) as e:
            why = f"not written: {e}"
        if why:
            missing[number] = why
        else:
            rows[number] = row
    return rows, missing


def shares(trials: int, rows: Mapping[int, Row]) -> dict[int, int]:
    """How many of `trials` each row gets: half of them evenly, half by what can be had for the same time.

    So cheap rows get many and dear ones enough. Every row gets one, also where that makes more than `trials`.
    """
    if not rows:
        return {}
    speed = {number: 1 / row.seconds for number, row in rows.items()}
    exact = {n: trials / 2 * (1 / len(rows) + speed[n] / sum(speed.values())) for n in rows}
    share = {n: max(1, int(value)) for n, value in exact.items()}
    for n in sorted(rows, key=lambda n: (int(exact[n]) - exact[n], n))[: max(trials - sum(share.values()), 0)]:
        share[n] += 1
    return share


def rng_of(number: int, seed: int, index: int) -> random.Random:
    """The same for the same three numbers, on every machine."""
    return random.Random(f"faults/{seed}/{number}/{index}")


def run_trial(task: Task) -> TrialResult:
    """In the worker's process. An exception is a failed trial and not the end of the round."""
    faulthandler.dump_traceback_later(TRIAL_TIMEOUT_S, exit=True)
    task.folder.mkdir(parents=True)
    began = time.monotonic()
    try:
        result = load_row(task.target).trial(rng_of(task.number, task.seed, task.index), task.folder)
        return replace(result, seconds=time.monotonic() - began)
    except Exception as e:  # noqa: BLE001 - the outermost loop of a trial
        (task.folder / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return TrialResult(0, 0, 0, failures=(f"{type(e).__name__}: {e}",))
    finally:
        faulthandler.cancel_dump_traceback_later()


class Slot(threading.Thread):
    """Takes tasks until there are none; runs them in one process after the other."""

    def __init__(self, tasks: queue.SimpleQueue[Task], done: Callable[[Task, TrialResult], None]) -> None:
        super().__init__(daemon=True)
        self._tasks, self._done = tasks, done
        self._pool = _one_process()

    def run(self) -> None:
        while True:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                break
            result = self._run(task)
            if result.passed:
                _remove(task.folder)
            self._done(task, result)
        self._pool.shutdown()

    def _run(self, task: Task) -> TrialResult:
        try:
            return self._pool.submit(run_trial, task).result()
        except BrokenProcessPool:
            self._pool.shutdown(wait=False)
            self._pool = _one_process()
            return TrialResult(0, 0, 0, failures=(f"the trial's process died, or took over {TRIAL_TIMEOUT_S} s",))


def run_round(tasks: Iterable[Task], jobs: int, done: Callable[[Task, TrialResult], None]) -> None:
    """Run every task, `jobs` at a time; `done` is called for each, one at a time."""
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    lock = threading.Lock()

    def finish(task: Task, result: TrialResult) -> None:
        with lock:
            done(task, result)

    slots = [Slot(waiting, finish) for _ in range(jobs)]
    for slot in slots:
        slot.start()
    while any(slot.is_alive() for slot in slots):  # a plain join would keep Ctrl-C waiting
        time.sleep(0.1)


def _one_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def _remove(folder: Path) -> None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        if line.split()[1].startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", line.split()[1]], check=False)
    shutil.rmtree(folder, ignore_errors=True)
