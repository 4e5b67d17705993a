from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from storage.identities import IdentityIndex, SeqRanges


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 8))))
def test_ranges_hold_what_a_set_would(added: list[tuple[int, int]]) -> None:
    ranges, plain = SeqRanges(), set[int]()
    for first, length in added:
        ranges.add(first, first + length)
        plain |= set(range(first, first + length + 1))
    assert {n for n in range(80) if n in ranges} == plain
    for first in range(70):
        for last in range(first, 75):
            assert ranges.is_empty_within(first, last) == plain.isdisjoint(range(first, last + 1))
    found = list(ranges)
    assert all(a[1] + 1 < b[0] for a, b in pairwise(found)), "sorted, and joined where they touch"


def test_a_long_run_of_one_outbox_costs_one_range() -> None:
    index = IdentityIndex()
    for seq in (*range(0, 10_000, 2), *range(1, 10_000, 2)):
        index.add(("s01", "s01-phone", "e1"), seq, seq)
    assert index.range_count() == 1
    assert ("s01", "s01-phone", "e1", 9_999) in index
    assert ("s01", "s01-phone", "e2", 9_999) not in index
    assert index.knows_none(("s01", "s01-phone", "e2"), 0, 10_000)
    assert index.knows_none(("s01", "s01-phone", "e1"), 10_000, 10_000)
    assert not index.knows_none(("s01", "s01-phone", "e1"), 9_999, 20_000)
