"""What the demonstration came to: read from the lake, the nodes' truth logs, the aligner's status and /proc.

`lost` and `logical_duplicates` compare the truth logs that the nodes wrote with what readers of the lake see; no
counter of the pipeline has a say in them.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from demo.alignment_story import Candidate, read_story
from demo.configs import NODE_FILES, Device, clock_shift_ns
from demo.people import UNSEEN, WATCH
from demo.recordings import Interval, TrueLabels
from infomae_stream.bundle import load_public_key, open_bundle
from infomae_stream.clock import SystemClock
from infomae_stream.errors import BundleError
from infomae_stream.outbox import Outbox
from infomae_stream.types import Detection
from storage import query
from storage.lake import Lake
from storage.verify import compare

COLLECT_LIMIT_MB: Final = 100
DETECT_LIMIT_MB: Final = 200
HUB_ROLES: Final = ("ingest", "align", "maintain", "train")


class Truth:
    """What the wearer of each node really did, in the time of that node's own clock."""

    def __init__(self, devices: Iterable[Device]) -> None:
        self._labels = {d.node: TrueLabels(_shifted(d)) for d in devices}

    def label(self, node: str, start_ns: int, end_ns: int) -> str:
        """The label that holds for at least half of the time; "" where there is none."""
        labels = self._labels.get(node)
        return labels.of(start_ns, end_ns) if labels else ""


def _shifted(device: Device) -> list[Interval]:
    shift_ns = clock_shift_ns(device)
    return [
        Interval(i.start_ns + shift_ns, i.end_ns + shift_ns, i.label) for r in device.recordings for i in r.intervals
    ]


@dataclass(frozen=True)
class Ratio:
    """Events whose label is the recording's own for most of their time. `correct_ratio`: None without any to judge."""

    detections: int
    correct_ratio: float | None
    without_label: int  # events over several activities, none of which has half of the time; left out of the ratio


def judge(detections: Iterable[Detection], truth: Callable[[str, int, int], str]) -> Ratio:
    count = right = unlabelled = 0
    for d in detections:
        label = truth(d.node, d.start_ns, d.end_ns)
        count += 1
        unlabelled += not label
        right += label == d.label
    judged = count - unlabelled
    return Ratio(count, round(right / judged, 4) if judged else None, unlabelled)


def build(
    out: Path,
    devices: Sequence[Device],
    status: dict[str, Any],
    peaks_mb: dict[str, float],
    seconds: float,
    now_ns: int,
) -> dict[str, Any]:
    """The summary as a JSON object. The lake is read as it is now, so nothing should be under way."""
    lake = Lake(out / "lake")
    found = compare(out / "truth", lake)
    pairs = query.pair_counts(lake)
    detections = query.read_detections(lake)
    truth = Truth(devices)
    unseen_watches = {d.node for d in devices if d.person.group == UNSEEN and d.device == WATCH}
    by_node = [d for d in detections if d.node in unseen_watches]
    story = read_story(status)
    waiting = waiting_records(devices, out / "state", held_identities(lake))
    return {
        "chunks_accepted": accepted_chunks(out / "truth"),
        "chunks_in_lake": query.logical_identities(lake, "chunks").num_rows,
        "lost": found.lost - waiting,
        "logical_duplicates": found.logical_duplicates,
        "windows": int(status.get("windows") or 0),
        "pairs": pairs.pop("paired", 0),
        "pairs_refused": {**(status.get("pairs_refused") or {}), **pairs},
        "alignment": _alignment(story.serving or (story.candidates[-1] if story.candidates else None), status),
        "bundle": _bundle(out, status, now_ns),
        "detections": len(detections),
        "detections_correct_ratio": judge(detections, truth.label).correct_ratio,
        "rss_mb": {
            "collect": _peak(peaks_mb, ["collect"]),
            "detect": _peak(peaks_mb, ["detect"]),
            "hub": _peak(peaks_mb, HUB_ROLES),
        },
        "seconds": round(seconds, 1),
        # Beyond the fields above, which other tools read: what a person asks next.
        "records": {**asdict(found), "examples": list(found.examples), "waiting_in_outboxes": waiting},
        "watches_of_unseen_people": {**asdict(judge(by_node, truth.label)), **_by_version(by_node, truth.label)},
        "candidates": [_told(c) for c in story.candidates],
        "nodes_serving": dict(Counter(str(n.get("version")) for n in (status.get("nodes") or {}).values())),
        "rss_mb_by_process": {name: round(mb, 1) for name, mb in sorted(peaks_mb.items())},
    }


def accepted_chunks(truth_dir: Path) -> int:
    """Chunks in the nodes' truth logs, each identity once."""
    found = set()
    for path in sorted(truth_dir.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["kind"] == "chunk":
                found.add((record["site"], record["node"], record["epoch"], record["seq"]))
    return len(found)


def _peak(peaks_mb: dict[str, float], roles: Iterable[str]) -> float:
    """Of one role: its highest process. Of several: their sum, which is more than they ever had at one time."""
    return round(sum(peaks_mb.get(role, 0.0) for role in roles), 1)


def _alignment(candidate: Candidate | None, status: dict[str, Any]) -> dict[str, Any] | None:
    if candidate is None:
        return None
    run = next(r for r in status["runs"] if r["run"] == candidate.run)
    told = dict(run.get("alignment") or {})
    names = ["objective", "pairs", "unpaired_windows", "seconds", "macro_f1_before", "macro_f1_after"]
    names += ["macro_f1_interval", "baselines", "multimodal_macro_f1", "held_out_people"]
    return {name: told.get(name) for name in names}


def _bundle(out: Path, status: dict[str, Any], now_ns: int) -> dict[str, Any] | None:
    """The bundle that serves; `verified` is our own check of signature, hashes and contract, with the public key."""
    bundle = status.get("bundle")
    if not bundle:
        return None
    path = out / "aligner" / "bundles" / str(bundle["url"]).rsplit("/", 1)[-1]
    try:
        opened = open_bundle(path, [load_public_key(out / "keys" / "release.pub")], now_ns=now_ns, min_version=0)
        verified = opened.sha256 == bundle["sha256"]
    except (BundleError, OSError):
        verified = False
    named = {name: bundle.get(name) for name in ("version", "sha256")}
    return {**named, "verified": verified, "promoted": bool(bundle.get("promoted"))}


def _by_version(detections: Sequence[Detection], truth: Callable[[str, int, int], str]) -> dict[str, Any]:
    versions = sorted({d.bundle_version for d in detections})
    ratio = {str(v): judge([d for d in detections if d.bundle_version == v], truth).correct_ratio for v in versions}
    return {"correct_ratio_by_version": ratio}


def _told(candidate: Candidate) -> dict[str, Any]:
    told = asdict(candidate)
    return {
        name: told[name] for name in ("run", "outcome", "version", "pairs", "seconds", "stage_1", "before", "after")
    } | {"gates": {gate.gate: gate.passed for gate in candidate.gates}}


def problems(summary: dict[str, Any], *, complete: bool = True) -> list[str]:
    """What is wrong with a run; empty when it is sound. `complete`: nothing was under way any more at its end."""
    wrong = []
    waiting = summary["records"]["waiting_in_outboxes"]
    if not summary["chunks_accepted"]:
        wrong.append("no chunk was accepted by any node")
    if summary["chunks_accepted"] != summary["chunks_in_lake"] and not waiting:
        wrong.append(f"{summary['chunks_accepted']} chunks accepted, {summary['chunks_in_lake']} in the lake")
    for name in ("lost", "logical_duplicates"):
        if summary[name]:
            wrong.append(f"{name}: {summary[name]} ({'; '.join(summary['records']['examples'][:3])})")
    if summary["records"]["unexpected"]:
        wrong.append(f"{summary['records']['unexpected']} records in the lake that no node accepted")
    if waiting and complete:
        wrong.append(f"{waiting} records still wait in outboxes")
    if not summary["pairs"]:
        wrong.append("no pair was found")
    if not summary["pairs_refused"].get("clock_unsynchronised"):
        wrong.append("the wrong clock was not refused")
    alignment, bundle = summary["alignment"], summary["bundle"]
    if alignment is None:
        wrong.append("no alignment run ended")
    elif not all(_is_number(alignment[name]) for name in ("macro_f1_before", "macro_f1_after")):
        wrong.append("the alignment run has no scores")
    if bundle is None or not bundle["promoted"]:
        wrong.append("no bundle was released")
    elif not bundle["verified"]:
        wrong.append("the bundle that serves does not verify")
    if not summary["detections"]:
        wrong.append("nothing was detected")
    for role, limit_mb in (("collect", COLLECT_LIMIT_MB), ("detect", DETECT_LIMIT_MB)):
        if summary["rss_mb"][role] > limit_mb:
            wrong.append(f"a {role} process used {summary['rss_mb'][role]} MB, more than {limit_mb}")
    return wrong


def losses(summary: dict[str, Any]) -> list[str]:
    """The problems that no hurry excuses: what must hold at whatever moment the demonstration is ended."""
    return [f"{name}: {summary[name]}" for name in ("lost", "logical_duplicates") if summary[name]]


def waiting_records(devices: Iterable[Device], state_dir: Path, held: set[tuple[str, str, str, int]]) -> int:
    """Records that lie in an outbox and are not in the lake (`held`) yet: not lost, their node will send them."""
    count = 0
    for device in devices:
        path = state_dir / NODE_FILES[device.device] / device.person.name / device.node / "outbox.sqlite"
        if not path.exists():
            continue
        outbox = Outbox.open(path, SystemClock(), max_bytes=1, reserve_bytes=0)
        after = 0
        while records := outbox.pending(4_000_000, after):
            count += sum((device.person.name, device.node, outbox.epoch, r.seq) not in held for r in records)
            after = records[-1].seq
        outbox.close()
    return count


def held_identities(lake: Lake) -> set[tuple[str, str, str, int]]:
    """(site, node, epoch, seq) of every record that readers of the lake see."""
    found: set[tuple[str, str, str, int]] = set()
    for table in ("chunks", "gaps", "detections"):
        rows = query.logical_identities(lake, table)
        found.update(zip(*(rows[name].to_pylist() for name in ("site", "node", "epoch", "seq")), strict=True))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
