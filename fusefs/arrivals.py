"""What has come of all that the kernel sends of its own accord: `kernel_pages` waits for it, and the handlers tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from fusefs.errno_boundary import errno_of

QUIET_SECONDS: Final = 0.1
"""Without a write for so long, all are taken to have come where the kernel cannot tell."""

MAX_QUIET_ROUNDS: Final = 50
"""A program that goes on writing never is quiet."""


@dataclass(slots=True)
class Inquiry:
    """A thread that has the root of the mount open, until what was sent before has come."""

    handle: int | None = None
    closed: trio.Event = field(default_factory=trio.Event)
    #: The first write that came later.
    before: int = 0


class Arrivals:
    """What has come of the kernel's pages: the handlers tell."""

    def __init__(self) -> None:
        self.writes = 0
        self.refusals = 0
        #: The errno of the last one, which nobody is told but who syncs just that file.
        self.refused_with = 0
        #: Those being handled, the oldest first.
        self._running: dict[int, None] = {}
        self._ended = trio.lowlevel.ParkingLot()
        self._asking: dict[int, Inquiry] = {}
        self._open: dict[int, Inquiry] = {}

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """Note a write, which the block handles."""
        number = self.writes
        self.writes += 1
        self._running[number] = None
        try:
            yield
        except Exception as error:
            self.refusals += 1
            self.refused_with = errno_of(error)
            raise
        finally:
            del self._running[number]
            self._ended.unpark_all()

    @contextmanager
    def asked_by(self, thread: int) -> Iterator[Inquiry]:
        """Know the directory that is opened by a thread (gettid(2)) in the block, which it is to close there."""
        inquiry = self._asking[thread] = Inquiry()
        try:
            yield inquiry
        finally:
            del self._asking[thread]

    def opened(self, thread: int, handle: int) -> None:
        """Note that a thread has opened a directory."""
        inquiry = self._asking.get(thread)
        if inquiry is not None:
            inquiry.handle = handle
            self._open[handle] = inquiry

    def released(self, handle: int) -> None:
        """Note that a directory was closed by all who had it open."""
        inquiry = self._open.pop(handle, None)
        if inquiry is not None:
            inquiry.before = self.writes
            inquiry.closed.set()

    async def wait_for(self, inquiry: Inquiry) -> None:
        """Return when all that was sent before the thread's directory was closed has come and is dealt with."""
        await inquiry.closed.wait()
        while self._running and next(iter(self._running)) < inquiry.before:
            await self._ended.park()

    async def wait_until_quiet(self) -> None:
        """Return when nothing has come for a moment; a program that goes on writing is not waited for."""
        for _ in range(MAX_QUIET_ROUNDS):
            before = self.writes
            await trio.sleep(QUIET_SECONDS)
            if self.writes == before and not self._running:
                return
