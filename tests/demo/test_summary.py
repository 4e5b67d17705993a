"""The summary is read from lake, truth logs and status; a run that is not sound is named so."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo import summary
from demo.configs import Device, devices_of
from demo.people import REDUCED
from demo.summary_table import summary_table
from infomae_stream.bundle import generate_keys, save_keys
from infomae_stream.clock import ManualClock
from infomae_stream.outbox import Accepted, Outbox
from infomae_stream.types import Chunk, ClockQuality, Detection, StreamId, StreamSpec
from storage.lake import Lake

STATUS = json.loads((Path(__file__).parent / "status.json").read_text())
ISSUE_FIELDS = {
    "chunks_accepted", "chunks_in_lake", "lost", "logical_duplicates", "windows", "pairs", "pairs_refused", "alignment",
    "bundle", "detections", "detections_correct_ratio", "rss_mb", "seconds",
}  # fmt: skip
ALIGNMENT_FIELDS = {
    "objective", "pairs", "unpaired_windows", "seconds", "macro_f1_before", "macro_f1_after", "macro_f1_interval",
    "baselines", "multimodal_macro_f1", "held_out_people",
}  # fmt: skip


@pytest.fixture(scope="module")
def devices() -> list[Device]:
    return devices_of(REDUCED)


@pytest.fixture
def node(tmp_path: Path, devices: list[Device]) -> tuple[Path, Outbox, list[Accepted]]:
    """A folder in which s13-watch has accepted three chunks, all noted in its truth log; the lake is empty."""
    path = tmp_path / "state" / "watches" / "s13" / "s13-watch" / "outbox.sqlite"
    outbox = Outbox.open(path, ManualClock(), max_bytes=10_000_000, reserve_bytes=0)
    spec = StreamSpec(StreamId("s13", "s13-watch", "imu"), "imu", 100.0, ("x",), ("m/s2",), (1.0,), "watch_imu")
    for n in range(3):
        samples_CN = np.full((1, 100), n, np.int16)
        outbox.put_chunk(spec, n * 1_000_000_000, samples_CN, ClockQuality("test", synchronised=True))
    accepted = outbox.commit()
    (tmp_path / "truth").mkdir()
    with (tmp_path / "truth" / "s13-watch.jsonl").open("w") as f:
        for a in accepted:
            line = {"kind": a.kind, "site": "s13", "node": "s13-watch", "stream": a.stream, "epoch": a.epoch}
            line |= {"seq": a.seq, "start_ns": a.start_ns, "n_samples": a.n_samples, "crc32": a.crc32}
            f.write(json.dumps(line) + "\n")
    save_keys(tmp_path / "keys", generate_keys()[0])
    return tmp_path, outbox, accepted


def build(out: Path, devices: list[Device], status: dict[str, Any] = STATUS) -> dict[str, Any]:
    return summary.build(out, devices, status, {"collect": 60.0, "ingest": 100.0, "align": 200.0}, 12.34, 1)


def stored(outbox: Outbox) -> list[Chunk]:
    return outbox.tail_chunks(0, 100)


def test_has_the_fields_that_were_promised(node: Any, devices: list[Device]) -> None:
    out, outbox, _ = node
    Lake(out / "lake").commit_batch(stored(outbox), [], [], 1)
    told = build(out, devices)
    assert set(told) >= ISSUE_FIELDS
    assert set(told["alignment"]) == ALIGNMENT_FIELDS
    assert set(told["alignment"]["baselines"]) == {"pseudolabel", "ridge_map", "own_labels"}
    assert set(told["bundle"]) == {"version", "sha256", "verified", "promoted"}
    assert told["rss_mb"] == {"collect": 60.0, "detect": 0.0, "hub": 300.0}
    assert json.loads(json.dumps(told)) == told
    assert summary_table(told)


def test_what_arrived_is_not_lost(node: Any, devices: list[Device]) -> None:
    out, outbox, _ = node
    Lake(out / "lake").commit_batch(stored(outbox), [], [], 1)
    told = build(out, devices)
    assert (told["chunks_accepted"], told["chunks_in_lake"], told["lost"], told["logical_duplicates"]) == (3, 3, 0, 0)


def test_what_still_waits_in_an_outbox_is_not_lost_but_told(node: Any, devices: list[Device]) -> None:
    out, outbox, _ = node
    Lake(out / "lake").commit_batch(stored(outbox)[:1], [], [], 1)
    told = build(out, devices)
    assert (told["lost"], told["records"]["waiting_in_outboxes"]) == (0, 2)
    assert any("wait in outboxes" in problem for problem in summary.problems(told))
    assert summary.losses(told) == []


def test_what_is_in_neither_is_lost(node: Any, devices: list[Device]) -> None:
    out, outbox, _ = node
    Lake(out / "lake").commit_batch(stored(outbox)[:2], [], [], 1)
    outbox.close()
    for file in (out / "state" / "watches" / "s13" / "s13-watch").iterdir():
        file.unlink()
    told = build(out, devices)
    assert told["lost"] == 1
    assert summary.losses(told) == ["lost: 1"]


def test_a_chunk_under_two_identities_is_a_duplicate(node: Any, devices: list[Device]) -> None:
    out, outbox, _ = node
    chunks = stored(outbox)
    twin = Chunk(chunks[0].spec, "other-epoch", 1, chunks[0].start_ns, chunks[0].samples_CN, chunks[0].clock)
    Lake(out / "lake").commit_batch([*chunks, twin], [], [], 1)
    told = build(out, devices)
    assert told["logical_duplicates"] == 1
    assert any("logical_duplicates: 1" in problem for problem in summary.problems(told))


def test_a_bundle_that_is_not_there_is_not_verified(node: Any, devices: list[Device]) -> None:
    out, _, _ = node
    told = build(out, devices)
    assert told["bundle"]["verified"] is False
    assert "the bundle that serves does not verify" in summary.problems(told)


def test_before_anything_has_happened(tmp_path: Path, devices: list[Device]) -> None:
    (tmp_path / "truth").mkdir()
    told = build(tmp_path, devices, {})
    assert told["alignment"] is None and told["bundle"] is None and told["detections_correct_ratio"] is None
    assert {"no chunk was accepted by any node", "no pair was found", "no bundle was released"} <= set(
        summary.problems(told)
    )
    assert summary_table(told)


def detection(device: Device, start_ns: int, label: str, version: int = 1) -> Detection:
    scores = {label: 0.8, "seated" if label != "seated" else "walking": 0.2}
    end_ns = start_ns + 2_000_000_000
    modalities = (f"{device.device}_imu",)
    return Detection(
        device.person.name, device.node, "e", 1, start_ns, end_ns, label, scores, modalities, version, "ab" * 32
    )


def test_detections_are_judged_by_the_recordings_own_labels(devices: list[Device]) -> None:
    device = next(d for d in devices if d.node == "s13-watch")
    long = next(i for i in device.recordings[0].intervals if i.end_ns - i.start_ns > 1.5e9)
    wrong = "walking" if long.label != "walking" else "seated"
    truth = summary.Truth(devices)
    judged = summary.judge(
        [
            detection(device, long.start_ns, long.label),
            detection(device, long.start_ns, long.label),
            detection(device, long.start_ns, wrong),
            detection(device, long.start_ns - 10**15, wrong),
        ],
        truth.label,
    )
    assert judged == summary.Ratio(4, round(2 / 3, 4), 1)


def test_labels_of_the_wrong_clock_are_read_on_that_clock(devices: list[Device]) -> None:
    device = next(d for d in devices if d.node == "s08-watch")
    first = device.recordings[0].intervals[0]
    truth = summary.Truth(devices)
    assert truth.label("s08-watch", first.start_ns - 1_000_000_000, first.start_ns + 150_000_000) == ""
    assert truth.label("s08-watch", first.start_ns + 180_000_000, first.end_ns + 180_000_000) == first.label
    assert truth.label("nobody", 0, 1) == ""


SOUND: dict[str, Any] = {
    "chunks_accepted": 10, "chunks_in_lake": 10, "lost": 0, "logical_duplicates": 0, "pairs": 5,
    "records": {"unexpected": 0, "waiting_in_outboxes": 0, "examples": ()},
    "pairs_refused": {"clock_unsynchronised": 3},
    "alignment": {"macro_f1_before": 0.2, "macro_f1_after": 0.6},
    "bundle": {"promoted": True, "verified": True},
    "detections": 7, "rss_mb": {"collect": 60.0, "detect": 120.0, "hub": 900.0},
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("lost",), 1),
        (("logical_duplicates",), 1),
        (("chunks_accepted",), 0),
        (("chunks_in_lake",), 9),
        (("records", "unexpected"), 1),
        (("records", "waiting_in_outboxes"), 1),
        (("pairs",), 0),
        (("pairs_refused",), {}),
        (("alignment",), None),
        (("alignment", "macro_f1_after"), None),
        (("alignment", "macro_f1_after"), float("nan")),
        (("bundle",), None),
        (("bundle", "verified"), False),
        (("bundle", "promoted"), False),
        (("detections",), 0),
        (("rss_mb", "collect"), 101.0),
        (("rss_mb", "detect"), 201.0),
    ],
)
def test_each_thing_that_is_not_sound_is_named(path: tuple[str, ...], value: Any) -> None:
    assert summary.problems(SOUND) == []
    broken = copy.deepcopy(SOUND)
    place = broken
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert summary.problems(broken)
