"""The suite finds what was broken on purpose."""

from __future__ import annotations

import pytest

from tests.faults.mutants import MUTANTS, Mutant, failure


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_found_and_the_code_as_it_is_passes(mutant: Mutant) -> None:
    if reason := mutant.missing():
        pytest.skip(reason)
    assert failure(mutant, faulty=False) == ""
    said = failure(mutant, faulty=True)
    print(f"\n{mutant.name}: {said[:300]}")
    assert said
