"""Which bytes to fetch next: a pure decision, made from the reads that one handle has seen.

A reader that goes forward gets a window ahead of it which doubles with every window that it uses up, from one
block to the configured limit, so that a long read keeps many ranges in flight and a short one costs little. Small
gaps (a reader that skips headers, or requests that the kernel reordered) keep the window; a jump closes it, and
random readers get what they ask for, rounded to a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from backends.base import KIB, MIB

BLOCK_SIZE: Final = 128 * KIB
"""What a random read is rounded to: the kernel's own default read-ahead, small enough for a database's page."""

FIRST_WINDOW: Final = 1 * MIB
"""What a reader is given on trust when it begins at the start of a file or continues where it was."""

MAX_GAP: Final = 2 * MIB
"""How far from the expected place, either way, a read may be and still count as going forward."""


@dataclass(frozen=True, slots=True)
class Wish:
    """The range that a read needs, block-aligned, and how far beyond it to fetch in the background."""

    start: int
    end: int
    ahead_end: int


class SequentialDetector:
    """The reads of one handle, as far as they tell where the next one will be."""

    def __init__(self, max_window: int) -> None:
        self._max_window = max_window
        self._expected = 0
        self._window = 0
        self._ahead_end = 0

    def observe(self, offset: int, length: int) -> Wish:
        """Note a read and return what to fetch for it; ends may lie beyond the end of the file."""
        end = offset + length
        start = offset - offset % BLOCK_SIZE
        rounded_end = end + -end % BLOCK_SIZE
        if abs(offset - self._expected) <= MAX_GAP:
            self._grow(end)
        else:
            self._window = 0
            self._ahead_end = 0
        self._expected = max(end, self._expected) if self._window else end
        return Wish(start, rounded_end, max(rounded_end, self._ahead_end))

    def _grow(self, end: int) -> None:
        if self._window == 0:
            self._window = min(FIRST_WINDOW, self._max_window)
            self._ahead_end = end + self._window
        elif end + self._window // 2 >= self._ahead_end:
            self._window = min(2 * self._window, self._max_window)
            self._ahead_end = end + self._window
