"""Open files and directories: the handles that the kernel names in its requests."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import trio

from fusefs.errors import BadHandle
from fusefs.inodes import Directory, File
from fusefs.prefetch import SequentialDetector


@dataclass(eq=False, slots=True)
class OpenFile:
    """One open(2) of a regular file."""

    file: File
    flags: int
    reader: SequentialDetector

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY


class Names(Protocol):
    """The names of a directory, each at a place that stays."""

    async def take(self, start: int, count: int) -> list[bytes]:
        """Return up to `count` names from place `start` on; none means the end."""

    def known(self, start: int, count: int) -> list[bytes]:
        """Return those of them that have come already."""


class Ahead(Protocol):
    """What fetches attributes ahead of a reader."""

    async def resolve(self, names: Sequence[bytes], following: Iterable[bytes]) -> None:
        """Return when those of `names` are there; those that follow are on their way then."""

    def stop(self) -> None:
        """End what is under way."""


class _NoNames:
    """Where nothing has been read yet; a reader begins at place 0, where the names are taken."""

    async def take(self, start: int, count: int) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        return []

    def known(self, start: int, count: int) -> list[bytes]:
        return []


@dataclass(eq=False, slots=True)
class OpenDirectory:
    """One opendir(3): the names as they were when reading began, so that what is read stays in order."""

    directory: Directory
    names: Names = field(default_factory=_NoNames)
    #: `Directory.lookups_within` at the last read.
    lookups_seen: int = 0
    #: What fetches attributes; None as long as no entry was looked up between two reads.
    ahead: Ahead | None = None

    @property
    def has_names(self) -> bool:
        """Whether reading has begun."""
        return not isinstance(self.names, _NoNames)


_Handle = TypeVar("_Handle", OpenFile, OpenDirectory)


class Handles:
    """Open handles by number."""

    def __init__(self) -> None:
        self._handles: dict[int, OpenFile | OpenDirectory] = {}
        self._next_number = 1

    def __len__(self) -> int:
        return len(self._handles)

    @property
    def any_writable(self) -> bool:
        """Whether a file is open for writing."""
        return any(isinstance(handle, OpenFile) and handle.writable for handle in self._handles.values())

    def of_files(self) -> list[int]:
        """Return the numbers of the open files, as they are now."""
        return [number for number, handle in self._handles.items() if isinstance(handle, OpenFile)]

    def add(self, handle: OpenFile | OpenDirectory) -> int:
        """Return the number by which the kernel will name the handle."""
        number = self._next_number
        self._next_number += 1
        self._handles[number] = handle
        return number

    def get(self, number: int, kind: type[_Handle]) -> _Handle:
        """Return a handle. Raises `BadHandle`."""
        handle = self._handles.get(number)
        if not isinstance(handle, kind):
            raise BadHandle(f"{number} is not an open {kind.__name__}")
        return handle

    def remove(self, number: int, kind: type[_Handle]) -> _Handle:
        """Return a handle that is closed with this call. Raises `BadHandle`."""
        handle = self.get(number, kind)
        del self._handles[number]
        return handle
