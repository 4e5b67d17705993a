"""The aligner's status file (aligner/status.py has its form) as the view and the summary need it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

BASELINES: Final = (("pseudolabel", "pseudo-labels"), ("ridge_map", "ridge map"), ("own_labels", "own labels"))
DONE: Final = ("promoted", "not_promoted", "failed")


@dataclass(frozen=True)
class GateLine:
    gate: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class Candidate:
    """One finished run. Scores are macro-F1 of the modality without labels, on people who are in no training set."""

    run: int
    outcome: str
    version: int = 0
    objective: str = ""
    pairs: int = 0
    seconds: float = 0.0
    stage_1: str = ""
    before: float | None = None
    after: float | None = None
    interval: tuple[float, float] | None = None
    baselines: dict[str, float] = field(default_factory=dict)
    multimodal: float | None = None
    people: tuple[str, ...] = ()
    gates: tuple[GateLine, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def promoted(self) -> bool:
        return self.outcome == "promoted"

    def bars(self) -> list[tuple[str, float]]:
        """(name, value) of each score there is, in the order of the story."""
        found = [("before alignment", self.before), (self.objective or "aligned", self.after)]
        found += [(title, self.baselines.get(key)) for key, title in BASELINES]
        return [(name, value) for name, value in found if value is not None]


@dataclass(frozen=True)
class Story:
    candidates: tuple[Candidate, ...] = ()
    running: bool = False
    run: int = 0
    stage: str = ""
    done: int = 0
    total: int = 0
    eta_s: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    waiting: str = ""
    pairs_to_learn_from: int = 0

    @property
    def serving(self) -> Candidate | None:
        """The newest candidate that was released: the one whose bundle nodes run."""
        return next((c for c in reversed(self.candidates) if c.promoted), None)


def read_story(status: dict[str, Any]) -> Story:
    """What stands in the status file; an empty story before there is one."""
    training = status.get("training") or {}
    return Story(
        candidates=tuple(_candidate(run) for run in status.get("runs", ()) if run.get("outcome") in DONE),
        running=bool(training),
        run=int(training.get("run") or 0),
        stage=str(training.get("stage") or ""),
        done=int(training.get("done") or 0),
        total=int(training.get("total") or 0),
        eta_s=training.get("eta_s"),
        metrics={k: v for k, v in (training.get("metrics") or {}).items() if v is not None},
        waiting=str(status.get("waiting") or ""),
        pairs_to_learn_from=int(status.get("pairs_to_learn_from") or 0),
    )


def _candidate(run: dict[str, Any]) -> Candidate:
    alignment = run.get("alignment") or {}
    low, high = alignment.get("macro_f1_interval") or (None, None)
    return Candidate(
        run=int(run["run"]),
        outcome=str(run["outcome"]),
        version=int(run.get("version") or 0),
        objective=str(alignment.get("objective") or ""),
        pairs=int(alignment.get("pairs") or 0),
        seconds=float(run.get("seconds") or 0.0),
        stage_1=str(run.get("stage_1") or ""),
        before=alignment.get("macro_f1_before"),
        after=alignment.get("macro_f1_after"),
        interval=(low, high) if low is not None and high is not None else None,
        baselines={k: v for k, v in (alignment.get("baselines") or {}).items() if v is not None},
        multimodal=alignment.get("multimodal_macro_f1"),
        people=tuple(alignment.get("held_out_people") or ()),
        gates=tuple(
            GateLine(str(v["gate"]), bool(v["passed"]), str(v.get("reason") or "")) for v in run.get("verdicts") or ()
        ),
        reasons=tuple(str(reason) for reason in run.get("reasons") or ()),
    )
