"""When what is due: inodes by time, each in the table once, at the earliest time that was asked for."""

from __future__ import annotations

import heapq
import math
from typing import Generic, TypeVar

T = TypeVar("T")


class Timetable(Generic[T]):
    """Things by the time at which they are due. Pure: the clock is the caller's."""

    def __init__(self) -> None:
        self._due_at: dict[T, float] = {}
        #: Entries of `_due_at`, and some that are outdated; the number keeps things of one time in order.
        self._heap: list[tuple[float, int, T]] = []
        self._entries = 0

    def put(self, thing: T, due: float) -> bool:
        """Enter a thing, unless it is there for an earlier time; return whether that changed anything."""
        if due >= self._due_at.get(thing, math.inf):
            return False
        self._due_at[thing] = due
        self._entries += 1
        heapq.heappush(self._heap, (due, self._entries, thing))
        return True

    def drop(self, thing: T) -> None:
        """Take a thing out, if it is there."""
        self._due_at.pop(thing, None)

    def take_due(self, now: float) -> list[T]:
        """Take out what is due, in order."""
        due_things = []
        while self._heap and (self._is_outdated(*self._heap[0]) or self._heap[0][0] <= now):
            due, entry, thing = heapq.heappop(self._heap)
            if not self._is_outdated(due, entry, thing):
                del self._due_at[thing]
                due_things.append(thing)
        return due_things

    def next_due(self) -> float:
        """Return when the next thing is due, or later than any time; after `take_due`."""
        return self._heap[0][0] if self._heap else math.inf

    def _is_outdated(self, due: float, _: int, thing: T) -> bool:
        return self._due_at.get(thing) != due
