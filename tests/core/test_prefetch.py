"""Which ranges are wished for, read by read."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import KIB, MIB
from fusefs.prefetch import (
    BLOCK_SIZE,
    FETCH_SIZE,
    FIRST_WINDOW,
    MAX_GAP,
    MAX_READERS,
    SequentialDetector,
)

MAX_WINDOW: Final = 32 * MIB


@given(reads=st.lists(st.tuples(st.integers(0, 100 * MIB), st.integers(1, MIB)), max_size=30))
def test_a_wish_covers_the_read_and_stays_in_bounds(reads: list[tuple[int, int]]) -> None:
    """Aligned to blocks, no more than a block too long at either end, and never further ahead than the window."""
    detector = SequentialDetector(MAX_WINDOW)
    for offset, length in reads:
        wish = detector.observe(offset, length)
        assert wish.start <= offset < wish.start + BLOCK_SIZE
        assert offset + length <= wish.end < offset + length + BLOCK_SIZE
        assert wish.start % BLOCK_SIZE == wish.end % BLOCK_SIZE == 0
        assert wish.end <= wish.ahead_end <= wish.end + MAX_WINDOW + 2 * MAX_GAP


def test_the_window_of_a_sequential_reader_doubles_to_its_limit() -> None:
    detector = SequentialDetector(MAX_WINDOW)
    windows: list[int] = []
    ahead_end = 0
    for end in range(128 * KIB, 200 * MIB, 128 * KIB):
        wish = detector.observe(end - 128 * KIB, 128 * KIB)
        assert wish.ahead_end > end, "something is always under way ahead of the reader"
        if wish.ahead_end != ahead_end:
            ahead_end = wish.ahead_end
            windows.append(ahead_end - end)
    doubling = [1, 2, 4, 8]
    assert windows[: len(doubling)] == [FIRST_WINDOW * times for times in doubling]
    assert MAX_WINDOW // 4 < windows[len(doubling)] <= MAX_WINDOW // 2
    assert all(MAX_WINDOW - FETCH_SIZE < window <= MAX_WINDOW for window in windows[len(doubling) + 1 :])


@pytest.mark.parametrize("max_window", [12 * MIB, 16 * MIB, 32 * MIB, 100 * MIB])
@pytest.mark.parametrize("start", [0, MIB, 77 * MIB + 128 * KIB])
def test_a_wide_window_ends_where_gets_do_and_is_filled_up_one_by_one(start: int, max_window: int) -> None:
    """So that each GET begins and ends at a multiple of its length, and there is always something under way."""
    detector = SequentialDetector(max_window)
    ends: list[int] = []
    for offset in range(start, start + 400 * MIB, 128 * KIB):
        wish = detector.observe(offset, 128 * KIB)
        if offset > start + 50 * MIB:
            assert (
                wish.end + min(FETCH_SIZE, max_window - FETCH_SIZE) <= wish.ahead_end <= wish.end + max_window
            )
            ends.append(wish.ahead_end)
    assert {end % FETCH_SIZE for end in ends} == {0}
    assert {after - before for before, after in pairwise(ends)} == {0, FETCH_SIZE}


def test_a_random_reader_gets_what_it_asks_for() -> None:
    detector = SequentialDetector(MAX_WINDOW)
    for offset in (50 * MIB, 10 * MIB, 90 * MIB, 30 * MIB):
        wish = detector.observe(offset, 8 * KIB)
        assert (wish.start, wish.end, wish.ahead_end) == (offset, offset + BLOCK_SIZE, offset + BLOCK_SIZE)


def test_a_small_gap_keeps_the_window_and_a_jump_closes_it() -> None:
    detector = SequentialDetector(MAX_WINDOW)
    detector.observe(0, MIB)
    assert detector.observe(MIB + MAX_GAP // 2, MIB).ahead_end > 2 * MIB + MAX_GAP // 2
    assert detector.observe(MIB, MIB).ahead_end > 2 * MIB, "requests that the kernel reordered"
    jump = detector.observe(80 * MIB, MIB)
    assert jump.ahead_end == jump.end
    assert detector.observe(81 * MIB, MIB).ahead_end > 82 * MIB, "it goes on from there"


def test_what_was_left_out_long_ago_is_a_jump() -> None:
    """A request can be late, but not by so much."""
    detector = SequentialDetector(MAX_WINDOW)
    for start in range(0, 64 * MIB, MIB):
        detector.observe(start, MIB // 2)
    late = detector.observe(62 * MIB + MIB // 2, 8 * KIB)
    assert late.ahead_end > 64 * MIB
    jump = detector.observe(30 * MIB + MIB // 2, 8 * KIB)
    assert jump.ahead_end == jump.end


@pytest.mark.parametrize("seek", [3 * MIB, 10 * MIB, 15 * MIB])
def test_a_seek_inside_the_window_keeps_it(seek: int) -> None:
    """Nothing more is fetched for the seek itself, and who was there before goes on as if there had been none."""
    detector, alone = SequentialDetector(MAX_WINDOW), SequentialDetector(MAX_WINDOW)
    before = [(detector.observe(start, MIB), alone.observe(start, MIB)) for start in range(0, 64 * MIB, MIB)]
    place = 64 * MIB + seek
    jump = detector.observe(place, MIB)
    assert jump.ahead_end == before[-1][0].ahead_end
    for start in range(place + MIB, place + 64 * MIB, MIB):
        assert detector.observe(start, MIB).ahead_end >= start + MIB + MAX_WINDOW // 2
    for start in range(64 * MIB, 96 * MIB, MIB):
        assert detector.observe(start, MIB) == alone.observe(start, MIB)


def test_no_window_means_no_read_ahead() -> None:
    detector = SequentialDetector(0)
    for offset in range(0, 10 * MIB, MIB):
        wish = detector.observe(offset, MIB)
        assert wish.ahead_end == wish.end


@given(start=st.integers(1, 300 * MIB), length=st.integers(1, MIB), count=st.integers(2, 40))
def test_a_reader_that_goes_backwards_is_a_random_one(start: int, length: int, count: int) -> None:
    detector = SequentialDetector(MAX_WINDOW)
    for offset in range(start, max(start - count * length, 0), -length):
        wish = detector.observe(offset, length)
        assert wish.ahead_end == wish.end


def test_who_has_read_forwards_and_turns_round_is_a_random_one() -> None:
    detector = SequentialDetector(MAX_WINDOW)
    for offset in range(0, 50 * MIB, MIB):
        detector.observe(offset, MIB)
    for offset in range(49 * MIB, 0, -MIB):
        wish = detector.observe(offset, MIB)
        assert wish.ahead_end == wish.end
    assert detector.observe(0, MIB).ahead_end == MIB
    assert detector.observe(MIB, MIB).ahead_end > 2 * MIB, "a second pass"


@given(order=st.permutations(range(3)), count=st.integers(1, 20))
def test_requests_that_the_kernel_reorders_keep_the_window(order: list[int], count: int) -> None:
    """Read-ahead sends several requests at once; what is fetched ahead grows as if they had come in order."""
    ordered, reordered = SequentialDetector(MAX_WINDOW), SequentialDetector(MAX_WINDOW)
    for detector in (ordered, reordered):
        detector.observe(0, MIB)
    for group in range(count):
        offsets = [(1 + 3 * group + place) * MIB for place in order]
        in_order = [ordered.observe(offset, MIB).ahead_end for offset in sorted(offsets)]
        as_they_came = [reordered.observe(offset, MIB).ahead_end for offset in offsets]
        assert all(ahead > offset + MIB for ahead, offset in zip(as_they_came, offsets, strict=True))
        assert max(as_they_came) >= min(max(in_order), max(offsets) + MIB + FIRST_WINDOW)


@given(turns=st.lists(st.integers(0, MAX_READERS - 1), max_size=200), length=st.integers(1, MIB))
def test_readers_of_one_handle_do_not_disturb_each_other(turns: list[int], length: int) -> None:
    """Each gets what it would have on a handle of its own, in whatever order their reads come."""
    together = SequentialDetector(MAX_WINDOW)
    alone = [SequentialDetector(MAX_WINDOW) for _ in range(MAX_READERS)]
    places = [(1 + number) * 1024 * MIB for number in range(MAX_READERS)]
    for number in turns:
        offset = places[number]
        assert together.observe(offset, length) == alone[number].observe(offset, length)
        places[number] = offset + length


def test_the_reader_that_was_not_heard_of_for_longest_is_forgotten() -> None:
    detector = SequentialDetector(MAX_WINDOW)
    places = [(1 + number) * 100 * MIB for number in range(MAX_READERS + 1)]
    for place in places:
        detector.observe(place, MIB)
    windows = [detector.observe(place + MIB, MIB).ahead_end - place - 2 * MIB for place in places[::-1]]
    assert windows == [FIRST_WINDOW] * MAX_READERS + [0]
