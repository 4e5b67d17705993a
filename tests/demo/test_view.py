"""The picture shows what the processes told, fits 100 x 40, and survives that nothing is there yet."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from demo.alignment_story import read_story
from demo.event_lines import line_of
from demo.people import CAST
from demo.picture import save_picture
from demo.plain import PlainView, standing
from demo.view import Scene, clock, render, size
from demo.watching import EventTail, Facts, parse_metrics
from infomae_stream.types import Detection

STATUS = json.loads((Path(__file__).parent / "status.json").read_text())
EVENTS = [json.loads(line) for line in (Path(__file__).parent / "events.jsonl").read_text().splitlines()]


def scene() -> Scene:
    addresses = [("broker", "mqtt://127.0.0.1:1"), ("metrics", "http://127.0.0.1:2/metrics"), ("files", "demo-out/")]
    return Scene(addresses, 335.0, lambda node, start_ns, end_ns: "walking", CAST)


def facts() -> Facts:
    found = Facts(status=STATUS)
    for p in CAST:
        for device in ("phone", "watch"):
            node = found.node(p.name, f"{p.name}-{device}")
            node.samples, node.connected, node.bundle_version, node.bundle_state = 6400.0, True, 1, "serving"
            node.synchronised = node.node != "s08-watch"
    found.pairs = {"paired": 640, "clock_unsynchronised": 228, "no_partner": 3422}
    found.windows = {"phone_imu": 3012, "watch_imu": 2987}
    found.lake_bytes, found.lag_s, found.n_detections = 7.2e6, 0.9, 1234
    for seq, label in enumerate(("walking", "turning")):
        scores = {label: 0.91, "seated": 0.09}
        found.detections.append(
            Detection("s14", "s14-watch", "e", seq, 0, 2_000_000_000, label, scores, ("watch_imu",), 1, "ab" * 32)
        )
    found.events.extend(EVENTS)
    return found


def drawn(shown: Facts, width: int = 100, height: int = 40) -> list[str]:
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None, record=True
    )
    console.print(render(scene(), shown))
    return console.export_text().splitlines()


def test_picture_fits_the_terminal() -> None:
    lines = drawn(facts())
    assert len(lines) == 40
    assert max(len(line) for line in lines) <= 100


def test_picture_tells_the_story() -> None:
    text = "\n".join(drawn(facts()))
    run = STATUS["runs"][0]["alignment"]
    for told in (
        "640",
        "clock unsynchronised",
        "clock not synchronised: s08-watch",
        f"{run['macro_f1_before']:.2f}",
        f"{run['macro_f1_after']:.2f}",
        f"[{run['macro_f1_interval'][0]:.2f}, {run['macro_f1_interval'][1]:.2f}]",
        f"{run['baselines']['ridge_map']:.2f}",
        "released as v1",
        "v1 5/5",
        "s14-watch",
        "2.0 s",
        "0.91",
        "1,234",
    ):
        assert told in text, f"{told} is not in the picture:\n{text}"


def test_picture_can_be_saved_and_fetches_nothing(tmp_path: Path) -> None:
    save_picture(scene(), facts(), tmp_path / "view.svg")
    svg = (tmp_path / "view.svg").read_text()
    assert svg.startswith("<svg") and "s14-watch" in svg and "@font-face" not in svg
    assert set(re.findall(r"https?://[^\s\"<]+", svg)) <= {
        "http://www.w3.org/2000/svg",
        "https://www.textualize.io",
        "http://127.0.0.1:2/metrics",
    }


def test_picture_of_nothing_yet() -> None:
    lines = drawn(Facts())
    assert len(lines) == 40
    assert "no candidate yet" in "\n".join(lines)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 15), (200, 60)])
def test_picture_on_other_terminals(width: int, height: int) -> None:
    lines = drawn(facts(), width, height)
    assert len(lines) == height and max(map(len, lines)) <= width


def test_later_candidate_that_is_not_better_is_told() -> None:
    status = json.loads(json.dumps(STATUS))
    second: dict[str, Any] = json.loads(json.dumps(STATUS["runs"][0]))
    second |= {"run": 2, "outcome": "not_promoted", "version": 0, "reasons": ["better_than_serving: not above"]}
    second["verdicts"] = [
        {"gate": "better_than_serving", "passed": False, "value": 0.6, "limit": 0.6, "reason": "macro-F1 0.6"}
    ]
    status["runs"].append(second)
    shown = facts()
    shown.status = status
    text = "\n".join(drawn(shown))
    assert "candidate 2: not promoted" in text and "✗ macro-F1 0.6" in text
    assert "candidate 1: released as v1" in text
    story = read_story(status)
    assert story.serving is not None and story.serving.run == 1


def test_training_shows_stage_and_time_left() -> None:
    shown = facts()
    shown.status = {
        **STATUS,
        "training": {
            "run": 2,
            "stage": "align",
            "done": 120,
            "total": 400,
            "eta_s": 75.0,
            "metrics": {"distance": 0.125},
        },
    }
    text = "\n".join(drawn(shown))
    assert "align" in text and "120/400" in text and "1:15 left" in text and "distance 0.125" in text


def test_warnings_and_errors_are_always_told_and_chatter_is_not() -> None:
    unknown = {"ts": 0.0, "level": "error", "event": "something_new", "process": "hub", "reason": "x"}
    line = line_of(unknown)
    assert line is not None and line.tone == "bad" and "something_new reason=x" in line.text
    assert line_of({**unknown, "level": "info"}) is None
    assert line_of({**unknown, "level": "info", "event": "training_progress"}) is None


def test_event_with_other_fields_than_expected_is_still_told() -> None:
    line = line_of({"ts": 0.0, "level": "info", "event": "bundle_released", "process": "hub", "edition": 3})
    assert line is not None and "edition=3" in line.text


def test_recorded_decisions_have_words() -> None:
    told = {e["event"] for e in EVENTS if (line := line_of(e)) is not None and "=" not in line.text.split("(")[0]}
    assert {"alignment_started", "alignment_evaluated", "bundle_released", "gate_verdict", "sources_finished"} <= told


def test_plain_lines_tell_the_same(tmp_path: Path) -> None:
    out = io.StringIO()
    view = PlainView(scene(), Console(file=out, width=80))
    with view:
        view.show(facts(), EVENTS, "watches detect")
        view.show(facts(), [], "watches detect")
    text = out.getvalue()
    assert text.count("-- watches detect") == 1
    assert "pairs 640" in text and "clock_unsynchronised 228" in text and "did walking" in text
    assert all("\x1b" not in line for line in text.splitlines())
    assert "34/34 nodes" in standing(facts())


def test_log_tail_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    log = tmp_path / "hub.jsonl"
    tail = EventTail(log, "hub")
    assert tail.read() == []
    log.write_bytes(b'{"ts": 1, "level": "info", "event": "a"}\n{"ts": 2, "ev')
    assert [e["event"] for e in tail.read()] == ["a"]
    with log.open("ab") as f:
        f.write(b'ent": "b", "level": "info"}\nTraceback (most recent call last):\n[1]\n')
    found = tail.read()
    assert [e["event"] for e in found] == ["b", "output", "output"]
    assert found[1]["text"].startswith("Traceback") and found[0]["process"] == "hub"
    assert tail.read() == []


def test_metrics_are_read_with_their_labels() -> None:
    text = '# HELP a_total x\n# TYPE a_total counter\na_total{node="n",site="s"} 3.0\n'
    assert parse_metrics(text)["a_total"] == [({"node": "n", "site": "s"}, 3.0)]


def test_units_for_people() -> None:
    assert [size(0), size(812), size(14_000), size(3.2e6), size(7e9)] == ["0 B", "812 B", "14 kB", "3.2 MB", "7.0 GB"]
    assert [clock(-1), clock(59.9), clock(61)] == ["0:00", "0:59", "1:01"]
