"""Who waits for whom: each for one other at most, and one may be waited for by many."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from fusefs.inodes import Inode


class Waits:
    """Inodes that wait, in the order in which they began to; pure data."""

    def __init__(self) -> None:
        self._awaited: dict[Inode, Inode] = {}
        self._waiting: dict[Inode, dict[Inode, None]] = {}

    def __contains__(self, inode: Inode) -> bool:
        return inode in self._awaited

    def __iter__(self) -> Iterator[Inode]:
        return iter(self._awaited)

    def __len__(self) -> int:
        return len(self._awaited)

    def add(self, inode: Inode, awaited: Inode) -> None:
        """Let an inode that waits for nobody wait for another one."""
        self._awaited[inode] = awaited
        self._waiting.setdefault(awaited, {})[inode] = None

    def awaited_by(self, inode: Inode) -> Inode | None:
        """Return for whom an inode waits, if it does."""
        return self._awaited.get(inode)

    def is_awaited(self, inode: Inode) -> bool:
        """Return whether anybody waits for an inode."""
        return inode in self._waiting

    def waiting_for(self, awaited: Inode) -> list[Inode]:
        """Return who waits for an inode."""
        return list(self._waiting.get(awaited, ()))

    def discard(self, inode: Inode) -> bool:
        """Let an inode wait no more; return whether it did."""
        awaited = self._awaited.pop(inode, None)
        if awaited is None:
            return False
        del self._waiting[awaited][inode]
        if not self._waiting[awaited]:
            del self._waiting[awaited]
        return True

    def release(self, awaited: Inode) -> list[Inode]:
        """Let nobody wait for an inode any more; return who did."""
        released = list(self._waiting.pop(awaited, ()))
        for inode in released:
            del self._awaited[inode]
        return released

    def release_some(self, count: int) -> list[Inode]:
        """Let so many inodes at most, which have waited for longest, wait no more, and return them."""
        released = list(islice(self._awaited, count))
        for inode in released:
            self.discard(inode)
        return released
