"""Interval sets, against a model that keeps every byte's number in a Python set."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fusefs.extents import Extent, ExtentSet, joined

LIMIT = 60
positions = st.integers(0, LIMIT)
ranges = st.tuples(positions, positions)
range_lists = st.lists(ranges, max_size=12)


def bytes_of(extents: ExtentSet | list[Extent]) -> set[int]:
    return {position for extent in extents for position in range(*extent)}


def model_of(added: list[tuple[int, int]]) -> set[int]:
    return {position for start, end in added for position in range(start, end)}


class ExtentSetAgainstSetOfInts(RuleBasedStateMachine):
    """Any order of changes leaves the set equal to the model, and in its normal form."""

    def __init__(self) -> None:
        super().__init__()
        self.extents = ExtentSet()
        self.model: set[int] = set()

    @rule(changed=ranges)
    def add(self, changed: tuple[int, int]) -> None:
        self.extents.add(*changed)
        self.model |= set(range(*changed))

    @rule(changed=ranges)
    def remove(self, changed: tuple[int, int]) -> None:
        self.extents.remove(*changed)
        self.model -= set(range(*changed))

    @rule(changed=range_lists)
    def remove_all(self, changed: list[tuple[int, int]]) -> None:
        self.extents.remove_all(changed)
        self.model -= model_of(changed)

    @rule(size=positions)
    def truncate(self, size: int) -> None:
        self.extents.truncate(size)
        self.model = {position for position in self.model if position < size}

    @rule(asked=ranges)
    def ask(self, asked: tuple[int, int]) -> None:
        wanted = set(range(*asked))
        assert bytes_of(self.extents.intersect(*asked)) == wanted & self.model
        assert bytes_of(self.extents.gaps(*asked)) == wanted - self.model
        assert self.extents.covers(*asked) == (wanted <= self.model)

    @invariant()
    def holds_the_same_bytes(self) -> None:
        assert bytes_of(self.extents) == self.model
        assert self.extents.total == len(self.model)
        assert self.extents.end == max(self.model, default=-1) + 1
        assert bool(self.extents) == bool(self.model)

    @invariant()
    def is_in_normal_form(self) -> None:
        """No extent is empty, and none touches the next."""
        found = list(self.extents)
        assert all(extent.length > 0 for extent in found)
        assert all(one.end < other.start for one, other in pairwise(found))
        assert len(self.extents) == len(found)


TestExtentSetAgainstSetOfInts = ExtentSetAgainstSetOfInts.TestCase


@given(added=range_lists, asked=ranges)
def test_present_and_missing_tile_a_range(added: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    extents = ExtentSet(added)
    tiles = sorted(extents.intersect(*asked) + extents.gaps(*asked))
    start, end = asked
    for tile in tiles:
        assert tile.start == start < tile.end
        start = tile.end
    assert start == max(asked[0], end)


@given(one=range_lists, other=range_lists)
def test_sets_with_the_same_bytes_are_equal(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    """However they came to hold them."""
    assert (ExtentSet(one) == ExtentSet(other)) == (model_of(one) == model_of(other))


@given(added=range_lists, removed=range_lists)
def test_ranges_that_are_removed_together_go_as_one_by_one(
    added: list[tuple[int, int]], removed: list[tuple[int, int]]
) -> None:
    """In whatever order they come, and where they overlap."""
    together, one_by_one = ExtentSet(added), ExtentSet(added)
    together.remove_all(removed)
    for extent in removed:
        one_by_one.remove(*extent)
    assert together == one_by_one
    assert together.total == one_by_one.total


def test_a_copy_changes_on_its_own() -> None:
    original = ExtentSet([(0, 10), (20, 30)])
    twin = original.copy()
    assert twin == original
    twin.remove(5, 25)
    assert list(original) == [Extent(0, 10), Extent(20, 30)]
    assert list(twin) == [Extent(0, 5), Extent(25, 30)]
    assert (original.total, twin.total) == (20, 10)


def test_touching_ranges_become_one() -> None:
    assert list(ExtentSet([(10, 20), (30, 40), (20, 30)])) == [Extent(10, 40)]


def test_a_reversed_range_is_empty() -> None:
    extents = ExtentSet([(0, 10)])
    extents.add(8, 3)
    extents.remove(8, 3)
    assert list(extents) == [Extent(0, 10)]
    assert extents.covers(50, 40)
    assert extents.gaps(50, 40) == []
    assert extents.intersect(8, 3) == []


def test_a_set_differs_from_other_things_and_has_no_hash() -> None:
    assert ExtentSet() != []
    with pytest.raises(TypeError):
        hash(ExtentSet())


def test_it_says_what_it_holds() -> None:
    assert repr(ExtentSet([(3, 5)])) == "ExtentSet([(3, 5)])"


def test_what_is_put_into_one_set_is_in_no_other() -> None:
    """Sets that nothing was put into share what they are made of."""
    one, other = ExtentSet(), ExtentSet()
    one.add(1, 2)
    other.remove(0, 9)
    other.remove_all([(0, 9)])
    assert (list(one), list(other), list(ExtentSet())) == ([Extent(1, 2)], [], [])


@given(range_lists, st.integers(0, 20))
def test_extents_that_are_near_are_joined(extents: list[tuple[int, int]], distance: int) -> None:
    """All bytes of the set, and of what lies between no more than is near; what is left apart is not."""
    found = list(joined(ExtentSet(extents), distance))
    expected = ExtentSet(extents)
    for gap in ExtentSet(extents).gaps(0, expected.end):
        if gap.start > 0 and gap.length <= distance:
            expected.add(*gap)
    assert found == list(expected)
