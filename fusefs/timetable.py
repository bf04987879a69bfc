"""When what is due: inodes by time, each in the table once, at the earliest time that was asked for."""

from __future__ import annotations

import heapq
import math
from typing import Final, Generic, TypeVar

T = TypeVar("T")

OUTDATED: Final = 64
"""Entries that are outdated and may stay, beside as many as there are others: each keeps its thing in memory."""


class Timetable(Generic[T]):
    """Things by the time at which they are due. Pure: the clock is the caller's."""

    def __init__(self) -> None:
        #: When each thing is due, and the number of its entry, which keeps those of one time in order.
        self._entries: dict[T, tuple[float, int]] = {}
        #: These entries, and some that are outdated.
        self._heap: list[tuple[float, int, T]] = []
        self._entry_count = 0

    def put(self, thing: T, due: float) -> bool:
        """Enter a thing, unless it is there for an earlier time; return whether that changed anything."""
        if due >= self._entries.get(thing, (math.inf, 0))[0]:
            return False
        self._entry_count += 1
        self._entries[thing] = due, self._entry_count
        heapq.heappush(self._heap, (due, self._entry_count, thing))
        self._bound_outdated()
        return True

    def drop(self, thing: T) -> None:
        """Take a thing out, if it is there."""
        self._entries.pop(thing, None)
        self._bound_outdated()

    def take_due(self, now: float) -> list[T]:
        """Take out what is due, in order."""
        due_things = []
        while self._heap and (self._is_outdated(*self._heap[0]) or self._heap[0][0] <= now):
            due, entry, thing = heapq.heappop(self._heap)
            if not self._is_outdated(due, entry, thing):
                del self._entries[thing]
                due_things.append(thing)
        return due_things

    def next_due(self) -> float:
        """Return when the next thing is due, or later than any time; after `take_due`."""
        return self._heap[0][0] if self._heap else math.inf

    def _is_outdated(self, due: float, entry: int, thing: T) -> bool:
        return self._entries.get(thing) != (due, entry)

    def _bound_outdated(self) -> None:
        """Let outdated entries go when they are most of the heap, so that this costs each of them about a look."""
        if len(self._heap) > 2 * len(self._entries) + OUTDATED:
            self._heap = [(due, entry, thing) for thing, (due, entry) in self._entries.items()]
            heapq.heapify(self._heap)
