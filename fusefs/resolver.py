"""Makes inodes of entries that a listing named: when they are looked up, many at once, and each only once.

The listing names keys, ETags and sizes; attributes are in the object's metadata and cost a HEAD.

Whether they have changed since is told by the time of the object, which S3 tells in whole seconds: attributes that were
asked for within that second may have changed again. They are noted as older, so that the next listing has them asked
for once more.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Final

import trio

from fusefs.clock import Clock
from fusefs.errors import NoSuchEntry
from fusefs.inode_loader import InodeLoader
from fusefs.inode_table import InodeTable
from fusefs.inodes import Child, Directory, Inode
from fusefs.keys import segment_of
from fusefs.listed import ListedDirectory, ListedEntry
from fusefs.placement import Placement
from fusefs.single_flight import SingleFlight
from fusefs.versions import Version

RESOLVE_TASKS: Final = 32
"""HEADs under way at once for one directory; more of them than a store answers in one round trip gain nothing."""

_SECOND_NS: Final = 1_000_000_000

CLOCKS_DIFFER_NS: Final = 5 * _SECOND_NS
"""How much the store's clock may be behind ours for us to know that a second of it is over."""


class Resolver:
    """The only way from an entry's listing to its inode."""

    def __init__(self, loader: InodeLoader, placement: Placement, inodes: InodeTable, clock: Clock) -> None:
        self._loader = loader
        self._clock = clock
        self._placement = placement
        self._inodes = inodes
        self._resolving = SingleFlight[tuple[Directory, bytes], None]()

    async def resolve(self, directory: Directory, name: bytes) -> Inode:
        """Return the inode of an entry, made from the object's metadata if need be. Raises `NoSuchEntry`."""
        while True:
            child = directory.children.get(name)
            if child is None:
                raise NoSuchEntry(f"{name!r} does not exist")
            if isinstance(child, Inode) and not child.is_doubtful:
                return child
            await self._find_out(directory, name, child)

    async def learn(self, directory: Directory, name: bytes) -> None:
        """Ask for what only a request tells of an entry. One of which everything is known becomes no inode by this."""
        while costs_a_request(directory, name):
            await self._find_out(directory, name, directory.children[name])

    async def _find_out(self, directory: Directory, name: bytes, child: Child) -> None:
        """Do the next that it takes to have the inode of an entry."""
        if isinstance(child, Inode):
            work = partial(self._reload, child)
        elif self._remember(directory, name, child):
            return
        else:
            work = partial(self._resolve_now, directory, name, child)
        await self._resolving.run((directory, name), work)

    async def resolve_many(self, directory: Directory, names: Iterable[bytes]) -> None:
        """Resolve those of the names that still exist, several at once. Raises what the store raises."""
        names = list(names)
        self.recall(directory, names)
        unresolved = [name for name in names if costs_a_request(directory, name)]
        failures: list[Exception] = []
        waiting = iter(unresolved)

        async def resolve_waiting() -> None:
            for name in waiting:
                try:
                    await self.resolve(directory, name)
                except NoSuchEntry:
                    continue
                except Exception as error:
                    failures.append(error)

        async with trio.open_nursery() as nursery:
            for _ in unresolved[:RESOLVE_TASKS]:
                nursery.start_soon(resolve_waiting)
        for failure in failures:
            raise failure

    def recall(self, directory: Directory, names: Iterable[bytes]) -> None:
        """Make inodes of those entries of which everything is remembered."""
        for name in names:
            child = directory.children.get(name)
            if isinstance(child, ListedEntry) and not _costs_a_request(child):
                self._remember(directory, name, child)

    def _remember(self, directory: Directory, name: bytes, child: ListedEntry) -> bool:
        """Make the inode of an entry of which everything is remembered; return whether that is so."""
        found = self._loader.from_memory(directory.bucket_prefix + segment_of(name), child)
        if found is None:
            return False
        is_indexed = directory.is_indexed
        self._enter(directory, name, *found)
        found[0].is_doubtful = isinstance(child, ListedDirectory) and child.is_doubtful
        directory.is_indexed = is_indexed
        return True

    async def _resolve_now(self, directory: Directory, name: bytes, child: ListedEntry) -> None:
        key = directory.bucket_prefix + segment_of(name)
        inode: Inode | None
        if isinstance(child, ListedDirectory) and self._placement.is_departing(f"{key}/"):
            inode, version = self._loader.unmarked(child.number or self._inodes.new_number()), None
        else:
            asked_at_ns = self._clock.realtime_ns()
            inode, version = await self._loader.load(key, child)
            if inode is not None:
                _note_second(inode, asked_at_ns)
        if directory.children.get(name) is not child:
            return  # a listing has replaced it meanwhile
        if inode is None:
            directory.detach(name)
            return
        self._enter(directory, name, inode, version)

    def _enter(self, directory: Directory, name: bytes, inode: Inode, version: Version | None) -> None:
        self._inodes.add(inode)
        directory.attach(name, inode)
        if version is not None:
            stored_at_ns = inode.stored_at_ns
            self._placement.place(inode, version)
            inode.stored_at_ns = stored_at_ns

    async def _reload(self, inode: Inode) -> None:
        is_anothers = isinstance(inode, Directory) and self._placement.has_anothers_marker(inode)
        if inode.state.is_behind or inode.subject.state.is_behind or is_anothers:
            inode.is_doubtful = False  # what the bucket has is to be replaced, or is another one's
            return
        before = (inode.subject.attributes, inode.stored_at_ns)
        asked_at_ns = self._clock.realtime_ns()
        version = await self._loader.reload(inode)
        if not isinstance(inode, Directory) and inode.stored_at_ns != before[1]:
            return  # a listing has told of a later change: it is to be asked for again
        is_known = version == inode.version and before == (inode.subject.attributes, inode.stored_at_ns)
        if version is not None and inode.linked and isinstance(inode, Directory) and not is_known:
            stored_at_ns = inode.stored_at_ns
            self._placement.place(inode, version)
            inode.stored_at_ns = stored_at_ns
        inode.is_doubtful = False
        if inode.parent is not None and not is_known:
            inode.parent.is_indexed = False
        _note_second(inode, asked_at_ns)


def _note_second(inode: Inode, asked_at_ns: int) -> None:
    """Note it if what was asked for then may change while its object goes on having the same time."""
    stored_at_ns = inode.stored_at_ns
    if isinstance(inode, Directory) or not stored_at_ns or stored_at_ns % _SECOND_NS:
        return
    if asked_at_ns < stored_at_ns + _SECOND_NS + CLOCKS_DIFFER_NS:
        inode.stored_at_ns = stored_at_ns - 1


def costs_a_request(directory: Directory, name: bytes) -> bool:
    """Return whether to resolve an entry takes a request; False where there is none."""
    return _costs_a_request(directory.children.get(name))


def _costs_a_request(child: Child | None) -> bool:
    if isinstance(child, Inode):
        return child.is_doubtful
    return child is not None and (
        not child.mode or (isinstance(child, ListedDirectory) and child.is_doubtful)
    )
