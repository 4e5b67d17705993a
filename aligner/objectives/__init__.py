"""Alignment objectives (stage 2). One module an objective, one line here; the loop knows none of them by name."""

from typing import Any

from aligner.registry import resolve

OBJECTIVES = {"infomae": "aligner.objectives.infomae:InfoMae"}


def objective_class(name: str) -> Any:
    """Return the class of objective `name`; raises ConfigError when there is none."""
    return resolve(OBJECTIVES, name, "train.align.objective")
