"""The triggers of one node: which instants the model need not look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from inference.triggers import Trigger, check_options
from infomae_stream.config import Settings, validate
from infomae_stream.errors import ConfigError
from infomae_stream.node_config import Id, NodeConfig
from infomae_stream.types import StreamId, Window

MIN_COVERAGE: Final = 0.95


class TriggerPlace(Settings):
    """Which streams a table `[[detect.triggers]]` is for: of this name, on every node of the file or on one."""

    stream: Id
    node: Id | None = None


@dataclass(frozen=True, slots=True)
class TriggerPlan:
    """A checked table: for which streams, and how the trigger of one of them is made."""

    place: TriggerPlace
    options: Settings
    make: Any

    def covers(self, stream: StreamId) -> bool:
        return self.place.stream == stream.stream and self.place.node in (None, stream.node)


def plan_triggers(settings: NodeConfig, where: str) -> list[TriggerPlan]:
    """Raises ConfigError for a table that names no trigger, no stream, a node that is not there, or a bad option."""
    plans = []
    for n, raw in enumerate(settings.detect.triggers):
        prefix = ("detect", "triggers", str(n))
        place = validate({k: v for k, v in raw.items() if k in TriggerPlace.model_fields}, TriggerPlace,
                         where=where, prefix=prefix)  # fmt: skip
        names = [node.node for node in settings.nodes]
        names += [name for node in settings.nodes if node.fuse is not None for name in node.fuse.nodes]
        if place.node is not None and place.node not in names:
            dotted = ".".join((*prefix, "node"))
            known = ", ".join(sorted(set(names)))
            raise ConfigError(f"{dotted}: no node {place.node!r}; known: {known}", where=where)
        rest = {key: value for key, value in raw.items() if key not in TriggerPlace.model_fields}
        options, cls = check_options(rest, where=where, prefix=prefix)
        plans.append(TriggerPlan(place, options, cls))
    return plans


class TriggerGate:
    """Makes the trigger of a stream when its first window comes; the first plan that covers the stream holds."""

    def __init__(self, plans: Sequence[TriggerPlan]) -> None:
        self._plans = plans
        self._triggers: dict[StreamId, tuple[float, Trigger | None]] = {}

    def quiet(self, windows: Sequence[Window]) -> bool:
        """Whether the windows of one instant have triggers among them, and all of these sleep.

        Every trigger sees every whole window of its stream, so that each knows its noise.
        """
        # Where samples are missing the window holds made-up ones, as soft as silence: no noise to learn.
        whole = [w for w in windows if w.coverage >= MIN_COVERAGE and np.isfinite(w.x_CN).all()]
        asked = [(self._trigger(window), window) for window in whole]
        awake = [trigger.awake(window.start_ns, window.x_CN) for trigger, window in asked if trigger is not None]
        return bool(awake) and not any(awake)

    def _trigger(self, window: Window) -> Trigger | None:
        stream, rate_hz = window.spec.id, window.spec.rate_hz
        known = self._triggers.get(stream)
        if known is None or known[0] != rate_hz:
            plan = next((plan for plan in self._plans if plan.covers(stream)), None)
            known = self._triggers[stream] = rate_hz, None if plan is None else plan.make(plan.options, rate_hz)
        return known[1]
