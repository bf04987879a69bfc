"""The objects that an inode needs beside its own: extended attributes too long for metadata, and the list of its names.

They are written before an object refers to them, and are left to be deleted when none does any more.
"""

from __future__ import annotations

from contextlib import suppress

from backends.base import CREATE_ONLY, ObjectStorage
from backends.errors import PreconditionFailed
from fusefs import extended_attributes
from fusefs.change_log import ChangeLog
from fusefs.inodes import Inode
from fusefs.link_lists import write_list
from fusefs.placement import UNSEEN, Placement
from fusefs.versions import Version


class Sidecars:
    """Those of all inodes. What is async raises what the store raises."""

    def __init__(self, storage: ObjectStorage, placement: Placement, log: ChangeLog) -> None:
        self._storage = storage
        self._placement = placement
        self._log = log
        #: Objects with extended attributes that are known to be in the bucket, and their ETags where these are known.
        self._kept_xattrs: dict[str, str] = {}

    async def keep_xattrs(self, inode: Inode) -> None:
        """Store the extended attributes to which the metadata of the inode's object is going to refer."""
        text = inode.attributes.xattrs
        key = extended_attributes.object_key(text)
        if key is None or key in self._kept_xattrs or extended_attributes.is_reference(text):
            return
        inode.note_stored_xattrs()
        etag = UNSEEN
        with suppress(PreconditionFailed):  # it is there, and its key says which bytes it has
            etag = await self._storage.put(key, text.encode(), mode=CREATE_ONLY)
        self._kept_xattrs[key] = etag

    def leave_xattrs(self, inode: Inode, *, but: str | None) -> None:
        """Delete the objects with extended attributes that were the inode's alone, but for one that still is.

        A further name has none of its own. Without a log, others may be about to write what refers to them.
        """
        if inode is not inode.subject or not self._log.is_kept:
            return
        if extended_attributes.is_reference(inode.attributes.xattrs):
            inode.note_stored_xattrs()
        for key in inode.stored_xattrs:
            if key != but:
                self._placement.leave(Version(key, self._kept_xattrs.pop(key, UNSEEN), 0))
        inode.stored_xattrs = tuple(key for key in inode.stored_xattrs if key == but)

    async def list_names(self, inode: Inode) -> None:
        """Let the bucket say which names an inode has, if it has several; if it has no more than one, nothing."""
        links = inode.links
        if links is None:
            return
        names = tuple(
            target for each in (inode, *links.aliases) if (target := self._placement.target(each)) is not None
        )
        if not links.aliases:
            self.leave_list(inode)
        elif names != links.names:
            links.listed = await write_list(self._storage, links.number, names)
            links.names = names
            self._placement.forget(links.listed.key)
            self.leave_list(inode)  # all but one name may have gone meanwhile

    def leave_list(self, inode: Inode) -> None:
        """Delete the list of an inode's names, if it has no more than one."""
        links = inode.links
        if links is not None and links.listed is not None and not links.aliases:
            self._placement.leave(links.listed)
            links.listed, links.names = None, ()
