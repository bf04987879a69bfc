"""An inode as an entry again: what the index keeps of it, and the tree when nobody needs the inode any more.

An inode takes some kilobytes, and an entry a few hundred bytes. What the kernel has forgotten, and this mount neither
changed nor staged, becomes an entry with everything that was known of it: the same inode is made of that, without a
request, when the name is looked up again.
"""

from __future__ import annotations

import struct

from fusefs.inodes import Alias, Directory, File, Inode, InodeTable, Symlink, is_joined
from fusefs.listed import ListedDirectory, ListedEntry, ListedObject, Remembered, nothing_but
from fusefs.placement import Placement
from fusefs.publisher import Publisher


def entry_of(inode: Inode, placement: Placement) -> ListedEntry | None:
    """Return all that is known of an inode, as it is in the bucket; None if there is nothing to remember.

    Of what only a HEAD tells that is the number: of an inode with several names, and of one that somebody has changed.
    """
    if inode.stored_at_ns is None:
        return None
    try:
        return _entry_of(inode, placement)
    except struct.error:
        return None  # a time that is beyond what can be written down


def pack(inode: Inode, inodes: InodeTable, placement: Placement, publisher: Publisher) -> None:
    """Put what is known of an inode in its place in the tree, if nobody needs it and nothing is lost by that."""
    directory, name = inode.parent, inode.name
    if directory is None or _is_needed(inode) or publisher.is_unpublished(inode):
        return
    entry = entry_of(inode, placement)
    if not isinstance(entry, ListedObject) or entry.remembered is None or inode.version is None:
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
    if inode.lookups or inode.handles or inode.links is not None or isinstance(inode, Alias | Directory):
        return True
    if isinstance(inode, File) and not inode.content.is_bare:
        return True
    return bool(inode.state.changes) or bool(inode.log_id) or inode.state.failure is not None


def _entry_of(inode: Inode, placement: Placement) -> ListedEntry | None:
    version = inode.version
    stored_at_ns = inode.stored_at_ns or 0
    is_certain = not inode.subject.aliases and is_joined(inode)
    target = inode.target if isinstance(inode, Symlink) else b""
    remembered = Remembered(inode.number, inode.attributes, target)
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
