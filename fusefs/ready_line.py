"""Inodes that have their turn one after the other: those that go first, and then the rest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

from fusefs.inodes import Inode


class ReadyLine:
    """Two lines, in fact; who goes first is asked when one is put in. Pure data; the time of a call does not grow."""

    def __init__(self, goes_first: Callable[[Inode], bool]) -> None:
        self._goes_first = goes_first
        self._first: OrderedDict[Inode, None] = OrderedDict()
        self._others: OrderedDict[Inode, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._first) + len(self._others)

    def __iter__(self) -> Iterator[Inode]:
        return chain(self._first, self._others)

    def __contains__(self, inode: Inode) -> bool:
        return inode in self._first or inode in self._others

    def extend(self, inodes: Iterable[Inode]) -> None:
        """Let inodes that are not in the line have their turn after those of their kind."""
        for inode in inodes:
            self._line_of(inode)[inode] = None

    def extend_front(self, inodes: Sequence[Inode]) -> None:
        """Let inodes that are not in the line have their turn before those of their kind, in this order."""
        for inode in reversed(inodes):
            line = self._line_of(inode)
            line[inode] = None
            line.move_to_end(inode, last=False)

    def hurry(self, inode: Inode) -> None:
        """Let an inode that is in the line, and goes first by now, do so."""
        if inode in self._others:
            del self._others[inode]
            self.extend([inode])

    def take(self) -> Inode:
        """Take out the first. Raises KeyError where there is none."""
        inode, _ = (self._first or self._others).popitem(last=False)
        return inode

    def discard(self, inode: Inode) -> None:
        """Take out an inode, if it is in the line."""
        self._first.pop(inode, None)
        self._others.pop(inode, None)

    def _line_of(self, inode: Inode) -> OrderedDict[Inode, None]:
        return self._first if self._goes_first(inode) else self._others
