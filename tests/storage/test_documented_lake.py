"""What docs/lake.md tells people to do without the product's own commands, done as it stands there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from storage import query
from storage.compaction import compact
from storage.lake import Lake
from tests.commands import run_command
from tests.hub_records import make_chunk, make_gap

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "lake.md"
CHECK = """
assert [c.shape for c in counts] == [(6, 100)] * 2
assert dict(duckdb.sql(query, params={"files": files}).fetchall()) == {"imu": 3}
"""


def test_the_snippet_for_other_tools_runs_as_it_stands(tmp_path: Path) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    one, other = make_chunk(1), make_chunk(2)
    seismic = [replace(c, spec=replace(c.spec, kind="seismic")) for c in (one, other)]
    Lake(tmp_path / "lake").append_chunks([*seismic, make_chunk(3)], 7)
    command = [sys.executable, "-c", snippet + CHECK]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def copy_log_first(lake: Path, copy: Path, meanwhile: Callable[[], None]) -> None:
    """Table by table, in the documented order."""
    for table in [log.parent for log in lake.glob("*/_delta_log")]:
        shutil.copytree(table / "_delta_log", copy / table.name / "_delta_log")
    meanwhile()
    for table in [log.parent for log in lake.glob("*/_delta_log")]:
        no_log = shutil.ignore_patterns("_delta_log")
        shutil.copytree(table, copy / table.name, ignore=no_log, dirs_exist_ok=True)


def test_a_backup_made_beside_ingest_and_compaction_is_whole(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    for seq in range(1, 11, 2):
        lake.commit_batch([make_chunk(seq)], [make_gap(seq + 1)], [], 7)

    def meanwhile() -> None:
        lake.append_chunks([make_chunk(11)], 7)
        assert compact(lake, fan_in=2).merges > 0

    copy_log_first(lake.path, tmp_path / "copy", meanwhile)
    verified = run_command("lake", "verify", "--lake", tmp_path / "copy")
    assert (verified.code, "10 records" in verified.out) == (0, True), verified
    assert [c.seq for c in query.read_chunks(Lake(tmp_path / "copy"))] == [1, 3, 5, 7, 9]
