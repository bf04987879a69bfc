"""Plans for uploads: legal for the store, and the cheapest there are, against a search over all plans."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import groupby
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backends.base import GIB, KIB, MIB, S3_LIMITS, TIB, Limits
from backends.errors import EntityTooLarge
from backends.part_sizes import PartSizes
from fusefs import upload_plan
from fusefs.extents import ExtentSet
from fusefs.upload_plan import CopyRange, Multipart, SinglePut, UploadRange, plan

SMALL = Limits(
    min_part_size=3, max_part_size=12, max_copy_size=10, max_part_number=1_000, max_object_size=3_000
)
FEW_PARTS = Limits(
    min_part_size=2, max_part_size=100, max_copy_size=40, max_part_number=7, max_object_size=200
)
PART = 8 * MIB


@st.composite
def files(draw: st.DrawFn, max_size: int = 60) -> tuple[int, ExtentSet, int | None]:
    """Draw a file: its size, what is dirty, and the size of its base."""
    size = draw(st.integers(0, max_size))
    base_size = draw(st.none() | st.integers(0, max_size))
    places = st.integers(0, size)
    short = st.builds(lambda start, length: (start, min(size, start + length)), places, st.integers(1, 6))
    dirty = ExtentSet(draw(st.lists(st.tuples(places, places) | short, max_size=6)))
    dirty.add(base_size or 0, size)
    return size, dirty, base_size


def parts_of(
    size: int,
    dirty: ExtentSet,
    base_size: int | None,
    *,
    part_size: int = PART,
    limits: Limits = S3_LIMITS,
    can_copy: bool = True,
) -> tuple[UploadRange | CopyRange, ...]:
    decided = plan(size, dirty, base_size, part_size=part_size, limits=limits, can_copy=can_copy)
    assert isinstance(decided, Multipart)
    return decided.parts


def assert_legal(
    parts: tuple[UploadRange | CopyRange, ...], size: int, dirty: ExtentSet, limits: Limits = S3_LIMITS
) -> None:
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    assert len(parts) <= limits.max_part_number
    assert [part.start for part in parts] == [0, *(part.end for part in parts[:-1])]
    assert parts[-1].end == size
    assert all(part.end - part.start >= limits.min_part_size for part in parts[:-1])
    assert parts[-1].start < size
    for part in parts:
        if isinstance(part, CopyRange):
            assert not dirty.intersect(part.start, part.end)
            assert part.end - part.start <= limits.max_copy_size
        else:
            assert part.end - part.start <= limits.max_part_size


def bytes_sent(parts: Iterable[UploadRange | CopyRange]) -> int:
    return sum(part.end - part.start for part in parts if isinstance(part, UploadRange))


def uploaded_runs(parts: Iterable[UploadRange | CopyRange]) -> list[tuple[int, int]]:
    """Return what goes up without a copy in between, and in how many parts."""
    runs = [list(run) for kind, run in groupby(parts, key=type) if kind is UploadRange]
    return [(bytes_sent(run), len(run)) for run in runs]


def requests(parts: tuple[UploadRange | CopyRange, ...]) -> int:
    """Count copies, and neighbouring uploads as one: how those are cut is the size of a part."""
    return len(uploaded_runs(parts)) + sum(isinstance(part, CopyRange) for part in parts)


def cheapest(size: int, dirty: ExtentSet, limits: Limits) -> tuple[int, int]:
    """Try every way to cut the file and return the fewest bytes sent and, among equals, the fewest requests."""
    impossible = (size + 1, 0)

    @cache
    def from_here(start: int, *, after_upload: bool) -> tuple[int, int]:
        if start == size:
            return 0, 0
        options = [impossible]
        for end in range(start + 1, size + 1):
            if end - start < limits.min_part_size and end != size:
                continue
            if not after_upload:
                sent, pieces = from_here(end, after_upload=True)
                options.append((sent + end - start, pieces + 1))
            if end - start <= limits.max_copy_size and not dirty.intersect(start, end):
                sent, pieces = from_here(end, after_upload=False)
                options.append((sent, pieces + 1))
        return min(options)

    return from_here(0, after_upload=False)


@given(file=files(), part_size=st.integers(3, 9), can_copy=st.booleans())
def test_every_plan_is_legal(file: tuple[int, ExtentSet, int | None], part_size: int, can_copy: bool) -> None:
    """Its parts tile the file, no limit of the store is passed, and only clean bytes are copied."""
    size, dirty, base_size = file
    decided = plan(size, dirty, base_size, part_size=part_size, limits=SMALL, can_copy=can_copy)
    if size < part_size:
        assert decided == SinglePut()
        return
    assert isinstance(decided, Multipart)
    assert_legal(decided.parts, size, dirty, SMALL)
    if not can_copy or base_size is None:
        assert bytes_sent(decided.parts) == size


@st.composite
def changes(draw: st.DrawFn) -> tuple[int, ExtentSet, int | None]:
    """Draw a file that has changed in places which are near each other: what to copy is not plain to see."""
    lengths = st.tuples(st.integers(1, 4), st.integers(1, 12))
    size = draw(st.integers(0, 12))
    dirty = ExtentSet()
    for changed, clean in draw(st.lists(lengths, min_size=1, max_size=7)):
        dirty.add(size, size + changed)
        size += changed + clean
    size = draw(st.sampled_from([size, dirty.end]))
    return size, dirty, size


def changed_at(size: int, *places: tuple[int, int]) -> tuple[int, ExtentSet, int | None]:
    return size, ExtentSet(places), size


@given(file=files() | changes())
@settings(max_examples=500)
@example(changed_at(19, (3, 4), (9, 11), (14, 16), (18, 19)))  # more goes up first, so that a copy is left
@example(changed_at(17, (1, 2), (5, 8), (11, 12), (16, 17)))  # two clean ranges in a row go up
@example(changed_at(30, (2, 3), (6, 7), (11, 13), (25, 27)))  # which of two goes up spares a copy later
@example(changed_at(40, (6, 7), (10, 11), (14, 15), (27, 28)))
@example(changed_at(38, (11, 13), (24, 26), (37, 38)))  # either of two ranges can be a copy less
def test_no_legal_plan_sends_fewer_bytes(file: tuple[int, ExtentSet, int | None]) -> None:
    """Nor as few in fewer requests."""
    size, dirty, base_size = file
    if size < SMALL.min_part_size or min(size, base_size or 0) <= SMALL.min_part_size:
        return
    parts = parts_of(size, dirty, base_size, part_size=3, limits=SMALL)
    assert (bytes_sent(parts), requests(parts)) == cheapest(size, dirty, SMALL)


@given(file=files(), part_size=st.integers(3, 9))
def test_requests_are_bounded(file: tuple[int, ExtentSet, int | None], part_size: int) -> None:
    """A part per run, and one more wherever a run is longer than a part or a copy may be."""
    size, dirty, base_size = file
    if size < part_size:
        return
    parts = parts_of(size, dirty, base_size, part_size=part_size, limits=SMALL)
    assert len(parts) <= 2 * len(dirty) + 1 + size // part_size + size // SMALL.max_copy_size
    assert all(pieces <= -(-sent // part_size) for sent, pieces in uploaded_runs(parts))


@given(file=files(max_size=200), part_size=st.integers(2, 90))
def test_a_fragmented_file_fits_into_the_parts_there_are(
    file: tuple[int, ExtentSet, int | None], part_size: int
) -> None:
    size, dirty, base_size = file
    if size >= part_size:
        assert_legal(
            parts_of(size, dirty, base_size, part_size=part_size, limits=FEW_PARTS), size, dirty, FEW_PARTS
        )


def test_the_longest_clean_ranges_are_copied_where_not_all_can_be() -> None:
    dirty = ExtentSet([(40 * index, 40 * index + 10 + index) for index in range(5)])
    parts = parts_of(200, dirty, 200, part_size=90, limits=FEW_PARTS)
    assert [(part.start, part.end) for part in parts if isinstance(part, CopyRange)] == [
        (10, 40),
        (51, 80),
        (92, 120),
    ]


def test_less_than_a_part_is_one_put() -> None:
    assert plan(0, ExtentSet(), None, part_size=PART) == SinglePut()
    assert plan(PART - 1, ExtentSet([(0, 5)]), PART - 1, part_size=PART) == SinglePut()


def test_a_new_file_is_cut_as_a_stream() -> None:
    """Part k holds what part k of a stream holds, so parts that went up earlier are still good."""
    size = 20 * GIB + 12_345
    parts = parts_of(size, ExtentSet([(0, size)]), None)
    sizes = PartSizes(PART)
    assert all((part.number, part.start, part.end) == sizes.part(part.number) for part in parts[:-1])
    assert_legal(parts, size, ExtentSet([(0, size)]))


def test_an_append_copies_the_base_and_uploads_the_rest() -> None:
    dirty = ExtentSet([(GIB, GIB + KIB)])
    assert parts_of(GIB + KIB, dirty, GIB) == (CopyRange(1, 0, GIB), UploadRange(2, GIB, GIB + KIB))


def test_a_change_in_the_middle_uploads_one_small_part() -> None:
    dirty = ExtentSet([(500 * MIB, 500 * MIB + 8 * KIB)])
    parts = parts_of(GIB, dirty, GIB)
    assert [type(part) for part in parts] == [CopyRange, UploadRange, CopyRange]
    assert bytes_sent(parts) == 5 * MIB
    assert_legal(parts, GIB, dirty)


def test_a_change_at_the_start_uploads_one_small_part() -> None:
    parts = parts_of(GIB, ExtentSet([(0, 1)]), GIB)
    assert parts == (UploadRange(1, 0, 5 * MIB), CopyRange(2, 5 * MIB, GIB))


def test_a_cut_file_is_copied() -> None:
    assert parts_of(100 * MIB, ExtentSet(), GIB) == (CopyRange(1, 0, 100 * MIB),)


def test_copies_are_as_long_as_the_store_allows() -> None:
    dirty = ExtentSet([(12 * GIB, 12 * GIB + KIB)])
    parts = parts_of(12 * GIB + KIB, dirty, 12 * GIB)
    assert [part.end for part in parts] == [4 * GIB, 8 * GIB, 12 * GIB, 12 * GIB + KIB]


def test_a_part_is_widened_where_that_spares_a_copy() -> None:
    """What a small change takes from its neighbours, it takes from the one that is a little too long for one copy."""
    for change in (2 * GIB, 5 * GIB):
        size = change + 8 * KIB + 7 * GIB - change + 100
        dirty = ExtentSet([(change, change + 8 * KIB)])
        parts = parts_of(size, dirty, size)
        assert [type(part) for part in parts] == [CopyRange, UploadRange, CopyRange]
        assert bytes_sent(parts) == 5 * MIB
        assert_legal(parts, size, dirty)


def test_nothing_is_copied_out_of_an_object_of_one_minimum_part() -> None:
    """S3 refuses to copy a range of an object that is not larger than 5 MiB."""
    size = 20 * MIB
    dirty = ExtentSet([(5 * MIB, size)])
    assert bytes_sent(parts_of(size, dirty, 5 * MIB)) == size
    assert bytes_sent(parts_of(size, ExtentSet([(5 * MIB + 1, size)]), 5 * MIB + 1)) < size


def test_a_store_that_copies_no_parts_gets_every_byte() -> None:
    parts = parts_of(GIB, ExtentSet([(0, 1)]), GIB, can_copy=False)
    assert bytes_sent(parts) == GIB


def test_a_hundred_thousand_changes_are_planned() -> None:
    """They fit into 10,000 parts, and what can be spared in them is copied."""
    size = TIB
    step = size // 100_000
    dirty = ExtentSet((step * index, step * index + 4 * KIB) for index in range(100_000))
    parts = parts_of(size, dirty, size)
    assert_legal(parts, size, dirty)
    assert len(parts) > 9_900


@pytest.mark.parametrize("step", [12 * MIB, 20 * MIB, 40 * MIB])
def test_each_clean_range_is_looked_at_a_few_times(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However far a file is from fitting into 10,000 parts: nothing else runs while it is planned."""
    looks = 0
    extended = upload_plan._extended

    def counted(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        return extended(*arguments)

    monkeypatch.setattr(upload_plan, "_extended", counted)
    random = Random(step)
    starts = [step * index + random.randrange(step - 4 * MIB) for index in range(10_000)]
    size = 10_000 * step
    dirty = ExtentSet((start, start + 4 * KIB) for start in starts)
    parts = parts_of(size, dirty, size)
    assert_legal(parts, size, dirty)
    assert len(parts) >= 9_999
    assert looks <= 10 * len(dirty)


def test_the_largest_object_is_planned() -> None:
    size = S3_LIMITS.max_object_size
    everything = ExtentSet([(0, size)])
    for part_size in (5 * MIB, PART, 512 * MIB):
        assert_legal(parts_of(size, everything, None, part_size=part_size), size, everything)
    dirty = ExtentSet([(size // 2, size // 2 + 1)])
    assert bytes_sent(parts_of(size, dirty, size)) == 5 * MIB


def test_a_larger_object_is_refused() -> None:
    size = S3_LIMITS.max_object_size + 1
    with pytest.raises(EntityTooLarge):
        plan(size, ExtentSet([(0, size)]), None, part_size=PART)


@pytest.mark.parametrize(
    ("size", "dirty", "base_size"),
    [
        (100, ExtentSet([(0, 99)]), None),
        (100, ExtentSet([(60, 100)]), 50),
        (100, ExtentSet([(0, 101)]), None),
    ],
    ids=["hole at the end", "hole beyond the base", "dirty beyond the end"],
)
def test_bytes_that_are_nowhere_are_a_defect(size: int, dirty: ExtentSet, base_size: int | None) -> None:
    with pytest.raises(ValueError, match="dirty ranges do not fit"):
        plan(size, dirty, base_size, part_size=PART)
