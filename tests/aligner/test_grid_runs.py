from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aligner.grid_runs import GridRuns

runs = st.lists(st.tuples(st.integers(0, 60), st.integers(-2, 9)).map(lambda p: (p[0], p[0] + p[1])), max_size=12)


def members(pairs: list[tuple[int, int]]) -> set[int]:
    return {value for first, last in pairs for value in range(first, last + 1)}


@given(runs, runs, st.integers(-5, 70))
def test_sets_of_runs_are_sets(a: list[tuple[int, int]], b: list[tuple[int, int]], last: int) -> None:
    x, y = GridRuns.of(a), GridRuns.of(b)
    assert list(x) == sorted(members(a)) and len(x) == len(members(a))
    assert set(x | y) == members(a) | members(b)
    assert set(x & y) == members(a) & members(b)
    assert set(x.up_to(last)) == {v for v in members(a) if v <= last}


@given(runs, st.integers(1, 10), st.integers(0, 5))
def test_pieces_hold_every_member_once_and_none_is_too_long(
    a: list[tuple[int, int]], longest: int, bridge: int
) -> None:
    pieces = list(GridRuns.of(a).pieces(longest, bridge))
    spanned = [value for first, last in pieces for value in range(first, last + 1)]
    assert len(spanned) == len(set(spanned)) and members(a) <= set(spanned)
    assert all(last - first < longest for first, last in pieces)
