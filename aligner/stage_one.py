"""Stage 1 once, stage 2 often: pretrained encoders of an earlier run are used again while they are still good.

They are when they were trained with the same settings, saw no site that is held out now, and the windows at hand have
not doubled since. A run's record names the run whose encoders it used, so a run stays a function of its inputs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from aligner.config import TrainConfig
from aligner.model import Model
from aligner.progress import Progress
from aligner.run_files import STAGE_ONE_MODEL, STAGE_ONE_RECORD
from aligner.snapshot import Snapshot
from aligner.train import pretrain_all
from aligner.trainset import TrainSet
from infomae_stream.bundle import write_durably

TRAINED: Final = "trained"
LARGEST_GROWTH: Final = 2.0


def stage_one(
    train: TrainSet,
    snapshot: Snapshot,
    config: TrainConfig,
    run: int,
    out: Path,
    reuse: Path | None,
    progress: Progress,
) -> tuple[Model, str]:
    """The pretrained model, and "trained" or "reused from run N". What is trained here is kept in `out`."""
    if reuse is not None and (number := reusable(reuse, train, snapshot, config)) is not None:
        progress("stage 1 reused", 1, 1, {"run": float(number)})
        return Model.load(reuse / STAGE_ONE_MODEL), f"reused from run {number}"
    model = pretrain_all(train, config, progress)
    temporary = out / f".{STAGE_ONE_MODEL}.tmp"
    model.save(temporary)
    write_durably(out / STAGE_ONE_MODEL, temporary.read_bytes())
    temporary.unlink()
    record = {
        "run": run,
        "settings": _settings(config),
        "classes": list(train.classes),
        "train_sites": snapshot.train_sites,
        "windows": _windows(train),
    }
    write_durably(out / STAGE_ONE_RECORD, json.dumps(record).encode())
    return model, TRAINED


def reusable(folder: Path, train: TrainSet, snapshot: Snapshot, config: TrainConfig) -> int | None:
    """The number of the run that trained the encoders in `folder`, when they may be used for `train`; else None."""
    try:
        record = json.loads((folder / STAGE_ONE_RECORD).read_text(encoding="utf-8"))
        held_out = {*snapshot.validation_sites, *snapshot.test_sites}
        good = (
            record["settings"] == _settings(config)
            and record["classes"] == list(train.classes)
            and set(record["windows"]) == set(train.modalities)
            and not held_out & set(record["train_sites"])
            and all(n <= LARGEST_GROWTH * record["windows"][name] for name, n in _windows(train).items())
        )
        return int(record["run"]) if good and (folder / STAGE_ONE_MODEL).exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _settings(config: TrainConfig) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(config.model_dump_json(exclude={"threads"}))
    return settings


def _windows(train: TrainSet) -> dict[str, int]:
    return {name: len(windows) for name, windows in train.modalities.items()}
