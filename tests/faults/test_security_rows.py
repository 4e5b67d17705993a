"""The row of poisoned messages, once, as it runs in the matrix."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.rows.poison import ROW


@pytest.mark.slow
@pytest.mark.skipif(bool(ROW.missing()), reason=ROW.missing())
def test_poison_becomes_dead_letters_one_to_one_and_costs_no_good_record(tmp_path: Path) -> None:
    result = ROW.trial(random.Random(11), tmp_path)
    assert result.passed and result.accepted > 10, result
