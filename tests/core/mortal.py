"""A store that a mount can die on: from one call on, nothing of that mount reaches the store any more.

    mortal = MortalStorage(inner)
    mortal.die_at(7, Death.CALL_LOST)       # the seventh call from now on never arrives, nor does any after it
    mortal.die_at(7, Death.ANSWER_LOST)     # it takes effect, nobody hears of that, and it is the last
    mortal.die_at(3, Death.OVERTAKEN)       # the third batch of the log never arrives; one behind it is the last call

A call that never comes back waits for ever, as it would for a process that is gone; the test cancels the mount.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum

import trio

from backends.base import ObjectStorage
from backends.intercepted import InterceptedStorage, Request, T, Verb
from fusefs.journal_format import JOURNAL_PREFIX

OUTWAITED_SECONDS = 300.0
"""On trio's clock: how long a batch may be overtaken before the mount dies all the same."""


class Death(Enum):
    """How the last call of a mount ends."""

    CALL_LOST = "call lost"
    ANSWER_LOST = "answer lost"
    OVERTAKEN = "overtaken"


class MortalStorage(InterceptedStorage):
    """One mount's way to the store; the next mount has another one."""

    def __init__(self, inner: ObjectStorage) -> None:
        super().__init__(inner)
        self.dead = trio.Event()
        self._calls_left = 0
        self._death: Death | None = None
        self._overtaking = False

    def die_at(self, call: int, death: Death) -> None:
        """Let the `call`-th call from now on be the last; only batches of the log count where one is overtaken."""
        self._calls_left, self._death = call, death

    def die(self) -> None:
        """Let nothing reach the store from now on."""
        self.dead.set()

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        if self.dead.is_set():
            await trio.sleep_forever()
        is_last = self._counts(request)
        if is_last and self._death is Death.OVERTAKEN:
            self._overtaking = True
            await trio.sleep(OUTWAITED_SECONDS)
            self.dead.set()
        elif is_last and self._death is Death.CALL_LOST:
            self.dead.set()
        if self.dead.is_set():
            await trio.sleep_forever()
        try:
            return await send()
        finally:
            if is_last or (self._overtaking and _is_batch(request)):
                self.dead.set()
            if self.dead.is_set():
                await trio.sleep_forever()

    def _counts(self, request: Request) -> bool:
        if self._death is None or (self._death is Death.OVERTAKEN and not _is_batch(request)):
            return False
        self._calls_left -= 1
        return self._calls_left == 0


def _is_batch(request: Request) -> bool:
    return request.verb is Verb.PUT and request.key.startswith(JOURNAL_PREFIX)
