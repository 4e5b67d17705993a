"""Three simulated minutes of what benchmarks/soak.py does for a day: the program runs, and loses nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_short_soak_loses_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/soak.py", "--hours", "0.05", "--speed", "40"]
    command += ["--reload-every", "0.015", "--broker-every", "0.03", "--sample", "0.2", "--folder", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert ended.stdout, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["lost"] == told["logical_duplicates"] == 0, ended.stderr
    assert told["accepted"] >= 2 * 0.05 * 3600  # two streams, a chunk a second
    assert told["fds_last"] <= told["fds_first"] + 3
    assert told["step_failed"] == told["reload_failed"] == told["config_rejected"] == 0
