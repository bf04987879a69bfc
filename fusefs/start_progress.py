"""How far a mount is that does not answer yet: it asks the store, waits for the lease, or recovers what was left.

Told in lines, to the log and to whoever has started the mount: at once where something else begins, and then now and
again. `fusefs status` tells the last one.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Final, TypeVar

import trio

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

REPEAT_SECONDS: Final = 5.0
"""From one line about the same to the next."""

LOOKS_AT_ONCE: Final = 32
"""Things that are looked at together."""


class StartProgress:
    """The last line, and when it was told; `now` counts seconds, and `tell` is given those that are to be shown."""

    def __init__(self, tell: Callable[[str], None], now: Callable[[], float]) -> None:
        self._tell: Final = tell
        self._now: Final = now
        self.line = "it asks the store"
        self._subject = ""
        self._told_at = 0.0

    def note(self, subject: str, line: str) -> None:
        """Note how far it is with something; `subject` says what that is, and `line` the rest."""
        self.line = f"{subject}: {line}"
        if subject == self._subject and self._now() < self._told_at + REPEAT_SECONDS:
            return
        self._subject, self._told_at = subject, self._now()
        _log.info("%s", self.line)
        self._tell(self.line)

    async def for_each(
        self,
        things: Collection[_T],
        look: Callable[[_T], Awaitable[None]],
        doing: str = "",
        *,
        at_once: int = LOOKS_AT_ONCE,
    ) -> None:
        """Look at all, some at once, and note how far that is if `doing` says what it is.

        Raises the first failure, of which nobody makes a group.
        """
        failures: list[Exception] = []
        left = iter(things)
        done = 0

        def note() -> None:
            if doing and things:
                self.note(doing, f"{done:,} of {len(things):,}")

        async def work() -> None:
            nonlocal done
            for thing in left:  # of all workers
                if failures:
                    return
                try:
                    await look(thing)
                except Exception as error:
                    failures.append(error)
                done += 1
                note()

        note()
        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(work)
        if failures:
            raise failures[0]
