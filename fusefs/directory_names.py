"""The names of one directory on their way to those who read them: while a listing goes on, and when it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import trio

from backends.base import ListPage, ObjectStorage
from backends.errors import StorageError
from fusefs.content import Spawn
from fusefs.inodes import Directory

PAGES_AHEAD: Final = 2
"""Pages that have come and that nobody has taken yet; one more is on its way. Each takes some 300 KB."""


class PagesAhead:
    """The pages of one listing: the next is asked for as soon as one has come, and not when that has been read."""

    def __init__(self, storage: ObjectStorage, spawn: Spawn, prefix: str) -> None:
        send, self._pages = trio.open_memory_channel[ListPage](PAGES_AHEAD)
        self._failure: Exception = StorageError("the listing was given up")
        spawn(self._fetch, storage, prefix, send)

    def __enter__(self) -> PagesAhead:
        return self

    def __exit__(self, *exception: object) -> None:
        """Ask for no more: whoever read them has what was wanted."""
        self._pages.close()

    async def take(self) -> ListPage:
        """Return the next page when it is there; the last one has no `next_token`. Raises what the store raises."""
        try:
            return await self._pages.receive()
        except trio.EndOfChannel:
            raise self._failure from None

    async def _fetch(
        self, storage: ObjectStorage, prefix: str, send: trio.MemorySendChannel[ListPage]
    ) -> None:
        token: str | None = None
        with send:
            try:
                while True:
                    page = await storage.list_prefix(prefix, delimiter="/", page_token=token)
                    await send.send(page)
                    token = page.next_token
                    if token is None:
                        return
            except trio.BrokenResourceError:
                return  # nobody wants it any more
            except Exception as error:  # of any kind: it is for the one who takes the page
                self._failure = error


class ListingRun:
    """One listing under way: what it has brought into the tree so far, in the order of the listing."""

    def __init__(self, directory: Directory) -> None:
        self.began = trio.current_time()
        #: Whether the tree has nothing in the directory.
        self.is_first = not directory.children
        self.names: list[bytes] = []
        #: Every key up to this one has been read, in the store's own order.
        self.past = ""
        self.is_over = False
        self.failure: Exception | None = None
        self._directory = directory
        self._distrusted = directory.distrusted
        self._news = trio.lowlevel.ParkingLot()

    @property
    def is_trusted(self) -> bool:
        """Whether nothing was found since that it may not tell of."""
        return self._directory.distrusted == self._distrusted

    async def wait_for_names(self, count: int) -> None:
        """Return when there are more names than that, or no more to come. Raises why the listing failed."""
        await self._wait_until(lambda: len(self.names) > count)

    async def wait_until_begun(self) -> None:
        """Return when something has been read. Raises why the listing failed."""
        await self._wait_until(lambda: bool(self.past))

    async def wait_until_past(self, key: str) -> None:
        """Return when everything up to a key has been read. Raises why the listing failed."""
        await self._wait_until(lambda: self.past >= key)

    async def wait_until_over(self) -> None:
        """Return when there is no more to come. Raises why the listing failed."""
        await self._wait_until(lambda: False)

    async def _wait_until(self, has_come: Callable[[], bool]) -> None:
        while not has_come():
            if self.failure is not None:
                raise self.failure
            if self.is_over:
                return
            await self._news.park()
            # Or a listing that ends with everything else would be a failure to whoever was just woken.
            await trio.lowlevel.checkpoint_if_cancelled()

    def add(self, names: Iterable[bytes], *, past: str) -> None:
        """Note that all up to the key `past` has been read, and is in the tree."""
        self.names += names
        self.past = max(self.past, past)  # a page may be empty
        self._news.unpark_all()

    def end(self, failure: Exception | None) -> None:
        self.is_over = True
        self.failure = failure
        self._news.unpark_all()


class DirectoryNames:
    """The names of a directory as one reader gets them: each once, at a place that stays; more may be on their way."""

    def __init__(self, directory: Directory, run: ListingRun | None) -> None:
        self._directory = directory
        self._run = run
        #: Grows while the listing goes on; it is the run's own list.
        self.so_far: list[bytes] = run.names if run is not None else sorted(directory.children)

    async def take(self, start: int, count: int) -> list[bytes]:
        """Return up to `count` names from place `start` on, as soon as there are any; none means the end."""
        if self._run is not None:
            await self._run.wait_for_names(start)
            if self._run.is_over and self._run.failure is None:
                self._add_the_rest(self._run)
                self._run = None
        return self.known(start, count)

    def known(self, start: int, count: int) -> list[bytes]:
        """Return up to `count` names from place `start` on, as many as have come already."""
        return self.so_far[start : start + count]

    def _add_the_rest(self, run: ListingRun) -> None:
        """Add what the tree has and the bucket has not; a first listing found a tree that had nothing."""
        if not run.is_first:
            listed = set(self.so_far)
            self.so_far += sorted(name for name in self._directory.children if name not in listed)
