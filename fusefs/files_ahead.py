"""Which small files of a directory will be opened next: a pure decision, made from the opens so far.

A small file costs one GET, and who opens one after the other waits for each. Programs that read all files of a
directory open them by name (`diff -r`), as numbers count (`segment-9` before `segment-10`), or by inode number (`cp`);
two opens that are near each other in one of these orders are taken for such a program. Whoever has opened a noticeable
share of a directory without any of them is taken for one that reads all of it in an order of its own.

What is fetched and never opened was paid for in vain. So how many files may be waiting for their open depends on how
many were opened after they had been fetched; where none are, it ends with the first few.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from backends.base import KIB

MAX_SIZE: Final = 128 * KIB
"""Of a file that is fetched ahead: a larger one is worth its own round trip, and has a window of its own."""

FIRST_UNUSED: Final = 16
"""Files that are fetched ahead in a directory on trust."""

FIRST_EXPECTED: Final = 32
"""The same where whoever comes has read all of another directory: what they read in a round trip, or more."""

GROWTH: Final = 4
"""How many more may be fetched for each that was opened after it had been fetched."""

MAX_AHEAD: Final = 128
"""How many names beyond the last open are fetched: a fraction of a second's worth for who reads at memory's speed."""

MAX_GAP: Final = 8
"""How far apart two opens may be and still follow an order: not every file is opened, and threads overtake."""

SHARE: Final = 32
FEWEST_OPENED: Final = 8
"""Whoever has opened one in `SHARE` files of a directory, and no fewer than this, is going to open them all."""

SHARE_GROWTH: Final = 16
"""Files that may be waiting for each that was opened, where the order is not known."""

MOST_ORDERED: Final = 20_000
"""Names that are sorted by more than themselves: a tenth of a second."""

_NUMBER: Final = re.compile(rb"(\d+)")


class _Order:
    """Names in an order, and how far opens have followed it."""

    def __init__(self, names: Sequence[bytes], key: Callable[[bytes], Any] | None = None) -> None:
        """`names` are sorted by `key`, which tells any two of them apart, or by themselves."""
        self._names = names
        self._key = key
        self._last = -1
        self._next = 0
        self._has_begun = False
        #: Opens in a row that were near the one before.
        self.followed = 0

    def follow(self, name: bytes) -> None:
        """Note the open of a name; one that is not among them is a jump."""
        position = self._position_of(name)
        if position is None:
            self.followed = 0
        elif abs(position - self._last) <= MAX_GAP and self._has_begun:
            self.followed += position != self._last
            self._last = max(self._last, position)
        else:
            self.followed = self.followed if not self._has_begun else 0
            self._last = self._next = position
        self._has_begun = True

    def _position_of(self, name: bytes) -> int | None:
        """Return where a name is: near the last one as a rule, and then no key has to be made to find it."""
        start = max(self._last - MAX_GAP, 0)
        near = self._names[start : self._last + MAX_GAP + 1]
        if name in near:
            return start + near.index(name)
        sought = name if self._key is None else self._key(name)
        position = bisect_left(self._names, sought, key=self._key)
        return position if self._names[position : position + 1] == [name] else None

    def take(self) -> Iterator[bytes]:
        """Yield the next names after the last open, each once unless a jump comes before it."""
        self._next = max(self._next, self._last + 1)
        while self._next < min(len(self._names), self._last + 1 + MAX_AHEAD):
            self._next += 1
            yield self._names[self._next - 1]


class FilesAhead:
    """The files of one directory that were opened, and those that were fetched for the opens to come.

    Or its directories, which are read and listed (`fusefs.walks`).
    """

    def __init__(
        self,
        names: Callable[[], Iterable[bytes]],
        number_of: Callable[[bytes], int],
        *,
        on_trust: int = FIRST_UNUSED,
        is_expected: bool = False,
    ) -> None:
        """`names` are asked for with the second open, `number_of` for the inode numbers that a listing shows.

        `on_trust` are fetched before any was of use. With `is_expected` the first open is enough to go by, or none:
        whoever comes has gone through another directory.
        """
        self._on_trust = on_trust
        self._is_expected = is_expected
        self._names = names
        self._number_of = number_of
        self._first: bytes | None = None
        self._count = 0
        self._orders: list[_Order] = []
        #: All names once, whatever was opened.
        self._rest: Iterator[bytes] = iter(())
        #: Files, and not how often.
        self._opened = 0
        self._hits = 0
        #: Whether two were opened, and nothing is left to be fetched.
        self._was_all = False
        #: Names that were fetched and not opened yet, with their costs.
        self._unused: dict[bytes, int] = {}
        self._unused_cost = 0

    def opened(self, name: bytes, cost_of: Callable[[bytes], int | None], *, max_cost: int) -> list[bytes]:
        """Note an open, and return which files to fetch now.

        `cost_of` tells what it takes to fetch one ahead (of a file its bytes, of a directory 1), None for all that
        cannot be fetched; `max_cost` bounds that of what is fetched and not opened.
        """
        if name in self._unused:
            self._opened += 1
            self._hits += 1
            self._unused_cost -= self._unused.pop(name)
        elif cost_of(name) is not None:
            self._opened += 1
        if self._first is None:
            self._first = name
            if not self._is_expected:
                return []
        if not self._orders:
            self._sort()
            for order in self._orders:
                order.follow(self._first)
            others = (other for other in self._names() if other not in (self._first, name))
            self._was_all = self._first != name and all(cost_of(other) is None for other in others)
        for order in self._orders:
            order.follow(name)
        names, limit = self._choose()
        return self._take(names, limit, lambda other: None if other == name else cost_of(other), max_cost)

    def expect(self, cost_of: Callable[[bytes], int | None], *, max_cost: int) -> list[bytes]:
        """Return which files to fetch before any is opened, in the order of names."""
        self._sort()
        return self._take(self._rest, self._on_trust, cost_of, max_cost)

    @property
    def is_of_use(self) -> bool:
        """Whether enough of what was fetched was opened, seeing that some is always ahead of who opens it."""
        is_used_up = (self._is_expected or self._was_all) and not self._unused
        return is_used_up or GROWTH * self._hits > len(self._unused)

    @property
    def unused(self) -> list[bytes]:
        """What was fetched and not opened."""
        return list(self._unused)

    @property
    def was_used(self) -> bool:
        """Whether anything of what was fetched was opened then, if there was something to fetch."""
        return self._hits > 0 or not self._unused

    def _sort(self) -> None:
        names = sorted(self._names())
        self._count = len(names)
        self._rest = iter(names)
        self._orders = [_Order(names)]
        if len(names) <= MOST_ORDERED:
            for key in (_counting, self._by_number):
                self._orders.append(_Order(sorted(names, key=key), key))
        for order in self._orders:
            order.followed = int(self._is_expected)

    def _by_number(self, name: bytes) -> tuple[int, bytes]:
        return self._number_of(name), name

    def _choose(self) -> tuple[Iterator[bytes], int]:
        """Return what to fetch from, and how many files may be waiting for their open."""
        best = max(self._orders, key=lambda order: order.followed)
        if best.followed:
            return best.take(), self._on_trust + GROWTH * self._hits
        if self._opened >= max(FEWEST_OPENED, self._count / SHARE):
            return self._rest, SHARE_GROWTH * self._opened
        return iter(()), 0

    def _take(
        self, names: Iterator[bytes], limit: int, cost_of: Callable[[bytes], int | None], max_cost: int
    ) -> list[bytes]:
        taken = []
        while len(self._unused) < limit and self._unused_cost < max_cost:
            name = next(names, None)
            if name is None:
                break
            cost = cost_of(name) if name not in self._unused else None
            if cost is not None:
                self._unused[name] = cost
                self._unused_cost += cost
                taken.append(name)
        return taken


def _counting(name: bytes) -> tuple[list[bytes | int], bytes]:
    """Return a key by which numbers in names come as they count."""
    parts: list[bytes | int] = [*_NUMBER.split(name)]
    parts[1::2] = [int(digits) for digits in _NUMBER.findall(name)]
    return parts, name
