"""Keeps the stage within `cache_size`: counts what contents take there, and takes clean bytes back.

Clean bytes can be fetched again, so the content that was not used for longest gives its own back first, no more of them
than have to go. Dirty bytes cannot go before they are published: `is_exceeded` tells writers to wait for that.

The number of contents with clean bytes is bounded as well: whatever is staged of a file keeps its inode in memory.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Protocol

MAX_CLEAN: Final = 100_000
"""Contents with clean bytes: 350 MB of memory at most. A cache of 10 GiB is full before that of files over 100 KiB."""


WINDOWS: Final = 4
"""How many readers may be ahead of themselves beside what is dirty before what is fetched for one gives way unread."""

BESIDE_STUCK: Final = 4
"""What share of the limit the rest has for itself, where what cannot be published fills it: one part in so many."""


class Evictable(Protocol):
    """A content, as far as its place on the disk goes."""

    def evict(self, wanted: int) -> None:
        """Give back `wanted` bytes or a little more, or all that are clean; note it with `StageBudget.note`."""

    def keep(self, used_at_ns: int, deadline: float) -> None:
        """Leave clean bytes to later mounts; read nothing for it after `deadline`, on the monotonic clock."""


class StageBudget:
    """Bytes staged by all contents of a mount; `note` is called after each change and each use of one."""

    def __init__(self, limit_bytes: int, *, max_clean: int = MAX_CLEAN) -> None:
        self._limit = limit_bytes
        self._max_clean = max_clean
        self._staged: dict[Evictable, int] = {}
        self._total = 0
        #: Of the same contents, those that have any.
        self._dirty: dict[Evictable, int] = {}
        self._dirty_total = 0
        #: Bytes that were dirty after everything was published, less what has gone of them since.
        self._stuck = 0
        #: Contents with clean bytes, the one that was used last at the end.
        self._clean: OrderedDict[Evictable, None] = OrderedDict()
        self._is_making_room = False
        #: Whether what was fetched last could not be staged for want of room on the disk.
        self.is_disk_full = False

    @property
    def limit(self) -> int:
        """Bytes that may be staged: more than was configured only beside bytes that can go nowhere (`accept_dirty`)."""
        return max(self._limit, self._stuck + self._limit // BESIDE_STUCK)

    @property
    def total(self) -> int:
        """Bytes staged now."""
        return self._total

    @property
    def dirty(self) -> int:
        """Of these, bytes that the bucket does not have."""
        return self._dirty_total

    @property
    def room_ahead(self) -> int:
        """Bytes that may be fetched ahead of a reader: it reads them before they give way to what else is staged."""
        return 0 if self.is_disk_full else max(0, self.limit - self._dirty_total) // WINDOWS

    @property
    def is_exceeded(self) -> bool:
        """Whether more is staged than may be, although all that could be given back was."""
        return self._total > self.limit

    @property
    def by_last_use(self) -> list[Evictable]:
        """The contents with clean bytes, the one that was used last at the end."""
        return list(self._clean)

    def note(self, content: Evictable, staged: int, clean: int, dirty: int = 0) -> None:
        """Count the bytes that a content takes, and make room if that is too much, of the content itself at last.

        `clean` bytes of it the bucket has, and they can be given back; `dirty` ones it has not.
        What is left of one that has just given back was not used, and is still the first to be asked.
        """
        self._total += staged - self._staged.pop(content, 0)
        self._dirty_total += dirty - self._dirty.pop(content, 0)
        self._stuck = min(self._stuck, self._dirty_total)
        self._clean.pop(content, None)
        if staged:
            self._staged[content] = staged
        if dirty:
            self._dirty[content] = dirty
        if clean:
            self._clean[content] = None
            if self._is_making_room:
                self._clean.move_to_end(content, last=False)
        if self.is_exceeded:
            self.make_room()
        if clean:
            self._bound_number()

    def accept_dirty(self) -> None:
        """Let what is dirty now be, and give the rest some room beside it: everything that can be was published.

        What is written to a file without a name can go nowhere until its last close. Without this, each further write
        anywhere would publish whatever else has changed, and no clean byte could stay.
        """
        self._stuck = self._dirty_total

    def _bound_number(self) -> None:
        """Let the contents that were not used for longest give back what they have, where too many have anything."""
        if self._is_making_room:
            return
        self._is_making_room = True
        try:
            for _ in range(len(self._clean) - self._max_clean):
                content, _ = self._clean.popitem(last=False)
                content.evict(self._staged.get(content, 0))  # holes take nothing
                self._clean.pop(content, None)  # as in `make_room`
        finally:
            self._is_making_room = False

    def give_back_all(self) -> bool:
        """Let contents give back all clean bytes; return whether there were any."""
        return self.make_room(goal_bytes=0)

    def make_room(self, keep: Evictable | None = None, *, goal_bytes: int | None = None) -> bool:
        """Let contents give back clean bytes, until no more than `goal_bytes` are staged, or the limit.

        Returns whether any were given back. What a content notes then gets here again: thousands of small ones may have
        to go, so it is the loop under way that goes on, and none inside of it.
        """
        if self._is_making_room:
            return False
        goal, before = self.limit if goal_bytes is None else goal_bytes, self._total
        self._is_making_room = True
        try:
            while self._total > goal:
                content = next((each for each in self._clean if each is not keep), None)
                if content is None:
                    break
                del self._clean[content]
                content.evict(self._total - goal)
                if self._total > goal:
                    self._clean.pop(content, None)  # whatever it has left, it cannot give back
        finally:
            self._is_making_room = False
        return self._total < before
