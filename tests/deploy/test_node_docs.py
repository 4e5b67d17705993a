"""docs/deploy-node.md shows commands that exist, with options that exist."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from collectors.deploying.doctor import examine
from infomae_stream.cli import COMMANDS
from tests.brokers import free_port

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "deploy-node.md").read_text(encoding="utf-8")
BLOCKS = "".join(re.findall(r"```(?:bash|console)\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
CALLS = [
    line.partition("infomae-stream ")[2] for line in BLOCKS.splitlines() if re.search(r"[$ ]infomae-stream [a-z]", line)
]


def options_of(path: str) -> set[str]:
    module, function = COMMANDS[path][0].split(":")
    single = typer.Typer(add_completion=False)
    single.command()(getattr(import_module(module), function))
    command: Any = typer.main.get_command(single)
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def test_the_page_has_the_whole_way() -> None:
    ways = {" ".join(shlex.split(call)[:2]) for call in CALLS}
    assert {
        "node devices",
        "node init",
        "node request",
        "hub enroll",
        "node doctor",
        "node install",
        "lake query",
    } <= ways


@pytest.mark.parametrize("call", CALLS)
def test_each_command_of_the_page_exists(call: str) -> None:
    words = shlex.split(call)
    path = " ".join(words[:2])
    assert path in COMMANDS
    given = {word for word in words[2:] if word.startswith("--")}
    assert given <= options_of(path), f"{path} has {sorted(options_of(path))}"


def test_the_checks_of_the_page_are_those_of_the_doctor(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(
        f'[metrics]\ncollect_port = {free_port()}\n[mqtt]\nport = 1\n[[nodes]]\nsite = "s"\nnode = "n"\n'
        'clock = { source = "declared" }\nsources = [{ type = "replay", path = "gone.wav" }]\n'
    )
    checks = {finding.check.split()[0] for finding in examine(tmp_path / "node.toml", 0.5)}
    shown = set(re.findall(r"^(?:ok|warning|failed) +([a-z]+)", PAGE, re.MULTILINE))
    assert checks == shown
