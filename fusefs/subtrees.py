"""Lists and looks up everything below a directory: objects move one by one, and each must be known to be moved.

A directory below that has a source moves by itself (`renamed_directories`), and does not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import trio

from fusefs.inodes import Child, Directory, Inode, is_joined
from fusefs.linked_names import LinkedNames
from fusefs.listings import Listings
from fusefs.resolver import Resolver

WALK_TASKS: Final = 16
"""Directories that are looked into at once: few programs make trees so wide that more of them would gain much."""


class Subtrees:
    """The listing and looking up of all that is below one directory."""

    def __init__(self, listings: Listings, resolver: Resolver, names: LinkedNames) -> None:
        self._listings = listings
        self._resolver = resolver
        self._names = names

    async def find_all(self, directory: Directory, *, max_age_seconds: float = math.inf) -> None:
        """Make inodes of all entries below, as of listings that are no older. Raises what the store raises."""
        failures: list[Exception] = []
        waiting = [directory]

        async def look_into_waiting() -> None:
            while waiting and not failures:
                within = waiting.pop()
                try:
                    await self._find_within(within, max_age_seconds)
                except Exception as error:  # of any kind: the nursery would make a group of it
                    failures.append(error)
                    return
                waiting.extend(_directories_in(within))
                for _ in range(min(len(waiting) - 1, WALK_TASKS - len(nursery.child_tasks))):
                    nursery.start_soon(look_into_waiting)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look_into_waiting)
        for failure in failures:
            raise failure

    async def _find_within(self, directory: Directory, max_age_seconds: float) -> None:
        await self._listings.ensure_listed(directory, max_age_seconds=max_age_seconds)
        await self._resolver.resolve_many(directory, list(directory.children))
        for child in list(directory.inodes()):
            await self._names.join(child)


def is_known_below(inode: Inode) -> bool:
    """Return whether everything below is listed and an inode."""
    waiting = [inode] if isinstance(inode, Directory) else []
    for directory in waiting:
        if directory.listed_at is None or not all(map(_is_known, directory.children.values())):
            return False
        waiting.extend(_directories_in(directory))
    return True


def _directories_in(directory: Directory) -> Iterator[Directory]:
    if directory.subdirectories:
        for child in directory.inodes():
            if isinstance(child, Directory) and child.source is None:
                yield child


def _is_known(child: Child) -> bool:
    return isinstance(child, Inode) and not child.is_doubtful and is_joined(child)
