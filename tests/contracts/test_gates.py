"""Every gate in the table keeps the contract, and every file of the folder stands in the table."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import get_type_hints

import pytest

import aligner.gates
from aligner.gates import GATES, Candidate, Verdict
from aligner.registry import resolve
from infomae_stream.hub_config import GateSettings


def test_every_module_of_the_folder_is_listed_and_nothing_else() -> None:
    folder = Path(aligner.gates.__file__).parent
    modules = {p.stem for p in folder.glob("*.py")} - {"__init__"}
    assert modules == {entry.split(":")[0].removeprefix("aligner.gates.") for entry in GATES.values()}
    assert modules == set(GATES)


@pytest.mark.parametrize("name", GATES)
def test_a_gate_is_made_of_settings_and_judges_a_candidate(name: str) -> None:
    gate = resolve(GATES, name, "gates").make(GateSettings())
    hints = get_type_hints(gate.judge)
    assert hints == {"candidate": Candidate, "return": Verdict}
    assert inspect.getdoc(type(gate))
