"""Whose turn it is to read the kernel's next request: still that of the task which has answered the last one.

pyfuse3 hands the turn on before it handles a request, since the handler may have to wait. Most have not, and then the
other task has been woken for nothing, and trio's loop has gone round once more: that is a good part of what a small
request takes of the processor. Here it is handed on when a handler has to wait, or a task ends.

    task A:  reads, handles, reads, handles (waits ......................) parks
    task B:  parked                          reads, handles, reads, handles, reads

Nor does it wait for a request that is there already, as most are: RELEASE comes with FLUSH, and a program has gone on
while the one before was dealt with. To wait is one more round of trio's loop, a third of what a small request takes.

pyfuse3 takes trio from an attribute of its own, which its layer for asyncio replaces in the same way; `Trio` is what
it gets. All mounts of a process, of which pyfuse3 allows one, have the same turn.
"""

from __future__ import annotations

import select
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from types import TracebackType, coroutine
from typing import Any, Final, TypeVar

import trio

T = TypeVar("T")

MAX_WITHOUT_LOOP: Final = 0.0002
"""Seconds for which requests that are there keep trio's loop from its other tasks: about five small ones."""


class Turn:
    """A lock that nobody is given: who has left it may come back first."""

    def __init__(self) -> None:
        self._is_taken = False
        self._others = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._is_taken:
            await self._others.park()
        self._is_taken = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_taken = False

    def hand_on(self) -> None:
        """Let another task take the turn, unless somebody has it."""
        if not self._is_taken:
            self._others.unpark()


_turn = Turn()


class FuseDevice:
    """The kernel's requests, as far as they are waited for."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        #: Until when a request that is there is read at once.
        self._until = 0.0

    async def wait_readable(self, descriptor: int) -> None:
        """Return when there is a request, without letting other tasks run if it is there and they have run just now."""
        if self._clock() < self._until and _is_readable(descriptor):
            return
        await trio.lowlevel.wait_readable(descriptor)
        self._until = self._clock() + MAX_WITHOUT_LOOP


def _is_readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


@coroutine
def handled(handler: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Carry out a handler; if it has to wait, another task reads requests meanwhile."""
    try:
        awaited = handler.send(None)
        _turn.hand_on()
        while True:
            try:
                result = yield awaited
            except BaseException as error:
                awaited = handler.throw(error)
            else:
                awaited = handler.send(result)
    except StopIteration as end:
        value: T = end.value
        return value


class _Workers:
    """The nursery of pyfuse3's tasks."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start_soon(
        self, function: Callable[..., Coroutine[Any, Any, object]], *arguments: Any, name: object = None
    ) -> None:
        self._nursery.start_soon(_until_its_end, function, arguments, name=name)


async def _until_its_end(
    function: Callable[..., Coroutine[Any, Any, object]], arguments: tuple[Any, ...]
) -> None:
    try:
        await function(*arguments)
    finally:
        _turn.hand_on()


class _LowLevel:
    """trio.lowlevel, as far as pyfuse3 uses it."""

    current_task = staticmethod(trio.lowlevel.current_task)
    current_trio_token = staticmethod(trio.lowlevel.current_trio_token)
    notify_closing = staticmethod(trio.lowlevel.notify_closing)
    wait_readable = FuseDevice().wait_readable


class Trio:
    """trio, as far as pyfuse3 uses it."""

    ClosedResourceError = trio.ClosedResourceError
    lowlevel = _LowLevel
    from_thread = trio.from_thread

    @staticmethod
    def Lock() -> Turn:  # noqa: N802
        return _turn

    @staticmethod
    @asynccontextmanager
    async def open_nursery() -> AsyncIterator[_Workers]:
        async with trio.open_nursery() as nursery:
            yield _Workers(nursery)
