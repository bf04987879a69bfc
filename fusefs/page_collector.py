"""What was done without fsync is in the log in time, what was written and only the kernel has included.

The kernel's writeback cache keeps the dirty pages of files that stay open until somebody asks for them. They are asked
for every half `commit_interval` and committed then, so that nothing is older than that in memory alone, if a commit
takes a quarter of it at most.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Final

import trio

_log = logging.getLogger(__name__)

COLLECTING_SHARE: Final = 0.5
"""Of `commit_interval`: how long written pages of open files stay with the kernel; the rest is the log's."""

USUAL_SYNC_SECONDS: Final = 0.1
"""In which the kernel has handed over its pages, unless those who write them have to wait for the store."""

BRIEF_SECONDS: Final = 5.0
"""For how long a rename waits for pages: where the store is away, those who hand them over may wait for it."""

PAUSE_SECONDS: Final = 60.0
"""For how long none waits after one has waited in vain."""


class BriefCollector:
    """Collects pages for calls that can do without, and not wait for the store until it is back."""

    def __init__(self, collect: Callable[[], Awaitable[None]]) -> None:
        self._collect: Final = collect
        self._pauses_until = -math.inf

    async def collect(self) -> None:
        """Have the kernel hand over every page, as far as that goes quickly. Raises nothing."""
        if trio.current_time() < self._pauses_until:
            return
        with trio.move_on_after(BRIEF_SECONDS) as patience:
            try:
                await self._collect()
            except OSError as error:
                _log.warning("the kernel's pages could not be fetched: %s", error.strerror)
        if patience.cancelled_caught:  # a thread is left that waits for them
            self._pauses_until = trio.current_time() + PAUSE_SECONDS


class PageCollector:
    """Commits at least once in `interval_seconds`, with the pages of open files; `run` does the work.

    `collect` fetches the pages, and raises OSError; `has_writers` says whether a file is open for writing, and `commit`
    lets the log have what has changed.
    """

    def __init__(
        self,
        collect: Callable[[], Awaitable[None]],
        *,
        has_writers: Callable[[], bool],
        commit: Callable[[], Awaitable[None]],
        interval_seconds: float,
    ) -> None:
        self._collect: Final = collect
        self._has_writers: Final = has_writers
        self._commit_all: Final = commit
        self._pause_seconds: Final = interval_seconds * COLLECTING_SHARE

    async def run(self) -> None:
        """Fetch what was written to files that stay open, and that only the kernel has; let the log have it in time.

        With no writer there are no such pages, and the descriptor of the call would only be in the way of umount(8).
        """
        while True:
            await trio.sleep(self._pause_seconds)
            if self._has_writers():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._commit_meanwhile)
                    try:
                        await self._collect()
                    except OSError as error:
                        _log.warning("the kernel's pages could not be fetched: %s", error.strerror)
                    nursery.cancel_scope.cancel()
            await self._commit()

    async def _commit_meanwhile(self) -> None:
        """Let the log have everything else while the kernel cannot hand over its pages: who writes has to wait."""
        await trio.sleep(USUAL_SYNC_SECONDS)
        while True:
            await self._commit()
            await trio.sleep(self._pause_seconds)

    async def _commit(self) -> None:
        try:
            await self._commit_all()
        except Exception as error:  # of any kind: who waits for a commit has it, and nobody does here
            _log.warning("what was done without fsync is not in the log yet: %s", error)
