"""Calls that block, in threads: what `trio.to_thread.run_sync` does, for requests that come by the thousand.

That takes a third of all the processor's time of a HEAD: it gives each call a context, names its thread twice, and
wakes the event loop once for each answer. Here all answers that are there are taken with one turn of the loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from backends.errors import NoThread

if TYPE_CHECKING:
    from outcome import Outcome

T = TypeVar("T")

BEFORE_CALL: Final = ContextVar[Callable[[], None] | None]("BEFORE_CALL", default=None)
"""Called when a call of the task has got its thread; what it raises is raised, and the call is not begun."""


class Threads:
    """Never more than so many calls at once, and none abandoned: a cancelled caller waits for the end of its call."""

    def __init__(self, limit: int) -> None:
        self._limit: Final = limit
        self._limiter: Final = trio.CapacityLimiter(limit)
        #: Calls that have ended, and whose callers sleep still; appended to by the threads.
        self._ended: Final = deque[tuple[trio.lowlevel.Task, "Outcome[Any]"]]()
        self._wake: Final = self._wake_callers

    async def run(self, call: Callable[[], T]) -> T:
        """Return what the call returns, or raise what it raises. It is not begun if the caller is cancelled before.

        Raises `NoThread`.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        task = trio.lowlevel.current_task()
        token = trio.lowlevel.current_trio_token()

        def deliver(result: Outcome[T]) -> None:
            self._ended.append((task, result))
            with suppress(trio.RunFinishedError):  # nobody waits any more
                token.run_sync_soon(self._wake, idempotent=True)

        try:
            self._limiter.acquire_on_behalf_of_nowait(task)
        except trio.WouldBlock:
            await self._limiter.acquire_on_behalf_of(task)
        try:
            check = BEFORE_CALL.get()
            if check is not None:
                check()
            try:
                trio.lowlevel.start_thread_soon(call, deliver)
            except RuntimeError as error:
                raise _no_room(error) from error
        except BaseException:
            self._limiter.release_on_behalf_of(task)
            raise
        result: T = await trio.lowlevel.wait_task_rescheduled(_wait_for_the_end)
        return result

    async def wait_until_idle(self) -> None:
        """Return when no call is under way, and let none begin any more."""
        for number in range(self._limit):
            await self._limiter.acquire_on_behalf_of((self, number))

    def _wake_callers(self) -> None:
        while self._ended:
            task, result = self._ended.popleft()
            self._limiter.release_on_behalf_of(task)
            trio.lowlevel.reschedule(task, result)


def _wait_for_the_end(_: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


async def beside_others(call: Callable[[], T]) -> T:
    """Make a long call in a thread; here, where the host has no room for another: nothing depends on it being quick."""
    try:
        return await trio.to_thread.run_sync(call)
    except RuntimeError:  # as in `_no_room`
        return call()


async def or_left_behind(call: Callable[[], T]) -> T:
    """Make a call in a thread, whose end nobody waits for who is cancelled. Raises `NoThread`."""
    try:
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True)
    except RuntimeError as error:
        raise _no_room(error) from error


def _no_room(error: RuntimeError) -> NoThread:
    """Return what CPython means by such an error: pthread_create(3) has said EAGAIN."""
    return NoThread(f"{error}: a limit of this host or container is reached")
