"""A store that a mount can die on: from one call on, nothing of that mount reaches the store any more.

    mortal = MortalStorage(inner)
    mortal.die_at(7, Death.CALL_LOST)       # the seventh call from now on never arrives, nor does any after it
    mortal.die_at(7, Death.ANSWER_LOST)     # it takes effect, nobody hears of that, and it is the last
    mortal.die_at(3, Death.OVERTAKEN)       # the third batch of the log never arrives; one behind it is the last call
    mortal.die_at(2, Death.HALF_DONE)       # the second deletion of many keys takes every other one, and is the last

Where a mount has several stores, they share its `Life`: calls of all of them count, and with one all are dead.

A call that never comes back waits for ever, as it would for a process that is gone. So the mount has to be cancelled:

    async with mortal.life.lived(), open_tree(mortal, where) as tree: ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from enum import Enum
from typing import Final

import trio

from backends.base import NO_ETAGS, ObjectStorage
from backends.errors import StorageError
from backends.intercepted import InterceptedStorage, Request, T, Verb
from fusefs.journal_format import JOURNAL_PREFIX

OUTWAITED_SECONDS = 300.0
"""On trio's clock: how long a batch may be overtaken before the mount dies all the same."""


class Death(Enum):
    """How the last call of a mount ends."""

    CALL_LOST = "call lost"
    ANSWER_LOST = "answer lost"
    OVERTAKEN = "overtaken"
    HALF_DONE = "half done"


class Life:
    """The life of one mount, and which call ends it."""

    def __init__(self) -> None:
        self.dead = trio.Event()
        self._calls_left = 0
        self.death: Death | None = None
        self.overtaking = False

    def die_at(self, call: int, death: Death) -> None:
        """Let the `call`-th call from now on be the last; of some deaths only calls count that can die it."""
        self._calls_left, self.death = call, death

    def is_last(self, request: Request) -> bool:
        """Count a call, and return whether it is the one."""
        if not _CAN_DIE[self.death](request):
            return False
        self._calls_left -= 1
        return self._calls_left == 0

    @asynccontextmanager
    async def lived(self) -> AsyncIterator[None]:
        """Cancel the block when the mount is dead: its tasks end with its process, wherever they are."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_when_dead, nursery.cancel_scope)
            yield
            nursery.cancel_scope.cancel()

    async def _cancel_when_dead(self, scope: trio.CancelScope) -> None:
        await self.dead.wait()
        scope.cancel()

    async def end(self) -> None:
        """Die between two calls, in a `lived` block; nothing is done there any more."""
        self.dead.set()
        await trio.sleep_forever()


class MortalStorage(InterceptedStorage):
    """One mount's way to a store; the next mount has another one."""

    def __init__(self, inner: ObjectStorage, life: Life | None = None) -> None:
        super().__init__(inner)
        self.life = life or Life()

    @property
    def dead(self) -> trio.Event:
        return self.life.dead

    def die_at(self, call: int, death: Death) -> None:
        """As `Life`."""
        self.life.die_at(call, death)

    def die(self) -> None:
        """Let nothing reach the store from now on."""
        self.dead.set()

    async def delete_many(
        self, keys: Iterable[str], *, if_match: Mapping[str, str] = NO_ETAGS
    ) -> Mapping[str, StorageError]:
        wanted = list(keys)

        def send(is_last: bool) -> Awaitable[Mapping[str, StorageError]]:
            is_halved = is_last and self.life.death is Death.HALF_DONE
            return self._inner.delete_many(wanted[::2] if is_halved else wanted, if_match=if_match)

        return await self._until_death(Request(Verb.DELETE_MANY, wanted[0] if wanted else ""), send)

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        return await self._until_death(request, lambda is_last: send())

    async def _until_death(self, request: Request, send: Callable[[bool], Awaitable[T]]) -> T:
        life = self.life
        if self.dead.is_set():
            await trio.sleep_forever()
        is_last = life.is_last(request)
        if is_last and life.death is Death.OVERTAKEN:
            life.overtaking = True
            await trio.sleep(OUTWAITED_SECONDS)
            self.dead.set()
        elif is_last and life.death is Death.CALL_LOST:
            self.dead.set()
        if self.dead.is_set():
            await trio.sleep_forever()
        try:
            return await send(is_last)
        finally:
            if is_last or (life.overtaking and _is_batch(request)):
                self.dead.set()
            if self.dead.is_set():
                await trio.sleep_forever()


def _is_batch(request: Request) -> bool:
    return request.verb is Verb.PUT and request.key.startswith(JOURNAL_PREFIX)


READING: Final = {
    *(Verb.PROBE, Verb.HEAD, Verb.GET_RANGE),
    *(Verb.LIST_PREFIX, Verb.LIST_MULTIPART_UPLOADS),
}

_CAN_DIE: Final[Mapping[Death | None, Callable[[Request], bool]]] = {
    None: lambda request: False,
    Death.CALL_LOST: lambda request: True,
    # What reads leaves nothing behind, whether it arrives or not.
    Death.ANSWER_LOST: lambda request: request.verb not in READING,
    Death.OVERTAKEN: _is_batch,
    Death.HALF_DONE: lambda request: request.verb is Verb.DELETE_MANY,
}
"""Which calls count."""
