"""How many bytes of request bodies are in memory at once: whoever is about to read some waits until there is room.

First come, first served: what would fit has to wait behind what does not fit yet, or else a long body might never get
its turn. A body that is longer than the whole budget goes alone.

Short bodies have a budget and a queue of their own, an eighth of the other: a file of a few KiB would have to wait for
whole parts of somebody else's to be sent, and takes next to nothing.

While it holds bytes, a task must not wait for more of them, nor for anything that may itself wait for some.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

_SHORT_SHARE: Final = 8
"""What part of the budget short bodies have besides."""

_SHORT_COUNT: Final = 16
"""How many of the longest short bodies fit into their share."""


class ByteBudget:
    """`limit_bytes` for long bodies, an eighth of it besides for short ones; of either no more than `max_bodies`."""

    def __init__(self, limit_bytes: int, *, max_bodies: float = math.inf) -> None:
        self._long = _Lane(limit_bytes, max_bodies)
        self._short = _Lane(limit_bytes // _SHORT_SHARE, max_bodies)
        self._longest_short = limit_bytes // _SHORT_SHARE // _SHORT_COUNT

    @property
    def used(self) -> int:
        """Bytes that are held now."""
        return self._long.used + self._short.used

    async def acquire(self, size: int) -> None:
        """Return when `size` bytes may be in memory. Nothing is held if this is cancelled."""
        await self._lane(size).acquire(size)

    def release(self, size: int) -> None:
        """Give back what one `acquire` has got."""
        self._lane(size).release(size)

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes for the block."""
        await self.acquire(size)
        try:
            yield
        finally:
            self.release(size)

    def _lane(self, size: int) -> _Lane:
        return self._short if size <= self._longest_short else self._long


class _Lane:
    """Bytes up to a limit, and those who wait for some, in the order in which they came."""

    def __init__(self, limit: int, max_bodies: float) -> None:
        self._limit = limit
        self._max_bodies = max_bodies
        self._bodies = 0
        self.used = 0
        #: Each with its size. None of them is there any more once it has its bytes.
        self._waiting: dict[trio.Event, int] = {}

    async def acquire(self, size: int) -> None:
        turn = trio.Event()
        self._waiting[turn] = size
        self._admit()
        if turn.is_set():
            return
        try:
            await turn.wait()
        except BaseException:
            if (
                self._waiting.pop(turn, None) is None
            ):  # its turn came when it was cancelled and did not know of it yet
                self._let_go(size)
            self._admit()
            raise

    def release(self, size: int) -> None:
        self._let_go(size)
        self._admit()

    def _let_go(self, size: int) -> None:
        self.used -= size
        self._bodies -= 1

    def _admit(self) -> None:
        while self._waiting:
            turn, size = next(iter(self._waiting.items()))
            if self._bodies == self._max_bodies or (self.used and self.used + size > self._limit):
                return
            del self._waiting[turn]
            self.used += size
            self._bodies += 1
            turn.set()
