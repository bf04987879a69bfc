"""Makes inodes of entries that a listing named: when they are looked up, many at once, and each only once.

The listing names keys, ETags and sizes; attributes are in the object's metadata and cost a HEAD.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Final

import trio

from fusefs.errors import NoSuchEntry
from fusefs.inode_loader import InodeLoader
from fusefs.inodes import Child, Directory, Inode, InodeTable
from fusefs.keys import segment_of
from fusefs.listed import ListedEntry
from fusefs.placement import Placement
from fusefs.single_flight import SingleFlight

RESOLVE_TASKS: Final = 32
"""HEADs under way at once for one directory; more of them than a store answers in one round trip gain nothing."""


class Resolver:
    """The only way from an entry's listing to its inode."""

    def __init__(self, loader: InodeLoader, placement: Placement, inodes: InodeTable) -> None:
        self._loader = loader
        self._placement = placement
        self._inodes = inodes
        self._resolving = SingleFlight[tuple[Directory, bytes]]()

    async def resolve(self, directory: Directory, name: bytes) -> Inode:
        """Return the inode of an entry, made from the object's metadata if need be. Raises `NoSuchEntry`."""
        while True:
            child = directory.children.get(name)
            if child is None:
                raise NoSuchEntry(f"{name!r} does not exist")
            if isinstance(child, Inode):
                return child
            await self._resolving.run((directory, name), partial(self._resolve_now, directory, name, child))

    async def look_up(self, directory: Directory, name: bytes) -> Inode:
        """Resolve an entry, and with it those that will be looked up next. Raises `NoSuchEntry`."""
        if directory.look_ahead is not None and _costs_a_request(directory.children.get(name)):
            following = directory.look_ahead.next_after(
                name, lambda after: _costs_a_request(directory.children.get(after))
            )
            failures = await self.resolve_ahead(directory, [name, *following])
            if name in failures:
                raise failures[name]
        return await self.resolve(directory, name)

    async def resolve_many(self, directory: Directory, names: Iterable[bytes]) -> None:
        """Resolve those of the names that still exist, several at once. Raises what the store raises."""
        for failure in (await self.resolve_ahead(directory, names)).values():
            raise failure

    async def resolve_ahead(self, directory: Directory, names: Iterable[bytes]) -> dict[bytes, Exception]:
        """Resolve those of the names that still exist, several at once; return what failed."""
        unresolved = [name for name in names if isinstance(directory.children.get(name), ListedEntry)]
        failures: dict[bytes, Exception] = {}
        limiter = trio.CapacityLimiter(RESOLVE_TASKS)

        async def resolve_one(name: bytes) -> None:
            try:
                async with limiter:
                    await self.resolve(directory, name)
            except NoSuchEntry:
                return
            except Exception as error:
                failures[name] = error

        async with trio.open_nursery() as nursery:
            for name in unresolved:
                nursery.start_soon(resolve_one, name)
        return failures

    async def _resolve_now(self, directory: Directory, name: bytes, child: ListedEntry) -> None:
        inode, version = await self._loader.load(directory.prefix + segment_of(name), child)
        if directory.children.get(name) is not child:
            return  # a listing has replaced it meanwhile
        if inode is None:
            directory.detach(name)
            return
        self._inodes.add(inode)
        directory.attach(name, inode)
        if version is not None:
            self._placement.place(inode, version)


def _costs_a_request(child: Child | None) -> bool:
    return isinstance(child, ListedEntry)
