"""One training run from a snapshot to a judged candidate in a folder. No broker, no loop, no clock but for durations.

The folder holds: snapshot.json; stage_1.pt (when stage 1 was trained here); model.pt; encoder_<modality>.onnx, its
int8 twin encoder_<modality>.int8.onnx and head.onnx; golden.npz; candidate.json, written last: a folder without it is a
run that did not end.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from aligner.evaluation import macro_f1
from aligner.export import encoder_file, export_int8, export_model, int8_file
from aligner.gates import Candidate, judge_all
from aligner.model import Model
from aligner.progress import Progress
from aligner.run_files import CANDIDATE, GOLDEN, MODEL, SNAPSHOT
from aligner.snapshot import Snapshot, contract, load
from aligner.stage_one import stage_one
from aligner.status import finite
from aligner.subsets import score_subsets
from aligner.train import AlignmentReport, Evaluation, align_and_fit, evaluate
from aligner.training_settings import train_config
from aligner.trainset import TrainSet
from infomae_stream.bundle import write_durably
from infomae_stream.errors import DataError, TrainingError
from infomae_stream.golden import ALL, Golden
from infomae_stream.hub_config import GateSettings
from storage import query
from storage.lake import Lake

GOLDEN_WINDOWS: Final = 16


@dataclass(frozen=True)
class RunInputs:
    """`run`: its number. `reuse`: the folder of an earlier run whose stage 1 may serve again; `serving`: of the run
    whose model serves now, to be beaten."""

    run: int
    out: Path
    gates: GateSettings
    reuse: Path | None = None
    serving: Path | None = None


def run(snapshot: Snapshot, lake: Lake, inputs: RunInputs, progress: Progress) -> dict[str, Any]:
    """Train, export and judge; return what stands in candidate.json. The same inputs give the same model.

    Raises DataError, TrainingError or LakeError; the folder then has no candidate.json.
    """
    began = time.monotonic()
    out = inputs.out
    out.mkdir(parents=True, exist_ok=True)
    snapshot.write(out / SNAPSHOT)
    config = train_config(snapshot.train, snapshot.window_s, snapshot.seed)
    progress("read the snapshot", 0, 1, {})
    data = load(snapshot, lake)
    progress("read the snapshot", 1, 1, {})
    pretrained, origin = stage_one(data.train, snapshot, config, inputs.run, out, inputs.reuse, progress)
    model, report = align_and_fit(pretrained, data.train, config, progress)
    model.save(out / MODEL)
    graphs = export_model(model, out, seed=config.seed)
    int8 = export_int8(graphs)
    progress("evaluate", 0, 2, {})
    on_validation = evaluate(model, data.train, data.validation, data.oracle_labels, seed=config.seed)
    progress("evaluate", 1, 2, {})
    on_test = (
        evaluate(model, data.train, data.test, data.oracle_labels, seed=config.seed) if snapshot.test_sites else None
    )
    progress("evaluate", 2, 2, {})
    golden = golden_vectors(model, data.validation)
    (out / GOLDEN).write_bytes(golden.dump())
    serving = serving_macro_f1(inputs.serving, on_validation, data.validation) if inputs.serving else None
    judged = Candidate(model, report, graphs, data.validation, on_validation, serving, int8)
    verdicts = judge_all(judged, inputs.gates)
    left_out = {part for verdict in verdicts for part in verdict.leaves_out}
    files = [*(path.name for path in (*graphs.values(), *int8.values())), GOLDEN, MODEL]
    candidate: dict[str, Any] = {
        "run": inputs.run,
        "snapshot": snapshot.model_dump(mode="json"),
        "stage_1": origin,
        "classes": list(model.classes),
        "modalities": _contracts(model, snapshot, lake, with_int8="int8" not in left_out),
        "alignment": described(report, on_test or on_validation),
        "validation": {**described(report, on_validation), "subsets": score_subsets(model, data.validation)},
        "losses": report.losses,
        "monitors": {**asdict(report.monitors), "warnings": report.monitors.warnings},
        "verdicts": [asdict(v) for v in verdicts],
        "files": {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in files},
        "seconds": round(time.monotonic() - began, 2),
    }
    text = json.dumps(finite(candidate), indent=1)
    write_durably(out / CANDIDATE, text.encode())
    told: dict[str, Any] = json.loads(text)
    return told


def described(report: AlignmentReport, evaluation: Evaluation) -> dict[str, Any]:
    """The block `alignment` of a summary: what was aligned, for how long, and what it came to on held-out people."""
    multimodal = evaluation.multimodal
    return {
        "objective": report.objective,
        "pairs": report.pairs,
        "unpaired_windows": report.unpaired_windows,
        "seconds": round(report.seconds, 2),
        "source": evaluation.source,
        "target": evaluation.target,
        "macro_f1_before": evaluation.before.macro_f1,
        "macro_f1_after": evaluation.after.macro_f1,
        "macro_f1_interval": list(evaluation.after.interval),
        "baselines": {
            name: evaluation.baselines[name].macro_f1 if name in evaluation.baselines else None
            for name in ("pseudolabel", "ridge_map", "own_labels")
        },
        "unimodal_macro_f1": evaluation.unimodal.macro_f1,
        "multimodal_macro_f1": multimodal.macro_f1 if multimodal else None,
        "per_class_f1": evaluation.after.per_class,
        "held_out_people": list(evaluation.people),
        "held_out_windows": evaluation.after.windows,
    }


def serving_macro_f1(folder: Path, evaluation: Evaluation, validation: TrainSet) -> float:
    """The serving model's macro-F1 on the very windows that the candidate was judged on.

    0 when it cannot read the target modality or tells other classes apart: any working model is better than that.
    Raises TrainingError when its file is gone: without it nobody can say what is better.
    """
    path = folder / MODEL
    if not path.exists():
        raise TrainingError("the serving model's file is missing", where=str(path), fix="restore the run's folder")
    model, windows = Model.load(path), validation.modalities[evaluation.target]
    if evaluation.target not in model.front_ends or model.classes != validation.classes:
        return 0.0
    known = windows.label_B >= 0
    predicted = model.scores({evaluation.target: windows.x_BCN[known]}).argmax(axis=1).astype(np.int64)
    return macro_f1(windows.label_B[known], predicted, len(model.classes))


def golden_vectors(model: Model, validation: TrainSet) -> Golden:
    """A few validation windows and their scores for each modality alone and for all together.

    With two modalities that have pairs the windows of a row are one instant. Raises DataError without windows.
    """
    names = tuple(model.front_ends)
    missing = [name for name in names if name not in validation.modalities]
    if missing:
        raise DataError(f"no validation windows of {', '.join(missing)}", where="golden vectors")
    rows: dict[str, Any] = {}
    index_P2 = validation.pairs.get((names[0], names[1])) if len(names) == 2 else None
    if index_P2 is not None and len(index_P2):
        spread = _spread(len(index_P2), GOLDEN_WINDOWS)
        rows = {name: index_P2[spread, column] for column, name in enumerate(names)}
    else:
        count = min(GOLDEN_WINDOWS, *(len(validation.modalities[name]) for name in names))
        rows = {name: _spread(len(validation.modalities[name]), count) for name in names}
    windows = {name: np.ascontiguousarray(validation.modalities[name].x_BCN[rows[name]]) for name in names}
    scores = {name: model.scores({name: x_BCN}).astype(np.float64) for name, x_BCN in windows.items()}
    scores[ALL] = model.scores(windows).astype(np.float64)
    return Golden(windows, scores)


def _spread(length: int, count: int) -> Any:
    return np.unique(np.linspace(0, length - 1, min(length, count)).astype(np.int64))


def _contracts(model: Model, snapshot: Snapshot, lake: Lake, *, with_int8: bool) -> dict[str, Mapping[str, Any]]:
    """What a node's stream must be for each encoder, as the bundle's manifest states it."""
    specs = query.stream_specs(lake, version=snapshot.tables["chunks"])
    out: dict[str, Mapping[str, Any]] = {}
    for name, front_end in model.front_ends.items():
        kind, rate_hz, channels, units = contract(next(s for s in specs if s.modality == name))
        out[name] = {
            "kind": kind,
            "rate_hz": rate_hz,
            "channels": list(channels),
            "units": list(units),
            "window_s": snapshot.window_s,
            "hop_s": snapshot.hop_s,
            "min_coverage": snapshot.min_coverage,
            "max_gap_s": snapshot.max_gap_s,
            "front_end": front_end.to_dict(),
            "encoder": encoder_file(name),
            "encoder_int8": int8_file(name) if with_int8 else None,
            "dim": model.config.align.shared_width,
        }
    return out
