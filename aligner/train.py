"""Training end to end: stage 1, stage 2 with the linear head, and the evaluation that a gate reads.

Legend: B windows, C channels, N samples, E embedding, D shared width, P pairs, Y classes.
"""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aligner import baselines
from aligner.align import AlignmentReport, align
from aligner.config import FrontEndConfig, TrainConfig
from aligner.evaluation import Score, score
from aligner.head import LinearHead, fit_linear_head
from aligner.model import Model
from aligner.pretrain import pretrain_modality
from aligner.progress import Progress, silent
from aligner.trainset import ModalityWindows, TrainSet
from infomae_stream.errors import DataError
from infomae_stream.spectrogram import IMU_CHANNELS, FrontEnd, SpectrogramSpec

__all__ = ["AlignmentReport", "Evaluation", "TrainConfig", "align_and_fit", "evaluate", "pretrain_all"]


@dataclass(frozen=True)
class Evaluation:
    """Scores on held-out people. `source`: the labelled modality; `target`: the one without labels.

    `before`: the source's head on the target's unaligned embedding. `after`: the linear head, trained on the source's
    u, on the target's u alone. `unimodal`: the same head on the source alone; `multimodal`: on the mean of both, over
    held-out pairs (None without). `baselines`: "pseudolabel", "ridge_map", "own_labels" where they could be had.
    """

    source: str
    target: str
    before: Score
    after: Score
    unimodal: Score
    multimodal: Score | None
    baselines: dict[str, Score]
    people: tuple[str, ...]


def front_end_for(windows: ModalityWindows, config: FrontEndConfig) -> FrontEnd:
    """Fit the front end of one modality on its training windows."""
    spec = SpectrogramSpec(
        rate_hz=windows.rate_hz,
        window_s=config.window_s,
        interval_s=config.interval_s,
        interval_hop_s=config.interval_hop_s,
        channels=windows.x_BCN.shape[1],
        max_hz=config.max_hz,
    )
    orientation = config.orientation
    if orientation == "auto":
        orientation = "gravity" if spec.channels == IMU_CHANNELS else "none"
    return FrontEnd.fit(windows.x_BCN, spec, orientation=orientation, content=config.content)


def pretrain_all(train: TrainSet, config: TrainConfig, progress: Progress = silent) -> Model:
    """Stage 1: fit the front ends and pretrain every modality's encoder alone, on all its windows.

    Deterministic for equal input, config and thread count. Sets torch's thread count for this process.
    Raises DataError for a modality without windows.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    fronts = {name: front_end_for(windows, config.front_end) for name, windows in sorted(train.modalities.items())}
    model = Model(fronts, train.classes, config)
    for name in model.front_ends:
        x_BKTF = model.spectrograms(name, train.modalities[name].x_BCN)
        pretrain_modality(model.part(name), x_BKTF, config, progress, name)
    return model.eval()


def align_and_fit(
    model: Model, train: TrainSet, config: TrainConfig, progress: Progress = silent
) -> tuple[Model, AlignmentReport]:
    """Stage 2 and the linear head; `model` itself stays as it is, so a later realignment can start from it again.

    The head learns from the u of labelled windows only, each modality that has labels.
    Raises DataError without pairs or without labels of two classes; TrainingError when steps are not finite.
    """
    torch.set_num_threads(config.threads)
    aligned = copy.deepcopy(model)
    report = align(aligned, train, config, progress)
    u, labels = [], []
    for name in train.labelled():
        windows = train.modalities[name]
        known = windows.label_B >= 0
        u.append(aligned.shared(name, windows.x_BCN[known]))
        labels.append(windows.label_B[known])
    if not u:
        raise DataError("no labelled window", where="linear head", fix="import labels first")
    head = fit_linear_head(
        np.concatenate(u),
        np.concatenate(labels),
        len(train.classes),
        l2=config.head.l2,
        iterations=config.head.iterations,
    )
    set_head(aligned, head)
    progress("head", 1, 1, {})
    return aligned.eval(), report


def set_head(model: Model, head: LinearHead) -> None:
    """Write a fitted head into the model."""
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(head.weight_YD))
        model.head.bias.copy_(torch.from_numpy(head.bias_Y))


def evaluate(
    model: Model,
    train: TrainSet,
    held_out: TrainSet,
    oracle_labels: dict[str, NDArray[np.int64]] | None = None,
    *,
    source: str | None = None,
    target: str | None = None,
    seed: int = 0,
) -> Evaluation:
    """Score the protocols on `held_out`, whose labels are the truth; people in it must not occur in `train`.

    `source` defaults to the first labelled modality of `train`, `target` to the first other one. `oracle_labels`
    (labels of the target's training windows, in their order) serve the own-label ceiling and nothing else.
    Raises DataError when a person is in both sets or a modality is missing.
    """
    source, target = _protocol(train, held_out, source, target)
    truth, known = held_out.modalities[target], held_out.modalities[target].label_B >= 0
    heads = model.config.head
    fit: dict[str, Any] = {"l2": heads.l2, "iterations": heads.iterations}
    e = {name: model.embed(name, train.modalities[name].x_BCN) for name in (source, target)}
    e_held = model.embed(target, truth.x_BCN)
    classes = len(train.classes)
    source_head = fit_linear_head(e[source], train.modalities[source].label_B, classes, **fit)

    def scored(predicted_B: NDArray[np.int64], windows: ModalityWindows) -> Score:
        return score(windows.label_B, predicted_B, windows.group_B, train.classes, seed=seed)

    plain: dict[str, Score] = {}
    pairs = _pairs(train, source, target)
    if len(pairs):
        e_source_PE, e_target_PE = e[source][pairs[:, 0]], e[target][pairs[:, 1]]
        carried = train.modalities[source].label_B[pairs[:, 0]]
        pseudo = baselines.pseudolabel(source_head, e_source_PE, carried, e_target_PE, classes, **fit)
        plain["pseudolabel"] = scored(pseudo.predict(e_held), truth)
        sequence_P = train.modalities[source].sequence_B[pairs[:, 0]]
        mapped = baselines.ridge_map(source_head, e_target_PE, e_source_PE, sequence_P, e_held)
        plain["ridge_map"] = scored(mapped, truth)
    if oracle_labels is not None and target in oracle_labels:
        own = baselines.own_labels(e[target], oracle_labels[target], classes, **fit)
        plain["own_labels"] = scored(own.predict(e_held), truth)
    alone = held_out.modalities[source]
    return Evaluation(
        source=source,
        target=target,
        before=scored(baselines.before(source_head, e_held), truth),
        after=scored(model.scores({target: truth.x_BCN}).argmax(axis=1).astype(np.int64), truth),
        unimodal=scored(model.scores({source: alone.x_BCN}).argmax(axis=1).astype(np.int64), alone),
        multimodal=_multimodal(model, held_out, source, target, seed),
        baselines=plain,
        people=tuple(np.unique(truth.group_B[known]).tolist()),
    )


def _multimodal(model: Model, held_out: TrainSet, source: str, target: str, seed: int) -> Score | None:
    pairs = _pairs(held_out, source, target)
    if not len(pairs):
        return None
    first, second = held_out.modalities[source].take(pairs[:, 0]), held_out.modalities[target].take(pairs[:, 1])
    predicted = model.scores({source: first.x_BCN, target: second.x_BCN}).argmax(axis=1).astype(np.int64)
    return score(first.label_B, predicted, first.group_B, held_out.classes, seed=seed)


def _pairs(windows: TrainSet, source: str, target: str) -> NDArray[np.int64]:
    if (source, target) in windows.pairs:
        return windows.pairs[(source, target)]
    if (target, source) in windows.pairs:
        return windows.pairs[(target, source)][:, ::-1]
    return np.zeros((0, 2), np.int64)


def _protocol(train: TrainSet, held_out: TrainSet, source: str | None, target: str | None) -> tuple[str, str]:
    labelled = train.labelled()
    if source is None and not labelled:
        raise DataError("no labelled modality", where="evaluate", fix="import labels first")
    source = source or labelled[0]
    others = [name for name in sorted(train.modalities) if name != source]
    if target is None and not others:
        raise DataError(f"only {source} has windows", where="evaluate", fix="collect a second modality")
    target = target or others[0]
    for name in (source, target):
        if name not in train.modalities or name not in held_out.modalities:
            raise DataError("no windows", where=f"evaluate {name}", fix="give both sets windows of it")
        both = set(train.modalities[name].group_B.tolist()) & set(held_out.modalities[name].group_B.tolist())
        if both:
            raise DataError(f"{sorted(both)} in training and held-out set", where="evaluate", fix="split by group")
    return source, target
