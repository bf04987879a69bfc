"""A store that asks, whenever something in it has changed, what a mount would find that begins there and then.

The rule behind it: nothing is published, and nothing deleted, that the log does not tell of. Where it is broken, there
is a moment at which the bucket and its log together are no state of the tree that may be seen, be it only until the
next call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Final

from backends.intercepted import InterceptedStorage, Request, T, Verb
from tests.core.history import History, state_of
from tests.core.small_parts import SmallPartsStorage, tree_options
from tests.core.tree import NEVER_PUBLISHED, open_tree

#: Recovers, and publishes nothing.
LOOKING: Final = replace(tree_options(), logged=True, publish=NEVER_PUBLISHED)
READING: Final = frozenset({Verb.HEAD, Verb.GET_RANGE, Verb.LIST_PREFIX, Verb.LIST_MULTIPART_UPLOADS})


class WatchingStorage(InterceptedStorage):
    """Passes calls on; `violations` are the calls after which a mount would find what it may not."""

    def __init__(self, inner: SmallPartsStorage, history: History, directory: Path) -> None:
        super().__init__(inner)
        self._bucket = inner
        self._history = history
        self._directory = directory
        self._looks = count(1)
        self.violations: list[str] = []
        self.looks = 0

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        result = await send()
        if request.verb not in READING:
            await self._look(request)
        return result

    async def _look(self, request: Request) -> None:
        # What goes on meanwhile is not in the twin: it need not be there, and may not be asked for.
        twin, allowed = self._bucket.twin(), self._history.states[self._history.acknowledged :]
        self.looks = next(self._looks)
        async with open_tree(twin, self._directory / f"{self.looks}", LOOKING) as tree:
            state = await state_of(tree)
        if state not in allowed:
            self.violations.append(f"{self.looks}: after {request.verb} {request.key!r}: {sorted(state)}")
