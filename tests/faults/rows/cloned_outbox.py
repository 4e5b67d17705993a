"""Row 19: an SD card is copied, and both cards go on collecting, each its own data under the same sequence numbers.

Every identity with two contents must be found and both contents hidden, with an alarm; nothing else may suffer.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Final

from storage.lake import Lake
from storage.verify import compare
from tests.faults.played import Size, random_recording
from tests.faults.processes import Program
from tests.faults.stage import Settings, Stage, look_into
from tests.faults.trial import Row, TrialResult

Line = tuple[str, int, int]  # epoch, seq, crc32


def trial(rng: random.Random, folder: Path) -> TrialResult:
    size = Size(nodes=2, seconds=200, speed=80)
    with Stage(rng, folder, size) as stage:
        stage.configure(Settings())
        original = stage.recordings[0]
        clone = _clone_of(stage, size)
        stage.start()
        copy_at = rng.randint(20, 120)
        stage.wait(lambda: stage.accepted() > copy_at, 60, "something has been accepted")
        stage.node.stop()
        shutil.copytree(folder / "state" / original.site, folder / "clone" / original.site)
        stage.programs.append(clone)
        outbox = folder / "clone" / original.site / original.node / "outbox.sqlite"

        def clone_is_empty() -> bool:
            waiting = look_into(outbox, original.stream)
            return waiting is not None and not waiting.records and "sources_finished" in clone.log_since_start()

        cards = [(stage.node, stage.drained), (clone, clone_is_empty)]
        rng.shuffle(cards)
        if rng.random() < 0.5:  # one after the other; otherwise they take the connection from each other all the time
            for program, is_empty in cards:
                program.start()
                stage.wait(is_empty, 90, f"the card of {program.name} has been emptied")
                program.stop()
        for program, _ in cards:
            program.start()
        stage.wait(lambda: all(is_empty() for _, is_empty in cards), 120, "both cards have been emptied")
        stage.fault_is_over()
        result = stage.settle()
        shutil.copy(folder / "truth-clone" / f"{original.node}.jsonl", folder / "truth" / "clone.jsonl")
        return _judged(stage, result)


def _clone_of(stage: Stage, size: Size) -> Program:
    """A second `node collect` for the first node, with a state, a truth log and samples of its own."""
    first = stage.recordings[0]
    folder = stage.folder / "other"
    folder.mkdir()
    random_recording(stage.rng.getrandbits(32), first.site, first.node, size).write(folder / f"{first.node}.wav")
    toml = (stage.folder / "node.toml").read_text()
    one_node = toml[: toml.index("[[nodes]]", toml.index("[[nodes]]") + 1)]
    changed = one_node.replace("state_dir = 'state'", "state_dir = '../clone'").replace("'truth'", "'../truth-clone'")
    (folder / "node.toml").write_text(changed)
    return Program("clone", stage.folder, ["node", "collect", "--config", "other/node.toml"])


def _judged(stage: Stage, result: TrialResult) -> TrialResult:
    """What settle found, but for the quarantine, which is right here, and must hold just what has two contents."""
    found = compare(stage.folder / "truth", Lake(stage.lake_path))
    truths = [_lines(stage.folder / "truth" / name) for name in (f"{stage.recordings[0].node}.jsonl", "clone.jsonl")]
    seqs = [{(epoch, seq): crc for epoch, seq, crc in lines} for lines in truths]
    doubtful = [key for key in seqs[0].keys() & seqs[1].keys() if seqs[0][key] != seqs[1][key]]
    innocent = stage.recordings[1].node
    wrong = [text for text in stage.failures if "settle" not in text]
    wrong += [text for text in result.failures if text.startswith(innocent)]
    if not doubtful:
        wrong.append("the two cards never used the same number: the trial tried nothing")
    if found.quarantined != 2 * len(doubtful):
        wrong.append(f"{found.quarantined} records quarantined, {2 * len(doubtful)} have two contents")
    if found.unexpected:
        wrong.append(f"{found.unexpected} records in the lake that no node accepted")
    if "identity_conflict" not in stage.ingests[0].log():
        wrong.append("ingest raised no alarm")
    return replace(
        result,
        accepted=found.accepted,
        lost=found.lost,
        logical_duplicates=found.logical_duplicates,
        failures=tuple(wrong),
    )


def _lines(path: Path) -> set[Line]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {(row["epoch"], row["seq"], row["crc32"]) for row in rows}


ROW: Final = Row(19, "cloned SD card", trial, 7.0)
