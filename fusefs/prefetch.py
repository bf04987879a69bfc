"""Which bytes to fetch next: a pure decision, made from the reads that one handle has seen.

A reader that goes forward gets a window ahead of it which doubles with every window that it uses up, from one
block to the configured limit, so that a long read keeps many ranges in flight and a short one costs little. Small
gaps (a reader that skips headers) keep the window, and so does who jumps to what is fetched already. Whoever jumps
further, or goes backwards, is a random reader and gets what it asks for, rounded to a block.

A wide window ends at a multiple of what one GET fetches, and is filled up as soon as there is room for one more: GETs
begin and end where stores divide objects (parts and stripes are 4 or 8 MiB long), and a stripe that belongs to two GETs
is read twice there.

One handle may have several readers: threads share descriptors, and so do servers' connections. Each read is taken for
that reader's whose place it continues, and for a new one's where there is none. The kernel sends the requests of one
reader at the same time and they arrive in any order: a read of what its reader has just skipped is still its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from backends.base import KIB, MIB
from fusefs.extents import ExtentSet

BLOCK_SIZE: Final = 128 * KIB
"""What a random read is rounded to: the kernel's own default read-ahead, small enough for a database's page."""

FETCH_SIZE: Final = 8 * MIB
"""Bytes of one ranged GET: long enough to be limited by the network and not by the request, and several fit a window.

They begin and end at multiples of it where that is possible.
"""

FIRST_WINDOW: Final = 1 * MIB
"""What a reader is given on trust when it begins at the start of a file or continues where it was."""

MAX_GAP: Final = 2 * MIB
"""How far beyond the expected place a read may be and still count as going forward, and how late one may come."""

MAX_READERS: Final = 8
"""Readers of one handle that are told apart; the one that was not heard of for longest is forgotten first."""


@dataclass(frozen=True, slots=True)
class Wish:
    """The range that a read needs, block-aligned, and how far beyond it to fetch in the background."""

    start: int
    end: int
    ahead_end: int


@dataclass(eq=False, slots=True)
class _Reader:
    """One of a handle's readers: where it is, and how far beyond that is fetched for it."""

    #: Where its next read will begin.
    expected: int
    window: int = 0
    ahead_end: int = 0
    #: What it has left out, no further behind than a request may be late.
    skipped: ExtentSet = field(default_factory=ExtentSet)

    def distance(self, offset: int, end: int) -> int | None:
        """Return how far from the expected place a read is, if it is this reader's next or one that comes late."""
        if self.expected == 0:
            return 0 if offset == 0 else None  # it has not begun
        if self.expected <= offset <= self.expected + MAX_GAP:
            return offset - self.expected
        is_overlapping = offset < self.expected < end
        return 0 if is_overlapping or self.skipped.intersect(offset, end) else None

    def go_on(self, offset: int, end: int, max_window: int) -> None:
        """Note a read that is this reader's."""
        self.skipped.remove(offset, end)
        if end <= self.expected:
            return  # late
        self.skipped.add(self.expected, offset)
        self.skipped.remove(0, offset - MAX_GAP)
        self.expected = end
        if self.window == 0:
            self.window = min(FIRST_WINDOW, max_window)
            self.ahead_end = end + self.window
        elif end + self.window - min(self.window // 2, FETCH_SIZE) >= self.ahead_end:
            self.window = min(2 * self.window, max_window)
            self.ahead_end = end + self.window
            if self.window > FETCH_SIZE:
                self.ahead_end -= self.ahead_end % FETCH_SIZE


class SequentialDetector:
    """The reads of one handle, as far as they tell where the next ones will be."""

    def __init__(self, max_window: int) -> None:
        self._max_window = max_window
        #: The one that was heard of last is at the end. Whoever begins at the start of the file is trusted.
        self._readers = [_Reader(expected=0)]

    def observe(self, offset: int, length: int) -> Wish:
        """Note a read and return what to fetch for it; ends may lie beyond the end of the file."""
        end = offset + length
        start = offset - offset % BLOCK_SIZE
        rounded_end = end + -end % BLOCK_SIZE
        reader = self._reader_of(offset, end)
        if reader is None:
            reader = self._new_reader(offset, end)
        else:
            self._readers.remove(reader)
            reader.go_on(offset, end, self._max_window)
        self._readers.append(reader)
        del self._readers[:-MAX_READERS]
        return Wish(start, rounded_end, max(rounded_end, reader.ahead_end))

    def _new_reader(self, offset: int, end: int) -> _Reader:
        """Return a reader that has jumped, with the window that it jumped inside of; whose that is may go on, too."""
        for reader in reversed(self._readers):
            if reader.expected <= offset < reader.ahead_end:
                return _Reader(end, reader.window, reader.ahead_end)
        return _Reader(end)

    def _reader_of(self, offset: int, end: int) -> _Reader | None:
        """Return the reader whose read it is, the nearest of them if there are several."""
        found = None
        nearest = MAX_GAP + 1
        for reader in self._readers:
            distance = reader.distance(offset, end)
            if distance is not None and distance < nearest:
                found, nearest = reader, distance
        return found
