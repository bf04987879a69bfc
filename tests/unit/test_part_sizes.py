"""The ladder of part sizes, from the first part to the largest object."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import GIB, MIB, S3_LIMITS, Limits
from backends.errors import EntityTooLarge
from backends.part_sizes import PartSizes

first_sizes = st.integers(5 * MIB, 4 * GIB)


@given(first=first_sizes)
def test_all_parts_together_hold_the_largest_object(first: int) -> None:
    assert PartSizes(first).part(S3_LIMITS.max_part_number).end >= S3_LIMITS.max_object_size


@given(first=first_sizes, number=st.integers(1, S3_LIMITS.max_part_number - 1))
def test_parts_follow_each_other_and_never_shrink(first: int, number: int) -> None:
    sizes = PartSizes(first)
    part, following = sizes.part(number), sizes.part(number + 1)
    assert part.end == following.start
    assert first <= part.end - part.start <= following.end - following.start
    assert following.end - following.start <= S3_LIMITS.max_part_size - S3_LIMITS.min_part_size


@given(first=first_sizes, number=st.integers(1, S3_LIMITS.max_part_number))
def test_a_part_is_as_large_as_any_of_its_bytes_says(first: int, number: int) -> None:
    sizes = PartSizes(first)
    part = sizes.part(number)
    for offset in (part.start, part.end - 1):
        assert sizes.size_at(offset) == part.end - part.start


def test_first_parts_are_small_and_later_ones_grow_slowly() -> None:
    """A stream of 50 GiB holds no part of more than 64 MiB."""
    sizes = PartSizes(8 * MIB)
    assert sizes.first_part_size == 8 * MIB
    assert sizes.part(1_000) == (1_000, 999 * 8 * MIB, 8_000 * MIB)
    assert sizes.size_at(50 * GIB) <= 64 * MIB


def test_boundaries_are_multiples_of_the_first_part() -> None:
    sizes = PartSizes(8 * MIB)
    assert all(sizes.part(number).start % (8 * MIB) == 0 for number in range(1, 10_001, 250))


def test_there_is_nothing_past_the_last_part() -> None:
    sizes = PartSizes(5 * MIB)
    with pytest.raises(EntityTooLarge):
        sizes.part(10_001)


@pytest.mark.parametrize("size", [5 * MIB - 1, 5 * GIB - 5 * MIB + 1])
def test_a_first_part_that_the_store_would_refuse_is_a_value_error(size: int) -> None:
    with pytest.raises(ValueError, match="a part has"):
        PartSizes(size)


def test_limits_that_contradict_each_other_are_a_value_error() -> None:
    limits = Limits(min_part_size=1, max_part_size=10, max_part_number=5, max_object_size=1_000)
    with pytest.raises(ValueError, match="do not reach"):
        PartSizes(5, limits)
