from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infomae_stream.cli import COMMANDS


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infomae_stream.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_listed_command_exists_and_says_what_it_does(command: str) -> None:
    module, function = COMMANDS[command][0].split(":")
    assert getattr(importlib.import_module(module), function).__doc__


def test_help_lists_the_commands_without_importing_them() -> None:
    code = "from infomae_stream.cli import app, sys; app(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    for command in COMMANDS:
        assert command in out
    for heavy in ("'torch'", "'pyarrow'", "'duckdb'", "'paho'", "'aligner'"):
        assert heavy not in out


def test_exit_codes_for_usage_and_for_bad_configuration() -> None:
    assert run("node", "fly").returncode == 2
    bad = run("node", "run", "--config", "/nonexistent.toml")
    assert bad.returncode == 78
    assert bad.stderr == "error: /nonexistent.toml: cannot read the file: No such file or directory\n"


def test_a_foreign_package_of_our_name_is_found_at_start(tmp_path: Path) -> None:
    (tmp_path / "storage.py").write_text("")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = "from infomae_stream.cli import main; main()"
    bad = subprocess.run([sys.executable, "-P", "-c", code], env=environ, capture_output=True, text=True, check=False)
    assert bad.returncode == 1
    assert "'storage' is taken from" in bad.stderr
    assert "environment of its own" in bad.stderr
