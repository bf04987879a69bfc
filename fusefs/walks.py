"""Lists directories before they are read, for those who walk through a tree.

Programs that do (`diff -r`, `cp -a`, `grep -r`) read the directories of a directory one after the other, and a listing
each is what they wait for where there are few files in each. It is the same decision as for small files
(`files_ahead`), made with less trust, because a listing is the dearest of all requests. Of a directory that is listed
for who reads all files on the way, the first ones are fetched as well, and for who goes into the directories below each
its first directories listed. A listing that is too old to be read from is made again. Nobody waits for it, and it fails
silently.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Final

import trio

from fusefs.content import Spawn
from fusefs.entry_numbers import numbers_in
from fusefs.files_ahead import FilesAhead
from fusefs.inodes import Directory, File
from fusefs.listed import ListedDirectory
from fusefs.listings import Listings
from fusefs.resolver import Resolver
from fusefs.small_files import SmallFiles

_log = logging.getLogger(__name__)

LISTED_ON_TRUST: Final = 4
MAX_WAITING: Final = 16
"""Directories that are listed and were not read yet."""

LIST_TASKS: Final = 8
"""Listings under way at once for nobody."""


class Walks:
    """The directories that are listed ahead; `Directory.directories_ahead` is what is known of those in each."""

    def __init__(
        self,
        spawn: Spawn,
        listings: Listings,
        resolver: Resolver,
        small_files: SmallFiles,
        *,
        max_age_seconds: float,
    ) -> None:
        """`max_age_seconds`: of a listing that is read from."""
        self._spawn = spawn
        self._listings = listings
        self._resolver = resolver
        self._small_files = small_files
        self._max_age_seconds = max_age_seconds
        self._limiter = trio.CapacityLimiter(LIST_TASKS)
        #: What is known of the directory in which one was read last.
        self._last: FilesAhead | None = None
        #: The one that was read last, and whether directories below such a one are read.
        self._read: Directory | None = None
        self._goes_below = True

    def opens(self, file: File, *, max_bytes: int) -> None:
        """Note that a file was opened for reading; `max_bytes` bounds what is fetched of those that come next."""
        was_of_use = self._small_files.is_of_use
        self._small_files.opened(file, max_bytes=max_bytes)
        if self._small_files.is_of_use and not was_of_use:
            for above in file.above():
                self._expect_below(above)

    def _expect_below(self, directory: Directory) -> None:
        """Fetch the first files of the directories that were listed ahead before it was known that files are read."""
        for name in directory.directories_ahead.unused if directory.directories_ahead is not None else ():
            below = directory.children.get(name)
            if isinstance(below, Directory) and self._is_listed(below):
                self._small_files.expect(below)
                self._expect_below(below)

    def reads(self, directory: Directory) -> None:
        """Note that somebody reads the names in a directory, and begin to list those that come next."""
        parent = directory.parent
        self._look_where(directory)
        if parent is None:
            return
        ahead = parent.directories_ahead
        if ahead is None:
            if self._is_listed(directory):
                return
            ahead = self._begin(parent)
        self._last = ahead
        for name in ahead.opened(directory.name, partial(self._cost_of, parent), max_cost=MAX_WAITING):
            self._spawn(self._list, parent, name, self._goes_below and ahead.was_used)

    def _look_where(self, directory: Directory) -> None:
        if self._read is not None and directory.parent is self._read:
            self._goes_below = True
        elif self._read is not None and self._read is not directory and self._read.subdirectories:
            self._goes_below = False
        self._read = directory

    def has_read(self, directory: Directory) -> None:
        """Note that somebody has the names in a directory; what they will go into first is listed and fetched."""
        if directory.listed_at is None:
            return  # more names are on their way
        self._small_files.read(directory)
        if self._goes_below and self._last is not None and self._last.is_of_use:
            self._list_below(directory)

    def _list_below(self, directory: Directory) -> None:
        if directory.directories_ahead is None:
            for name in self._begin(directory).expect(
                partial(self._cost_of, directory), max_cost=MAX_WAITING
            ):
                self._spawn(self._list, directory, name, False)

    def _begin(self, parent: Directory) -> FilesAhead:
        parent.directories_ahead = FilesAhead(
            partial(_directories_in, parent),
            numbers_in(parent),
            on_trust=LISTED_ON_TRUST,
            is_expected=self._last is not None and self._last.is_of_use,
        )
        return parent.directories_ahead

    async def _list(self, parent: Directory, name: bytes, is_with_those_below: bool) -> None:
        async with self._limiter:
            try:
                directory = await self._resolver.resolve(parent, name)
                if isinstance(directory, Directory):
                    await self._listings.ensure_listed(directory, max_age_seconds=self._max_age_seconds)
                    self._small_files.expect(directory)
                    if is_with_those_below:
                        self._list_below(directory)
            except Exception as error:  # of any kind: nobody has asked
                _log.debug("%r could not be listed ahead: %s", name, error)

    def _is_listed(self, directory: Directory) -> bool:
        return self._listings.is_listed(directory, max_age_seconds=self._max_age_seconds)

    def _cost_of(self, parent: Directory, name: bytes) -> int | None:
        """Return 1 for a directory that is to be listed before it is read, and None for all other entries."""
        child = parent.children.get(name)
        is_unlisted = isinstance(child, ListedDirectory) or (
            isinstance(child, Directory) and not self._is_listed(child)
        )
        return 1 if is_unlisted else None


def _directories_in(parent: Directory) -> list[bytes]:
    return [name for name, child in parent.children.items() if isinstance(child, Directory | ListedDirectory)]
