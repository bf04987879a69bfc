"""An inode as an entry again: what the index keeps of it, and the tree when nobody needs the inode any more.

An inode takes some kilobytes, and an entry a few hundred bytes. What the kernel has forgotten becomes an entry with
everything that was known of it: the same inode is made of that, without a request, when the name is looked up again.

That has to wait where something is staged of a file, where the bucket lacks something of what this mount has changed,
and as long as the log tells of it: the inode has a name there, the next one of the same file will have another, and a
reader must not find both. All these end at some time, of which nobody tells: now and then the `Packer` looks at every
inode. It runs between two awaits of whoever else holds one, who has to look it up anew, as after any change of names.

Of an inode with several names an entry has no more than the number: to find it again takes a HEAD for each name, and a
GET of their list. So a certain number of such names stays in memory, and what is beyond that is packed, all names of
an inode at once.
"""

from __future__ import annotations

import struct
import time
from typing import Final

import trio

from fusefs.changes import Changes
from fusefs.inode_table import InodeTable
from fusefs.inodes import Alias, Directory, File, Inode, Symlink, is_joined
from fusefs.listed import ListedDirectory, ListedEntry, ListedObject, Remembered, nothing_but
from fusefs.placement import Placement

INTERVAL_SECONDS: Final = 10.0
"""Between two times that every inode is looked at: a few thousand files a second are used meanwhile, at most."""

EFFORT: Final = 0.005
"""Share of the processor that this may take: where the kernel refers to a million inodes, the pause is longer."""

LINKED_NAMES: Final = 20_000
"""Names, of inodes that have several and that nobody needs, which stay in memory: they take some 100 MB there."""

YIELD_AFTER: Final = 200
"""Inodes after which other tasks have their turn: some milliseconds where each of them is packed."""


class Packer:
    """Packs what could not be packed when the kernel forgot it."""

    def __init__(self, inodes: InodeTable, placement: Placement, changes: Changes) -> None:
        self._inodes = inodes
        self._placement = placement
        self._changes = changes

    async def run(self) -> None:
        """Look at every inode, again and again."""
        while True:
            took = await self.pack_all()
            await trio.sleep(max(INTERVAL_SECONDS, took / EFFORT))

    async def pack_all(self) -> float:
        """Pack what nobody needs; return how many seconds of the processor that took."""
        took, linked_names = 0.0, 0
        inodes = self._inodes.all()
        for first in range(0, len(inodes), YIELD_AFTER):
            began = time.perf_counter()
            for inode in inodes[first : first + YIELD_AFTER]:
                if not (
                    inode.linked or inode.lookups or inode.handles or self._changes.is_unpublished(inode)
                ):
                    self._inodes.drop(
                        inode
                    )  # it has lost its name to somebody else, when nobody referred to it
                elif not inode.aliases:
                    pack(inode, self._inodes, self._placement, self._changes)
                elif not _is_needed(inode):
                    linked_names += inode.link_count
                    if linked_names > LINKED_NAMES:
                        _pack_all_names(inode, self._inodes, self._placement, self._changes)
            took += time.perf_counter() - began
            await trio.lowlevel.checkpoint()
        return took


def entry_of(inode: Inode, placement: Placement) -> ListedEntry | None:
    """Return all that is known of an inode, as it is in the bucket; None if there is nothing to remember.

    Of what only a HEAD tells that is the number: of an inode with several names, of one that somebody has changed, and
    of one with a time that cannot be written down.
    """
    if inode.stored_at_ns is None:
        return None
    target = inode.target if isinstance(inode, Symlink) else b""
    try:
        return _entry_of(inode, placement, Remembered(inode.number, inode.attributes, target))
    except struct.error:
        return _entry_of(inode, placement, nothing_but(inode.number))


def pack(inode: Inode, inodes: InodeTable, placement: Placement, changes: Changes) -> None:
    """Put what is known of an inode in its place in the tree, if nobody needs it and nothing is lost by that."""
    if not _has_names(inode) and not _is_needed(inode):
        _pack_all_names(inode, inodes, placement, changes)


def _pack_all_names(inode: Inode, inodes: InodeTable, placement: Placement, changes: Changes) -> None:
    """Do the same in all places of an inode that nobody needs, if nothing is lost by that."""
    if inodes.are_kept:
        return
    names = (inode, *inode.aliases)
    entries = [entry for each in names if (entry := _packed(each, placement, changes)) is not None]
    if len(entries) < len(names):
        return
    for each, entry in zip(names, entries, strict=True):
        assert each.parent is not None
        assert each.version is not None
        directory, is_indexed = each.parent, each.parent.is_indexed
        placement.forget(each.version.key)
        directory.attach(each.name, entry)
        directory.is_indexed = is_indexed
    if isinstance(inode, File):
        inode.content.discard()
    inodes.drop(inode)


def _packed(place: Inode, placement: Placement, changes: Changes) -> ListedObject | None:
    """Return what takes the place of an inode, or of an alias; None where something would be lost by that."""
    directory, version = place.parent, place.version
    if directory is None or version is None or changes.needs(place):
        return None
    if place.state.published_at >= directory.listing_since:
        return None  # an inode that was published later than a listing began is not taken for what that says of it
    entry = entry_of(place, placement)
    if not isinstance(entry, ListedObject):
        return None
    links = place.subject.links
    if links is not None and links.aliases:
        is_all_known = version.key == place.bucket_key and version.key in links.names
    else:
        is_all_known = entry.remembered is not None or place.is_doubtful
    return entry if is_all_known else None


def _is_needed(inode: Inode) -> bool:
    """Return whether somebody refers to the inode, or it is more than what its object is."""
    if inode.lookups or inode.handles or isinstance(inode, Alias | Directory):
        return True
    return isinstance(inode, File) and not inode.content.is_bare


def _has_names(inode: Inode) -> bool:
    """Return whether there is more to know of an inode's names, or of the list that the bucket has of them."""
    links = inode.links
    return links is not None and bool(links.aliases or not links.is_joined or links.listed is not None)


def _entry_of(inode: Inode, placement: Placement, remembered: Remembered) -> ListedEntry | None:
    version = inode.version
    stored_at_ns = inode.stored_at_ns or 0
    is_certain = not inode.subject.aliases and is_joined(inode)
    if isinstance(inode, Directory):
        etag = version.etag if version is not None else ""
        if inode.hides_content:  # of which there is no room to tell, and a HEAD will
            remembered = nothing_but(inode.number)
        return ListedDirectory.pack(
            size=int(inode.is_doubtful), stored_at_ns=stored_at_ns, etag=etag, remembered=remembered
        )
    if version is None or (is_certain and version.key != placement.target(inode)):
        return None
    if not is_certain or inode.is_doubtful:
        remembered = nothing_but(inode.subject.number)
    return ListedObject.pack(
        size=version.size, stored_at_ns=stored_at_ns, etag=version.etag, remembered=remembered
    )
