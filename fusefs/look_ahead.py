"""Which entries of a directory will be looked up next: a pure decision, made from the lookups so far.

Names cost no request; attributes may cost a HEAD each. Programs that want the attributes of all entries (`ls -l`,
`find`, `rm -r`) read the names and then look them up one by one: in the order of the listing, or, where it is long, in
the order of inode numbers (fts(3)). Whoever goes on in either order is given a window that grows; a jump closes it,
so that single files out of a large directory are not paid for with the attributes of others.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final

MAX_WINDOW: Final = 128
"""Entries looked up ahead at once."""

GROWTH: Final = 4
"""What a window is multiplied by each time that it is used up; the first has as many entries."""

FILLED_UP: Final = 4
"""How often a window is filled up while it is gone through."""

MAX_GAP: Final = 2 * MAX_WINDOW
"""How far behind the one before a lookup may come and still go on: those between were answered from memory."""

FEWEST_SORTED: Final = 10_000
MOST_SORTED: Final = 100_000
"""Of how many names at a time glibc's and gnulib's fts(3) sort the numbers."""


class _Order:
    """Names in an order, and how far lookups have followed it."""

    def __init__(self, names: Sequence[bytes], key: Callable[[bytes], int] | None) -> None:
        self._names = names
        self._key = key
        self._last = -1
        #: Where the window has ended when it grew last, and from where on it is filled up.
        self.end = -1
        self.fill_from = -1

    def follow(self, name: bytes) -> int | None:
        """Return the position of a name if it comes soon after the one before; None after a jump."""
        if self._key is None:
            position = bisect_left(self._names, name)
        else:
            position = bisect_left(self._names, self._key(name), key=self._key)
        if position == len(self._names) or self._names[position] != name:
            return None
        gap, self._last = position - self._last, position
        return position if 0 < gap <= MAX_GAP else None

    def after(self, position: int) -> Iterator[tuple[int, bytes]]:
        return enumerate(self._names[position + 1 : position + 1 + MAX_GAP], position + 1)


class LookAhead:
    """The lookups in one directory that memory could not answer, since its names were read."""

    def __init__(self, names: Sequence[bytes], number_of: Callable[[bytes], int]) -> None:
        """`names` are sorted, but for few; `number_of` tells the inode number that a listing shows."""
        self._names = names
        self._number_of = number_of
        self._orders = [_Order(names, None)]
        self._window = 0

    def next_after(self, name: bytes, is_wanted: Callable[[bytes], bool]) -> list[bytes] | None:
        """Note the lookup of `name`, and return the names to be looked up next, those that are wanted of them.

        The window grows when it has been gone through, however many of its entries were waited for one by one, and
        is filled up meanwhile. None: those that were returned last are enough for now.
        """
        found = [(order, position) for order in self._orders if (position := order.follow(name)) is not None]
        if not found:
            self._window = 0
            self._try_numbers(name)
            return []
        order, position = found[0]
        is_used_up = not self._window or position > order.end
        if is_used_up:
            self._window = min(GROWTH * max(1, self._window), MAX_WINDOW)
        elif position < order.fill_from:
            return None
        order.fill_from = position + self._window // FILLED_UP
        wanted = ((place, after) for place, after in order.after(position) if is_wanted(after))
        following = list(islice(wanted, self._window))
        if is_used_up:
            order.end = following[-1][0] if following else position
        return [after for _, after in following]

    def _try_numbers(self, name: bytes) -> None:
        if len(self._orders) == 1 and FEWEST_SORTED < len(self._names) <= MOST_SORTED:
            self._orders.append(_Order(sorted(self._names, key=self._number_of), self._number_of))
            self._orders[1].follow(name)
