"""Finds the other names of an inode that has several, when one of them is looked up.

What the metadata of an object says is not enough: `link_lists` says when two objects are names of one inode. On top
of that they must be equal, which size and time of change tell. Whoever writes one of them alone breaks the link, and
nothing of either is lost.

The list's keys are looked up in the tree. One of the entries becomes the inode; the others are its aliases from then
on, so that whatever is done by one name is seen by all.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from backends.base import ObjectStorage
from backends.errors import NotFound
from fusefs.changes import Changes
from fusefs.errors import NoSuchEntry
from fusefs.inode_table import InodeTable
from fusefs.inodes import Alias, Directory, File, Inode, Links, is_joined
from fusefs.keys import name_of, name_of_file_beside
from fusefs.link_lists import inode_number, read_list
from fusefs.listings import Listings
from fusefs.placement import Placement
from fusefs.resolver import Resolver
from fusefs.single_flight import SingleFlight


class LinkedNames:
    """The only way from several objects to one inode."""

    def __init__(
        self,
        storage: ObjectStorage,
        placement: Placement,
        changes: Changes,
        inodes: InodeTable,
        listings: Listings,
        resolver: Resolver,
    ) -> None:
        self._storage = storage
        self._placement = placement
        self._changes = changes
        self._inodes = inodes
        self._listings = listings
        self._resolver = resolver
        self._root = inodes.root
        self._joining = SingleFlight[int, None]()

    async def join(self, entry: Inode) -> None:
        """Find the other names of an inode that was just made of its object. Raises what the store raises."""
        while not is_joined(entry) and entry.linked:
            assert entry.links is not None
            await self._joining.run(entry.links.number, partial(self._join_now, entry, entry.links))

    async def _join_now(self, inode: Inode, links: Links) -> None:
        names, listed = await read_list(self._storage, links.number)
        others = await self._find_others(inode, names)
        while inode.linked and not all(other.linked for other in others):
            others = await self._find_others(inode, names)  # one was packed since, or is gone
        if not inode.linked:
            return
        links.is_joined = True
        links.listed, links.names = listed, names
        if inode.bucket_key not in names:
            inode.links = None
            return
        self._join_all(inode, links, others)

    async def _find_others(self, inode: Inode, names: Sequence[str]) -> list[Inode]:
        if inode.bucket_key not in names:
            return []
        found = [await self._find(key) for key in names]
        return [other for other in found if other is not None and other is not inode]

    async def _find(self, key: str) -> Inode | None:
        """Return the entry under a key, if there is one."""
        directory = self._placement.moving_from(key) or self._root
        entry: Inode = directory
        segments = key.removeprefix(directory.bucket_prefix).split("/")
        for depth, segment in enumerate(segments, 1):
            if not isinstance(entry, Directory):
                return None
            name = name_of(segment)
            if name is None:
                return None
            try:
                await self._listings.ensure_read(entry, name)
                if depth == len(segments):
                    name = _name_of_object(entry, segment, name)
                entry = await self._resolver.resolve(entry, name)
            except (NoSuchEntry, NotFound):
                return None
        return entry

    def _join_all(self, inode: Inode, links: Links, others: Sequence[Inode]) -> None:
        known = next(
            (other.subject for other in others if _has_list(other, links) and is_joined(other)), None
        )
        if known is not None and known.links is not None:
            if _are_one(known, inode):
                self._make_alias(known, known.links, inode)
            else:
                inode.links = None
            return
        for other in others:
            if _has_list(other, links) and _are_one(inode, other):
                self._make_alias(inode, links, other)
        # One of those may have had it, by the index.
        self._inodes.renumber(inode, inode_number(links.number))

    def _make_alias(self, inode: Inode, links: Links, entry: Inode) -> None:
        """Let an entry, which nobody but us has seen, be a further name of an inode."""
        directory, name, version, stored_at_ns = entry.parent, entry.name, entry.version, entry.stored_at_ns
        assert directory is not None
        assert version is not None
        if entry.attributes.ctime_ns > inode.attributes.ctime_ns:
            inode.attributes = entry.attributes
        alias = Alias(
            number=self._inodes.new_number(), attributes=entry.attributes, of=inode, copied=inode.version
        )
        is_indexed = directory.is_indexed
        directory.attach(name, alias)
        links.aliases.append(alias)
        self._placement.place(alias, version)
        alias.stored_at_ns = stored_at_ns
        directory.is_indexed = is_indexed
        self._inodes.drop(entry)
        self._changes.joined(entry, alias)
        if isinstance(entry, File):
            entry.content.discard()


def _name_of_object(directory: Directory, segment: str, name: bytes) -> bytes:
    """Return the name of a segment's object: not the segment's own where there is a directory, too."""
    beside = name_of_file_beside(segment)
    return beside if beside is not None and beside in directory.children else name


def _has_list(entry: Inode, links: Links) -> bool:
    theirs = entry.subject.links
    return theirs is not None and theirs.number == links.number


def _are_one(inode: Inode, other: Inode) -> bool:
    """Return whether two inodes, each made of its own object, are as equal as the objects of one inode."""
    return (
        type(inode) is type(other)
        and other.version is not None
        and inode.attributes.kind == other.attributes.kind
        and _stored_size(inode) == other.version.size
        and inode.attributes.mtime_ns == other.attributes.mtime_ns
        and not other.handles
        and not other.lookups
    )


def _stored_size(inode: Inode) -> int:
    """Return how long the object of an inode is, or will be: that of a fifo may have bytes of somebody else."""
    return inode.version.size if inode.version is not None and inode.hides_content else inode.size
