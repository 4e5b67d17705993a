"""Stage 2: the loop that aligns the shared projections. It knows no objective by name.

Legend: B batch, K T F spectrogram, E embedding, P pairs.
"""

import time
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from aligner.batches import AlignBatch, SequenceSampler, Views
from aligner.closed_form import anchored_regression, ridge_cca
from aligner.config import AlignConfig, TrainConfig
from aligner.model import Model
from aligner.monitors import Monitors, measure
from aligner.objectives import objective_class
from aligner.pretrain import cosine
from aligner.progress import Progress
from aligner.trainset import TrainSet
from infomae_stream.errors import DataError, TrainingError

MAX_SKIPPED_SHARE = 0.1
REPORT_EVERY = 20


class Objective(Protocol):
    """What the loop needs of an objective (an nn.Module too, for train and eval mode)."""

    @classmethod
    def build(
        cls, model: Model, pairs: list[tuple[str, str]], options: dict[str, object], generator: torch.Generator
    ) -> Self: ...

    def critic_parameters(self) -> list[nn.Parameter]:
        """Parameters of the second optimiser; empty when the objective has no critics."""

    def model_parameters(self) -> list[nn.Parameter]:
        """Parameters beside the model's own that learn with it."""

    def critic_loss(self, batch: AlignBatch) -> tuple[Tensor, dict[str, float]]:
        """To be minimised over the critics; the model is data here."""

    def model_loss(self, batch: AlignBatch, done: float) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Terms whose sum is minimised over the model, and checks to log; `done` in 0..1."""


@runtime_checkable
class ClosedForm(Protocol):
    """An objective without steps (it has `build` too): it sets the model's projections once, and nothing follows."""

    def solve(self, train: TrainSet, x_BKTF: dict[str, Tensor]) -> dict[str, float]:
        """Set the projections from the pairs and the spectrograms by modality; return what remains, by name."""


@runtime_checkable
class Prepared(Protocol):
    """An objective that looks at the whole set once, before the first step."""

    def prepare(self, train: TrainSet, x_BKTF: dict[str, Tensor]) -> None:
        """Take what the batches do not tell from the windows and their spectrograms by modality."""


@dataclass(frozen=True)
class AlignmentReport:
    """What stage 2 did. `losses`: each weighted term, mean of the last tenth of the steps; `seconds`: wall clock."""

    objective: str
    pairs: int
    unpaired_windows: int
    seconds: float
    losses: dict[str, float]
    monitors: Monitors


class _Draws:
    """Draws batches of pairs and of single windows, by whole runs of consecutive windows."""

    def __init__(self, views: dict[str, Views], train: TrainSet, settings: AlignConfig, seed: int) -> None:
        self.views = views
        self.generator = torch.Generator().manual_seed(seed)
        self.pairs, self.pair_samplers = {}, {}
        for names, index_P2 in sorted(train.pairs.items()):
            if not len(index_P2):
                continue
            first = train.modalities[names[0]]
            rows = index_P2[:, 0]
            index_P2 = index_P2[np.lexsort((first.start_ns_B[rows], first.sequence_B[rows]))]
            sequence = first.sequence_B[index_P2[:, 0]]
            self.pairs[names] = torch.from_numpy(index_P2)
            self.pair_samplers[names] = SequenceSampler(
                sequence, settings.pair_batch, settings.sequence_length, "|".join(names)
            )
        self.window_order, self.window_samplers = {}, {}
        for name in views:
            windows = train.modalities[name]
            order = np.lexsort((windows.start_ns_B, windows.sequence_B))
            self.window_order[name] = torch.from_numpy(order)
            self.window_samplers[name] = SequenceSampler(
                windows.sequence_B[order], settings.window_batch, settings.sequence_length, name
            )

    def batch(self) -> AlignBatch:
        pairs = {}
        for names, index_P2 in self.pairs.items():
            rows = index_P2[self.pair_samplers[names].draw(self.generator)]
            pairs[names] = (self.views[names[0]].batch(rows[:, 0]), self.views[names[1]].batch(rows[:, 1]))
        windows = {
            name: views.batch(self.window_order[name][self.window_samplers[name].draw(self.generator)])
            for name, views in self.views.items()
        }
        return AlignBatch(pairs, windows)


def start_closed_form(model: Model, train: TrainSet, views: dict[str, Views], kind: str, ridge: float) -> None:
    """Set the shared projections' linear paths to a closed-form map on the largest set of pairs of each modality."""
    done: set[str] = set()
    for names, index_P2 in sorted(train.pairs.items(), key=lambda item: -len(item[1])):
        if len(index_P2) < 2 or done & set(names):
            continue
        done |= set(names)
        index = torch.from_numpy(index_P2)
        with torch.no_grad():
            e = [views[n].part.embed(views[n].x_BKTF[index[:, i]]) for i, n in enumerate(names)]
        width = model.config.align.shared_width
        if kind == "cca":
            w1, b1, w2, b2, rho = ridge_cca(e[0], e[1], width, ridge)
            grown = torch.ones(width)
            grown[: len(rho)] = 1.0 / rho.clamp(min=1e-3).sqrt()
            maps = [(w1 * grown[:, None], b1 * grown), (w2 * grown[:, None], b2 * grown)]
        else:
            anchor = 0 if names[0] in train.labelled() else 1
            maps = anchored_regression(e[anchor], e[1 - anchor], width, ridge)
            maps = maps if anchor == 0 else maps[::-1]
        for name, (weight, bias) in zip(names, maps, strict=True):
            model.part(name).shared.start_from(weight, bias)


def align(model: Model, train: TrainSet, config: TrainConfig, progress: Progress) -> AlignmentReport:
    """Train the projections (and, with `encoder_rate` > 0, the encoders) of `model` in place.

    Same model, set, config and thread count: same result. Labels are not looked at.
    Raises DataError when there are no pairs, TrainingError when more than a tenth of the steps is not finite.
    """
    began = time.monotonic()
    settings = config.align
    pairs = sorted(names for names, index in train.pairs.items() if len(index))
    if not pairs:
        raise DataError("no pairs", where="align", fix="let two modalities of one site record at the same time")
    torch.manual_seed(config.seed)
    kind = objective_class(settings.objective)
    # Live views make no copies in advance: a closed form looks at every window once, as it is.
    views = _views(model, train, config, live=issubclass(kind, ClosedForm) or settings.encoder_rate > 0)
    if issubclass(kind, ClosedForm):
        history = [_solve(kind, model, train, pairs, views, config, progress)]
        critics: dict[str, float] = {}
        skipped = 0
    else:
        history, critics, skipped = _learn(kind, model, train, pairs, views, config, progress)
    model.eval()
    return AlignmentReport(
        objective=settings.objective,
        pairs=sum(len(index) for index in train.pairs.values()),
        unpaired_windows=train.unpaired_count(),
        seconds=time.monotonic() - began,
        losses=_tail_mean(history),
        monitors=_monitors(model, train, views, critics, skipped, config.seed),
    )


def _solve(
    kind: Any,
    model: Model,
    train: TrainSet,
    pairs: list[tuple[str, str]],
    views: dict[str, Views],
    config: TrainConfig,
    progress: Progress,
) -> dict[str, float]:
    model.eval()
    generator = torch.Generator().manual_seed(config.seed + 1)
    objective = kind.build(model, pairs, dict(config.align.options), generator)
    left: dict[str, float] = objective.solve(train, {name: view.x_BKTF for name, view in views.items()})
    progress("align", 1, 1, left)
    return left


def _learn(
    kind: Any,
    model: Model,
    train: TrainSet,
    pairs: list[tuple[str, str]],
    views: dict[str, Views],
    config: TrainConfig,
    progress: Progress,
) -> tuple[list[dict[str, float]], dict[str, float], int]:
    settings = config.align
    if settings.start != "random":
        start_closed_form(model, train, views, settings.start, settings.start_ridge)
    draws = _Draws(views, train, settings, config.seed + 1)
    objective = kind.build(model, pairs, dict(settings.options), draws.generator)
    if isinstance(objective, Prepared):
        objective.prepare(train, {name: view.x_BKTF for name, view in views.items()})
    return _steps(model, objective, draws, settings, progress)


def _views(model: Model, train: TrainSet, config: TrainConfig, live: bool) -> dict[str, Views]:
    settings = config.align
    generator = torch.Generator().manual_seed(config.seed + 2)
    return {
        name: Views(
            model.part(name),
            model.spectrograms(name, train.modalities[name].x_BCN),
            torch.from_numpy(train.modalities[name].sequence_B),
            augmentations=settings.augmentations,
            mask_ratio=config.pretrain.mask_ratio,
            mask_unit=config.pretrain.mask_unit,
            copies=settings.view_copies,
            live=live,
            generator=generator,
        )
        for name in model.front_ends
    }


def _optimisers(
    model: Model, objective: Objective, settings: AlignConfig
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer | None]:
    parts = [model.part(name) for name in model.front_ends]
    heads = [p for part in parts for p in (*part.shared.parameters(), *part.private.parameters())]
    groups = [{"params": [*heads, *objective.model_parameters()], "lr": settings.head_rate}]
    if settings.encoder_rate > 0:
        encoders = [p for part in parts for p in part.encoder.parameters()]
        groups.append({"params": encoders, "lr": settings.encoder_rate})
    adversaries = objective.critic_parameters()
    critic = torch.optim.Adam(adversaries, lr=settings.critic_rate, betas=(0.5, 0.9)) if adversaries else None
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay), critic


def _steps(
    model: Model, objective: Objective, draws: _Draws, settings: AlignConfig, progress: Progress
) -> tuple[list[dict[str, float]], dict[str, float], int]:
    optimiser, critic_optimiser = _optimisers(model, objective, settings)
    rates = [group["lr"] for group in optimiser.param_groups]
    learned = [p for group in optimiser.param_groups for p in group["params"]]
    history: list[dict[str, float]] = []
    critics: dict[str, float] = {}
    skipped = 0
    total = settings.critic_warm_up + settings.steps
    for step in range(total):
        model.train(settings.encoder_rate > 0)
        batch = draws.batch()
        if critic_optimiser is not None:
            for _ in range(settings.critic_steps):
                critics = _critic_step(objective, batch, critic_optimiser, critics)
        if step < settings.critic_warm_up:
            continue
        done = step - settings.critic_warm_up
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * cosine(done, settings.steps, max(1, settings.steps // 20))
        terms, checks = objective.model_loss(batch, done / settings.steps)
        optimiser.zero_grad()
        torch.stack([*terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(learned, settings.gradient_norm)
        if bool(torch.isfinite(norm)):
            optimiser.step()
            history.append({name: float(term.detach()) for name, term in terms.items()})
            critics.update(checks)
        else:
            skipped += 1
        if (done + 1) % REPORT_EVERY == 0 or done + 1 == settings.steps:
            progress("align", done + 1, settings.steps, history[-1] if history else {})
    if skipped > MAX_SKIPPED_SHARE * settings.steps:
        raise TrainingError(f"{skipped} of {settings.steps} steps not finite", where="align", fix="lower the rates")
    return history, critics, skipped


def _critic_step(
    objective: Objective, batch: AlignBatch, optimiser: torch.optim.Optimizer, running: dict[str, float]
) -> dict[str, float]:
    """One step of the critics; returns each one's running mean cross-entropy, taken before it learns the batch."""
    loss, metrics = objective.critic_loss(batch)
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    if bool(torch.isfinite(loss.detach())):
        optimiser.step()
    blended = {name: 0.95 * running.get(name, value) + 0.05 * value for name, value in metrics.items()}
    return {**running, **blended}


def _tail_mean(history: list[dict[str, float]]) -> dict[str, float]:
    tail = history[-max(1, len(history) // 10) :]
    return {name: float(np.mean([record[name] for record in tail])) for name in (tail[0] if tail else {})}


def _monitors(
    model: Model, train: TrainSet, views: dict[str, Views], critics: dict[str, float], skipped: int, seed: int
) -> Monitors:
    u, v = {}, {}
    with torch.no_grad():
        for name, view in views.items():
            e = torch.cat([view.part.embed(piece) for piece in view.x_BKTF.split(256)])  # type: ignore[no-untyped-call]
            u[name], v[name] = view.part.shared(e).numpy(), view.part.private(e).numpy()
    return measure(u, v, train.pairs, critics, skipped, seed)
