"""Which ranges are wished for, read by read."""

from __future__ import annotations

from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from backends.base import KIB, MIB
from fusefs.prefetch import BLOCK_SIZE, FIRST_WINDOW, MAX_GAP, SequentialDetector

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
    widest = 0
    for offset in range(0, 200 * MIB, 128 * KIB):
        wish = detector.observe(offset, 128 * KIB)
        assert wish.ahead_end > offset + 128 * KIB, "something is always under way ahead of the reader"
        widest = max(widest, wish.ahead_end - offset - 128 * KIB)
        if offset == 0:
            assert widest == FIRST_WINDOW
    assert widest == MAX_WINDOW


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


def test_no_window_means_no_read_ahead() -> None:
    detector = SequentialDetector(0)
    for offset in range(0, 10 * MIB, MIB):
        wish = detector.observe(offset, MIB)
        assert wish.ahead_end == wish.end
