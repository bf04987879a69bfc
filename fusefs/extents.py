"""Sets of byte ranges: which bytes of a file are staged, dirty, or missing.

A set is kept as two sorted lists, the starts and the ends of its extents. Extents neither overlap nor touch (those
that would are merged), so both lists rise strictly and one bisection finds any place. A query costs O(log n + k) and
a change O(log n + k) and one move of the lists' tails, k being the extents that lie in the range. Who changes many
ranges in one step does so in one pass.

Ranges are half-open. A range whose end is not beyond its start is empty: nothing is added or removed by it,
nothing is missing in it, and every set covers it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

_NONE: Final[list[int]] = []
"""What sets have into which nothing was put; nobody changes it. A file has five sets, and most of them stay empty."""


class Extent(NamedTuple):
    """Bytes `start` up to, and not including, `end`."""

    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


class ExtentSet:
    """A set of bytes, as the fewest extents, in order. Changing it while iterating over it is not allowed."""

    __slots__ = ("_ends", "_starts", "_total")

    def __init__(self, extents: Iterable[tuple[int, int]] = ()) -> None:
        self._starts = self._ends = _NONE
        self._total = 0
        for start, end in extents:
            self.add(start, end)

    @property
    def total(self) -> int:
        """The number of bytes in the set."""
        return self._total

    @property
    def end(self) -> int:
        """Where the last extent ends; 0 for the empty set."""
        return self._ends[-1] if self._ends else 0

    def add(self, start: int, end: int) -> None:
        """Put a range in; what it overlaps or touches becomes one extent with it."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        beyond = bisect_right(self._starts, end)
        if first < beyond:
            start = min(start, self._starts[first])
            end = max(end, self._ends[beyond - 1])
        self._replace(first, beyond, [start], [end])

    def remove(self, start: int, end: int) -> None:
        """Take a range out; an extent that it lies inside of becomes two."""
        first, beyond = self._overlapping(start, end)
        if first == beyond:
            return
        starts, ends = [], []
        if self._starts[first] < start:
            starts.append(self._starts[first])
            ends.append(start)
        if end < self._ends[beyond - 1]:
            starts.append(end)
            ends.append(self._ends[beyond - 1])
        self._replace(first, beyond, starts, ends)

    def remove_all(self, extents: Iterable[tuple[int, int]]) -> None:
        """Take ranges out, in any order, in one pass: one by one, each would move the lists' tails."""
        if not self._starts:
            return
        starts: list[int] = []
        ends: list[int] = []
        for gap in ExtentSet(sorted(extents)).gaps(0, self.end):
            first, beyond = self._overlapping(*gap)
            if first < beyond:
                starts += [max(gap.start, self._starts[first]), *self._starts[first + 1 : beyond]]
                ends += [*self._ends[first : beyond - 1], min(gap.end, self._ends[beyond - 1])]
        self._replace(0, len(self), starts, ends)

    def truncate(self, size: int) -> None:
        """Take out everything from `size` on."""
        self.remove(size, self.end)

    def intersect(self, start: int, end: int) -> list[Extent]:
        """Return what the set has of a range, in order."""
        first, beyond = self._overlapping(start, end)
        return [
            Extent(max(start, self._starts[index]), min(end, self._ends[index]))
            for index in range(first, beyond)
        ]

    def gaps(self, start: int, end: int) -> list[Extent]:
        """Return what the set lacks of a range, in order."""
        missing = []
        for present in self.intersect(start, end):
            if start < present.start:
                missing.append(Extent(start, present.start))
            start = present.end
        if start < end:
            missing.append(Extent(start, end))
        return missing

    def covers(self, start: int, end: int) -> bool:
        """Whether every byte of a range is in the set."""
        if start >= end:
            return True
        index = bisect_right(self._ends, start)
        return index < len(self._ends) and self._starts[index] <= start and end <= self._ends[index]

    def copy(self) -> ExtentSet:
        """Return a set with the same bytes that changes on its own."""
        twin = ExtentSet()
        twin._starts = self._starts.copy()
        twin._ends = self._ends.copy()
        twin._total = self._total
        return twin

    def __iter__(self) -> Iterator[Extent]:
        return map(Extent, self._starts, self._ends)

    def __len__(self) -> int:
        """Return the number of extents, not of bytes."""
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ExtentSet):
            return NotImplemented
        return self._starts == other._starts and self._ends == other._ends

    def __repr__(self) -> str:
        return f"ExtentSet({[tuple(extent) for extent in self]})"

    def _overlapping(self, start: int, end: int) -> tuple[int, int]:
        """Return the slice of extents that have a byte in common with the range."""
        if start >= end:
            return 0, 0
        return bisect_right(self._ends, start), bisect_left(self._starts, end)

    def _replace(self, first: int, beyond: int, starts: list[int], ends: list[int]) -> None:
        if self._starts is _NONE:
            self._starts, self._ends = [], []
        self._total += sum(ends) - sum(starts)
        self._total -= sum(self._ends[first:beyond]) - sum(self._starts[first:beyond])
        self._starts[first:beyond] = starts
        self._ends[first:beyond] = ends


def joined(extents: Iterable[Extent], distance: int) -> Iterator[Extent]:
    """Yield extents that come in order, as one where they are no further apart than `distance`."""
    last: Extent | None = None
    for extent in extents:
        if last is not None and extent.start - last.end > distance:
            yield last
            last = None
        last = Extent(extent.start if last is None else last.start, extent.end)
    if last is not None:
        yield last
