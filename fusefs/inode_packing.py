"""An inode as an entry again: what the index keeps of it, and the tree when nobody needs the inode any more.

An inode takes some kilobytes, and an entry a few hundred bytes. What the kernel has forgotten becomes an entry with
everything that was known of it: the same inode is made of that, without a request, when the name is looked up again.

That has to wait where something is staged of a file, where the bucket lacks something of what this mount has changed,
and as long as the log tells of it: the inode has a name there, the next one of the same file will have another, and a
reader must not find both. All these end at some time, of which nobody tells: now and then the `Packer` looks at every
inode. It runs between two awaits of whoever else holds one, who has to look it up anew, as after any change of names.
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
        took = 0.0
        inodes = self._inodes.all()
        for first in range(0, len(inodes), YIELD_AFTER):
            began = time.perf_counter()
            for inode in inodes[first : first + YIELD_AFTER]:
                pack(inode, self._inodes, self._placement, self._changes)
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
    directory, name = inode.parent, inode.name
    if directory is None or inodes.are_kept or _is_needed(inode) or changes.needs(inode):
        return
    if inode.state.published_at >= directory.listing_since:
        return  # an inode that was published later than a listing began is not taken for what that says of it
    entry = entry_of(inode, placement)
    if not isinstance(entry, ListedObject) or inode.version is None:
        return
    if entry.remembered is None and not inode.is_doubtful:
        return
    is_indexed = directory.is_indexed
    placement.forget(inode.version.key)
    directory.attach(name, entry)
    directory.is_indexed = is_indexed
    if isinstance(inode, File):
        inode.content.discard()
    inodes.drop(inode)


def _is_needed(inode: Inode) -> bool:
    """Return whether somebody refers to the inode, or it is more than what its object is."""
    if inode.lookups or inode.handles or _has_names(inode) or isinstance(inode, Alias | Directory):
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
