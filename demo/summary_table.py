"""The summary for people; summary.json has all of it."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def summary_table(s: dict[str, Any]) -> RenderableType:
    """Every number is the summary's."""
    table = Table(title="What it came to", title_justify="left", show_header=False, border_style="grey37")
    table.add_column(style="grey58", no_wrap=True)
    table.add_column()
    sound = not (s["lost"] or s["logical_duplicates"])
    table.add_row("chunks accepted, in the lake", f"{s['chunks_accepted']:,}, {s['chunks_in_lake']:,}")
    told = f"{s['lost']} lost, {s['logical_duplicates']} twice, of {s['records']['accepted']:,} records"
    table.add_row("delivery", Text(told, style="green3" if sound else "bold red3"))
    refused = ", ".join(f"{reason} {n:,}" for reason, n in sorted(s["pairs_refused"].items()) if n)
    table.add_row("windows, pairs", f"{s['windows']:,}, {s['pairs']:,}")
    table.add_row("refused as pairs", refused or "none")
    for row in _alignment_rows(s["alignment"]):
        table.add_row(*row)
    for candidate in s["candidates"]:
        failed = [gate for gate, passed in candidate["gates"].items() if not passed]
        told = candidate["outcome"].replace("_", " ") + (f" ({', '.join(failed)})" if failed else "")
        table.add_row(f"candidate {candidate['run']}", f"{told}, {candidate['pairs']} pairs, {candidate['stage_1']}")
    table.add_row("bundle", _bundle(s["bundle"]))
    table.add_row("events detected", f"{s['detections']:,}, {_ratio(s['detections_correct_ratio'])} of them right")
    watches = s["watches_of_unseen_people"]
    told = f"{watches['detections']:,}, {_ratio(watches['correct_ratio'])} of them right"
    table.add_row("... by watches of people never seen", told)
    memory = s["rss_mb"]
    table.add_row("memory, MB", f"collect {memory['collect']}, detect {memory['detect']}, hub {memory['hub']}")
    table.add_row("seconds", f"{s['seconds']}")
    return Group(table)


def _alignment_rows(alignment: dict[str, Any] | None) -> list[tuple[str, RenderableType]]:
    if alignment is None or alignment["macro_f1_after"] is None:
        return [("alignment", "no run ended")]
    low, high = alignment["macro_f1_interval"] or (None, None)
    baselines = ", ".join(f"{name.replace('_', ' ')} {_ratio(v)}" for name, v in (alignment["baselines"] or {}).items())
    people = ", ".join(alignment["held_out_people"] or ())
    after = Text(f"{_ratio(alignment['macro_f1_after'])} [{_ratio(low)}, {_ratio(high)}]", style="bold green3")
    return [
        (f"macro-F1 on the watches of {people}", ""),
        ("  before alignment", _ratio(alignment["macro_f1_before"])),
        (f"  after, {alignment['objective']}, {alignment['pairs']} pairs", after),
        ("  baselines", baselines),
        ("  phone and watch together", _ratio(alignment["multimodal_macro_f1"])),
    ]


def _bundle(bundle: dict[str, Any] | None) -> str:
    if bundle is None:
        return "none"
    verified = "verified" if bundle["verified"] else "NOT verified"
    return f"v{bundle['version']}, {str(bundle['sha256'])[:12]}, {verified}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
