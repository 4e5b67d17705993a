from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infomae_stream import failpoints
from infomae_stream.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def run(armed: str, body: str) -> subprocess.CompletedProcess[str]:
    program = f"from infomae_stream.failpoints import reached\n{body}"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={failpoints.VARIABLE: armed, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_kill_comes_at_the_pass_that_was_asked_for() -> None:
    ended = run("lake.after_commit=kill@3", "for i in range(9): print(i, flush=True); reached('lake.after_commit')")
    assert (ended.returncode, ended.stdout) == (-9, "0\n1\n2\n")


def test_an_error_comes_once() -> None:
    ended = run("ingest.before_ack=error", "try: reached('ingest.before_ack')\nexcept OSError as e: print(e.errno)\n"
                "reached('ingest.before_ack')")  # fmt: skip
    assert (ended.returncode, ended.stdout) == (0, "5\n")


def test_nothing_is_armed_without_the_variable() -> None:
    assert run("", "[reached(name) for name in ('ingest.before_ack', 'lake.after_commit')]").returncode == 0


@pytest.mark.parametrize("text", ["nowhere=kill", "ingest.before_ack=explode", "ingest.before_ack=kill@x"])
def test_a_typing_error_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match=failpoints.VARIABLE):
        failpoints.parse(text)


def test_every_failpoint_stands_at_one_place_in_the_code() -> None:
    code = [
        p.read_text() for package in ("infomae_stream", "collectors", "storage") for p in (ROOT / package).rglob("*.py")
    ]
    for name in failpoints.FAILPOINTS:
        assert sum(text.count(f'reached("{name}")') for text in code) == 1, name
