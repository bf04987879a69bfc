"""Fetches small files of a directory before they are opened, as `files_ahead` decides.

Only what is in the bucket and nowhere else is fetched: a file that is being written, or has been read, is not touched.
Nobody waits for it, and it fails silently: whoever opens the file asks for it again and gets their own error. A store
that does not answer soon is left to those who need it. What comes first is of the directory that somebody is in.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Collection
from functools import partial
from typing import Final

import trio

from fusefs.content import ContentSources
from fusefs.entry_numbers import numbers_in
from fusefs.fetching import fetch_unasked
from fusefs.files_ahead import FIRST_EXPECTED, FIRST_UNUSED, MAX_SIZE, FilesAhead
from fusefs.inodes import Directory, File
from fusefs.listed import ListedObject
from fusefs.resolver import Resolver

_log = logging.getLogger(__name__)

FETCH_TASKS: Final = 24
"""Small files on their way at once: 3 MiB of memory, and some connections are left to those who wait."""

MAX_WAITING: Final = 256
"""Files that are to be fetched: where so many wait their turn, no further directory is expected to be read."""

PATIENCE_SECONDS: Final = 5.0
"""For one file: so long it is worth waiting for, and no outage is waited out for what nobody has asked for."""


class SmallFiles:
    """The files of all directories that are fetched ahead; `Directory.files_ahead` is what is known of each."""

    def __init__(self, sources: ContentSources, resolver: Resolver) -> None:
        self._spawn = sources.spawn
        self._resolver = resolver
        #: What is known of the directory in which a file was opened last, and of the one before.
        self._last: FilesAhead | None = None
        self._before: FilesAhead | None = None
        #: Of the directory whose first files were fetched because its names were read.
        self._read: FilesAhead | None = None
        self._max_bytes = 0
        #: What is to be fetched and has not begun, the most urgent directory first.
        self._waiting = OrderedDict[Directory, deque[bytes]]()
        self._tasks = 0

    def opened(self, file: File, *, max_bytes: int) -> None:
        """Note that a file was opened for reading, and begin to fetch those that will be opened next."""
        directory = file.parent
        if directory is None or file.size > MAX_SIZE:
            return
        ahead = directory.files_ahead
        if ahead is None:
            if not file.content.is_bare:
                return
            ahead = self._begin(directory)
        if ahead is not self._last:
            self._before, self._last = self._last, ahead
        self._read = None
        self._max_bytes = max_bytes
        self._add(directory, ahead.opened(file.name, partial(_size_of, directory), max_cost=max_bytes))
        self._hurry(directory)

    def read(self, directory: Directory) -> None:
        """Fetch the first files of a directory whose names somebody has read, unless only names are read by now."""
        if self._read is None or self._read.was_used:
            self._expect(directory)
            self._read = directory.files_ahead
        self._hurry(directory)

    def expect(self, directory: Directory) -> None:
        """Fetch the first files of a directory that was listed, if those of the last one were of use."""
        if sum(map(len, self._waiting.values())) < MAX_WAITING:
            self._expect(directory)

    def _expect(self, directory: Directory) -> None:
        if not self.is_of_use or directory.files_ahead is not None:
            return
        ahead = self._begin(directory)
        self._add(directory, ahead.expect(partial(_size_of, directory), max_cost=self._max_bytes))

    def _begin(self, directory: Directory) -> FilesAhead:
        directory.files_ahead = FilesAhead(
            lambda: directory.children,
            numbers_in(directory),
            on_trust=FIRST_EXPECTED if self.is_of_use else FIRST_UNUSED,
            is_expected=self.is_of_use,
        )
        return directory.files_ahead

    @property
    def is_of_use(self) -> bool:
        """Whether what was fetched was opened, in the last directory or, where that has just begun, the one before."""
        return any(ahead.is_of_use for ahead in (self._last, self._before) if ahead is not None)

    def _add(self, directory: Directory, names: Collection[bytes]) -> None:
        if names:
            self._waiting.setdefault(directory, deque()).extend(names)
        for _ in range(min(len(names), FETCH_TASKS - self._tasks)):
            self._tasks += 1
            self._spawn(self._work)

    def _hurry(self, directory: Directory) -> None:
        if directory in self._waiting:
            self._waiting.move_to_end(directory, last=False)

    async def _work(self) -> None:
        try:
            while self._waiting:
                directory, names = next(iter(self._waiting.items()))
                name = names.popleft()
                if not names:
                    del self._waiting[directory]
                await self._fetch(directory, name)
        finally:
            self._tasks -= 1

    async def _fetch(self, directory: Directory, name: bytes) -> None:
        try:
            with trio.move_on_after(PATIENCE_SECONDS):
                inode = await self._resolver.resolve(directory, name)
                # Since it was listed it may have become another one, or a large one.
                if isinstance(inode, File) and inode.content.is_bare and inode.size <= MAX_SIZE:
                    await fetch_unasked(inode.content)
        except Exception as error:  # of any kind: nobody has asked
            _log.debug("%r could not be fetched ahead: %s", name, error)


def _size_of(directory: Directory, name: bytes) -> int | None:
    """Return the size of a file that is small, in the bucket, and not on the local disk; None for other entries."""
    child = directory.children.get(name)
    is_file = isinstance(child, ListedObject) or (isinstance(child, File) and child.content.is_bare)
    if child is None or not is_file:
        return None
    return child.size if 0 < child.size <= MAX_SIZE else None
