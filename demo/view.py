"""The live picture on a terminal, 100 columns by 40 lines, drawn from `Facts` alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from rich.console import Group, RenderableType
from rich.layout import Layout
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from demo.alignment_story import Candidate, Story, read_story
from demo.event_lines import Line, line_of
from demo.people import CAST, GROUPS, LEARN, UNSEEN, VALIDATE, Person, group_of
from demo.watching import Facts, NodeFacts
from infomae_stream.types import Detection

BORDER: Final = "grey37"
FAINT: Final = "grey58"
GOOD: Final = "green3"
BAD: Final = "red3"
NEWS: Final = "gold3"
ACCENT: Final = "deep_sky_blue1"
GROUP_TITLE: Final = {LEARN: "to learn from", VALIDATE: "validation", UNSEEN: "never seen"}
BAR_WIDTH: Final = 14
SHOWN_ELSEWHERE: Final = ("gate_verdict", "bundle_observed", "alignment_evaluated")


@dataclass
class Scene:
    """What the view needs beside the facts: the addresses, the clock of the demo, and who did what."""

    addresses: list[tuple[str, str]]
    limit_s: float
    true_label: Callable[[str, int, int], str]
    cast: Sequence[Person] = CAST
    phase: str = "starting"
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started


def render(scene: Scene, facts: Facts) -> Layout:
    """The whole picture; it fills whatever it is given and is made for 100 x 40."""
    story = read_story(facts.status)
    page = Layout()
    page.split_column(
        Layout(_header(scene), name="header", size=1),
        Layout(_addresses(scene), name="addresses", size=len(scene.addresses) + 2),
        Layout(name="middle", size=10),
        Layout(_alignment(story), name="alignment", size=12),
        Layout(name="bottom"),
    )
    page["middle"].split_row(Layout(_nodes(scene, facts), ratio=3), Layout(_pairs(facts), ratio=2))
    page["bottom"].split_row(Layout(_detections(scene, facts), ratio=3), Layout(_decisions(facts), ratio=2))
    return page


def _panel(body: RenderableType, title: str, note: str = "") -> Panel:
    heading = Text(title, style="bold bright_white")
    return Panel(
        body,
        title=heading,
        title_align="left",
        subtitle=Text(note, style=FAINT) if note else None,
        subtitle_align="right",
        border_style=BORDER,
        padding=(0, 1),
    )


def _header(scene: Scene) -> RenderableType:
    line = Table.grid(expand=True)
    line.add_column()
    line.add_column(justify="right")
    minutes = f"{clock(scene.elapsed_s)} of at most {clock(scene.limit_s)}"
    line.add_row(
        Text.assemble((" infomae-stream ", f"bold black on {ACCENT}"), ("  " + scene.phase, "bold")),
        Text(minutes + " ", style=FAINT),
    )
    return line


def _addresses(scene: Scene) -> RenderableType:
    rows = Table.grid(padding=(0, 2))
    for name, address in scene.addresses:
        rows.add_row(Text(name, style=FAINT), Text(address, no_wrap=True, overflow="ellipsis"))
    return _panel(rows, "Where things are", "Ctrl-C ends with the summary")


def _nodes(scene: Scene, facts: Facts) -> RenderableType:
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style=FAINT)
    table.add_column("people, device")
    for heading in ("nodes", "samples", "outbox", "model", "seen"):
        table.add_column(heading, justify="right", no_wrap=True)
    for group in GROUPS:
        for device in ("phone", "watch"):
            nodes = [
                n for n in facts.nodes.values() if group_of(n.site, scene.cast) == group and n.node.endswith(device)
            ]
            table.add_row(*_node_row(f"{GROUP_TITLE[group]}, {device}", nodes))
    return _panel(Group(table, _clocks(facts)), "Nodes", _ingest_note(facts))


def _node_row(name: str, nodes: list[NodeFacts]) -> list[RenderableType]:
    online = sum(n.connected for n in nodes)
    versions = sorted({n.bundle_version for n in nodes if n.bundle_version})
    serving = sum(n.bundle_state == "serving" for n in nodes)
    model = f"v{versions[-1]} {serving}/{len(nodes)}" if versions else "-"
    seen = sum(n.detections for n in nodes)
    return [
        name,
        Text(f"{online}/{len(nodes)}", style=GOOD if nodes and online == len(nodes) else NEWS),
        f"{sum(n.samples for n in nodes):,.0f}",
        size(sum(n.outbox_bytes for n in nodes)),
        Text(model, style=GOOD if versions else FAINT),
        f"{seen:,}",
    ]


def _clocks(facts: Facts) -> Text:
    wrong = [n for n in facts.nodes.values() if n.samples and not n.synchronised]
    if not wrong:
        return Text("all clocks synchronised", style=FAINT)
    told = ", ".join(f"{n.node} (±{1000 * n.uncertainty_s:.0f} ms)" for n in wrong)
    return Text(f"clock not synchronised: {told}", style=BAD, no_wrap=True, overflow="ellipsis")


def _ingest_note(facts: Facts) -> str:
    return f"lake {size(facts.lake_bytes)}, {facts.lag_s:.1f} s behind" if facts.lake_bytes else ""


def _pairs(facts: Facts) -> RenderableType:
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    table.add_row(Text("paired", style="bold"), Text(f"{facts.pairs.get('paired', 0):,}", style=f"bold {GOOD}"))
    refused = sorted((count, reason) for reason, count in facts.pairs.items() if reason != "paired" and count)
    for count, reason in reversed(refused):
        table.add_row(Text(f"refused: {reason.replace('_', ' ')}", style=FAINT), Text(f"{count:,}", style=NEWS))
    windows = ", ".join(f"{count:,} {kind.removesuffix('_imu')}" for kind, count in sorted(facts.windows.items()))
    return _panel(table, "Pairs of windows", f"windows: {windows}" if windows else "")


def _alignment(story: Story) -> RenderableType:
    sides = Table.grid(expand=True, padding=(0, 2, 0, 0))
    sides.add_column(ratio=5)
    sides.add_column(ratio=4)
    shown = story.serving or (story.candidates[-1] if story.candidates else None)
    sides.add_row(_scores(shown), _verdicts(story.candidates))
    return _panel(Group(_training(story), _losses(story), sides), "Alignment", _alignment_note(shown))


def _losses(story: Story) -> Text:
    """The terms of the stage at hand as training told them; empty between runs."""
    terms = [f"{name.replace('_', ' ')} {value:.3g}" for name, value in story.metrics.items()]
    return _cut(Text("  ".join(terms), style=FAINT))


def _alignment_note(shown: Candidate | None) -> str:
    if shown is None:
        return ""
    return f"run {shown.run}: {shown.pairs} pairs, {shown.seconds:.0f} s; watch labels serve the ceiling alone"


def _training(story: Story) -> RenderableType:
    if not story.running:
        return Text(f"next run waits: {story.waiting}" if story.waiting else "no run in training", style=FAINT)
    row = Table.grid(padding=(0, 2, 0, 0))
    eta = f"about {clock(story.eta_s)} left of this stage" if story.eta_s is not None else ""
    row.add_row(
        Text(f"run {story.run}", style=f"bold {NEWS}"),
        Text(story.stage),
        ProgressBar(total=max(story.total, 1), completed=story.done, width=24, complete_style=ACCENT),
        Text(f"{story.done}/{story.total}", style=FAINT),
        Text(eta, style=FAINT),
    )
    return row


def _scores(candidate: Candidate | None) -> RenderableType:
    if candidate is None or candidate.after is None:
        return Text("macro-F1 on watches of people never seen: after the first run", style=FAINT)
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_row(Text("macro-F1, watches of", style=FAINT), Text(", ".join(candidate.people), style=FAINT))
    for name, value in candidate.bars():
        aligned = name == candidate.objective
        style = GOOD if aligned else ACCENT if name == "own labels" else FAINT
        interval = (
            f" [{candidate.interval[0]:.2f}, {candidate.interval[1]:.2f}]" if aligned and candidate.interval else ""
        )
        bar = Text.assemble((_bar(value), style), (f" {value:.2f}{interval}", "bold" if aligned else ""), no_wrap=True)
        table.add_row(Text(name, style="bold" if aligned else ""), bar)
    return table


def _bar(share: float) -> str:
    """A bar of at most BAR_WIDTH columns, to an eighth of a column."""
    eighths = round(min(max(share, 0.0), 1.0) * BAR_WIDTH * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _verdicts(candidates: Sequence[Candidate]) -> RenderableType:
    """The newest candidate with its gates, the one before in one line."""
    lines: list[RenderableType] = []
    for candidate in candidates[-3:]:
        style = GOOD if candidate.promoted else BAD if candidate.outcome == "failed" else NEWS
        verdict = f"released as v{candidate.version}" if candidate.promoted else candidate.outcome.replace("_", " ")
        lines.append(Text.assemble((f"candidate {candidate.run}: ", "bold"), (verdict, f"bold {style}")))
        if candidate is not candidates[-1]:
            continue
        for gate in candidate.gates:
            mark, colour = ("✓", GOOD) if gate.passed else ("✗", BAD)
            lines.append(_cut(Text.assemble((f"{mark} ", colour), gate.reason)))
        lines += [_cut(Text(reason, style=FAINT)) for reason in candidate.reasons if candidate.outcome == "failed"]
    return Group(*lines) if lines else Text("gates: no candidate yet", style=FAINT)


def _cut(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _detections(scene: Scene, facts: Facts) -> RenderableType:
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style=FAINT)
    for heading in ("node", "saw", "for", "score", "from", "did"):
        table.add_column(heading, no_wrap=True, justify="right" if heading in ("for", "score") else "left")
    for d in newest_of_each(facts.detections):
        truth = scene.true_label(d.node, d.start_ns, d.end_ns)
        right = Text("✓", style=GOOD) if truth == d.label else Text(truth.replace("_", " ") or "?", style=FAINT)
        sources = "+".join(name.removesuffix("_imu") for name in d.modalities)
        saw = Text(d.label.replace("_", " "), style=ACCENT)
        table.add_row(d.node, saw, f"{lasted_s(d):.1f} s", f"{d.score:.2f}", sources, right)
    note = f"{facts.n_detections:,} so far"
    if facts.inference_ms:
        note += f", {facts.inference_ms:.1f} ms a window"
    return _panel(table, "Events detected, newest first", note)


def lasted_s(detection: Detection) -> float:
    return (detection.end_ns - detection.start_ns) / 1e9


def newest_of_each(detections: Iterable[Detection]) -> list[Detection]:
    """Newest first, but two a node at most: one node's batch must not hide the others."""
    shown: list[Detection] = []
    count: Counter[str] = Counter()
    for d in reversed(list(detections)):
        count[d.node] += 1
        if count[d.node] <= 2:
            shown.append(d)
    return shown


def _decisions(facts: Facts) -> RenderableType:
    told = (event for event in facts.events if event["event"] not in SHOWN_ELSEWHERE)
    lines = [line for event in told if (line := line_of(event)) is not None]
    return _panel(Group(*(_event_text(line) for line in lines[-20:][::-1])), "Decisions, newest first")


def _event_text(line: Line) -> Text:
    style = {"good": GOOD, "bad": BAD, "news": NEWS}.get(line.tone, "")
    return Text.assemble((line.clock + " ", FAINT), (line.text, style))


def clock(seconds: float) -> str:
    return f"{int(max(seconds, 0)) // 60}:{int(max(seconds, 0)) % 60:02d}"


def size(n_bytes: float) -> str:
    """Bytes for people: 812 B, 14 kB, 3.2 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.{0 if n_bytes >= 10 * scale else 1}f} {unit}"
    return f"{n_bytes:.0f} B"
