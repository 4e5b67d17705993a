"""The same story as lines, for logs and for terminals that are none."""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Any, Final

from rich.console import Console

from demo.alignment_story import read_story
from demo.event_lines import line_of
from demo.view import Scene, clock, lasted_s, size
from demo.watching import Facts

EVERY_S: Final = 10.0


class PlainView:
    """One line a decision, and every ten seconds one about where things stand."""

    def __init__(self, scene: Scene, console: Console) -> None:
        self._scene = scene
        self._console = console
        self._due_s = 0.0
        self._phase = ""

    def __enter__(self) -> PlainView:
        for name, address in self._scene.addresses:
            self._say(f"{name:8} {address}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, facts: Facts, events: list[dict[str, Any]], phase: str) -> None:
        for event in events:
            line = line_of(event)
            if line is not None:
                self._say(line.text)
        self.phase(phase)
        if self._scene.elapsed_s >= self._due_s:
            self._due_s = self._scene.elapsed_s + EVERY_S
            self._say(standing(facts))
            for d in list(facts.detections)[-1:]:
                truth = self._scene.true_label(d.node, d.start_ns, d.end_ns) or "?"
                saw = f"{d.node} saw {d.label} for {lasted_s(d):.1f} s"
                self._say(f"  newest: {saw}, score {d.score:.2f} from {'+'.join(d.modalities)}; did {truth}")

    def phase(self, phase: str) -> None:
        if phase != self._phase:
            self._phase = phase
            self._say(f"-- {phase}")

    def _say(self, text: str) -> None:
        self._console.print(f"[{clock(self._scene.elapsed_s)}] {text}", markup=False, highlight=False, soft_wrap=True)


def models(facts: Facts) -> str:
    """Which version serves on how many nodes."""
    versions = Counter(n.bundle_version for n in facts.nodes.values() if n.bundle_state == "serving")
    return ", ".join(f"v{version} on {n} nodes" for version, n in sorted(versions.items())) or "no model yet"


def standing(facts: Facts) -> str:
    """Where things stand, in one line."""
    story = read_story(facts.status)
    refused = {reason: n for reason, n in sorted(facts.pairs.items()) if reason != "paired" and n}
    parts = [
        f"{sum(n.connected for n in facts.nodes.values())}/{len(facts.nodes)} nodes",
        f"{facts.samples:,.0f} samples",
        f"outbox {size(facts.outbox_bytes)}",
        f"windows {sum(facts.windows.values()):,}",
        f"pairs {facts.pairs.get('paired', 0):,}",
        "refused " + (", ".join(f"{reason} {n:,}" for reason, n in refused.items()) or "0"),
        models(facts),
        f"events {facts.n_detections:,}",
    ]
    if story.running:
        eta = f", {story.eta_s:.0f} s left" if story.eta_s is not None else ""
        parts.append(f"training {story.run}: {story.stage} {story.done}/{story.total}{eta}")
    elif story.waiting:
        parts.append(f"next run waits: {story.waiting}")
    return "; ".join(parts)
