"""Writes the object of one inode, whatever its kind, and keeps what is ours beside what somebody else has changed."""

from __future__ import annotations

from contextlib import suppress
from typing import Final, NamedTuple

from backends.base import CREATE_ONLY, OVERWRITE, IfMatch, Limits, Metadata, ObjectStorage, PutMode
from backends.errors import NotFound, PreconditionFailed
from fusefs import extended_attributes
from fusefs.attributes import to_metadata
from fusefs.change_log import ChangeLog
from fusefs.content import Version
from fusefs.inodes import Alias, Directory, File, Inode, Symlink
from fusefs.keys import RESERVED_PREFIX
from fusefs.object_copy import copy_object
from fusefs.uploads import Uploads

CONFLICTS_PREFIX: Final = f"{RESERVED_PREFIX}conflicts/"
"""Where what is ours is kept when somebody else has changed the object that it was to replace."""


class Written(NamedTuple):
    """What is in the bucket now, and with which metadata: a stream's are those of its beginning."""

    version: Version
    metadata: Metadata


def has_to_go_up(inode: Inode) -> bool:
    """Return whether the inode's object is made by an upload of its content."""
    return isinstance(inode, File) and inode.linked and (inode.content.changed or inode.version is None)


class ObjectWriter:
    """The requests that make an object equal to its inode. Each raises what the store raises."""

    def __init__(self, storage: ObjectStorage, uploads: Uploads, log: ChangeLog, *, mount_id: str) -> None:
        self._log = log
        self._storage = storage
        self._uploads = uploads
        self._mount_id = mount_id
        #: Keys of extended attributes that are known to be in the bucket.
        self._kept_xattrs: set[str] = set()
        self.conflicts = 0

    async def write(self, inode: Inode, target: str, *, mode: PutMode, metadata: Metadata) -> Written:
        """Make the object under `target` equal to the inode: an upload, or a copy where the bytes are there already."""
        await self._keep_xattrs(inode.subject.attributes.xattrs)
        match inode:
            case Alias():
                return await self._copy_of(inode, target, mode, metadata)
            case File() if has_to_go_up(inode):
                return Written(*await self._uploads.publish(inode, target, mode=mode, metadata=metadata))
            case File(version=Version() as source):
                with inode.content.being_replaced():
                    version = await copy_object(self._storage, source, target, mode=mode, metadata=metadata)
                    inode.content.rebase(version)
                return Written(version, metadata)
            case Symlink():
                body = inode.target
            case Inode(version=Version() as source) if inode.hides_content:
                return Written(
                    await copy_object(self._storage, source, target, mode=mode, metadata=metadata), metadata
                )
            case _:
                body = b""
        etag = await self._storage.put(target, body, metadata=metadata, mode=mode)
        return Written(Version(target, etag, len(body)), metadata)

    async def _copy_of(self, alias: Alias, target: str, mode: PutMode, metadata: Metadata) -> Written:
        """Give a further name the object that the inode has under its first one."""
        source = alias.of.version or alias.version
        if source is None:
            raise NotFound(f"{target!r} is to be a copy of what is not there")
        if isinstance(alias.of, File):
            version = await copy_object(self._storage, source, target, mode=mode, metadata=metadata)
        else:
            version = (await self.write(alias.of, target, mode=mode, metadata=metadata)).version
        alias.copied = source
        return Written(version, metadata)

    async def write_marker_over(self, directory: Directory, target: str) -> Version:
        """Write a marker over the one that somebody else made or changed; the bytes that it may have stay.

        A store that keeps a tree (SeaweedFS) refuses to create a marker, too, once anything is below it.
        """
        metadata = {**to_metadata(directory.attributes), **self._log.mark(directory)}
        await self._keep_xattrs(directory.attributes.xattrs)
        with suppress(NotFound):
            found = await self._storage.head(target)
            if found.size:
                theirs = Version(target, found.etag, found.size)
                return await copy_object(
                    self._storage, theirs, target, mode=IfMatch(found.etag), metadata=metadata
                )
        return Version(target, await self._storage.put(target, b"", metadata=metadata, mode=OVERWRITE), 0)

    async def keep_beside(self, inode: Inode, target: str) -> Version | None:
        """Store what is ours under `.fusefs/conflicts/`; None if the object under `target` was all there was of it."""
        self.conflicts += 1
        suffix = f"{self._mount_id}-{inode.number}-{self.conflicts}"
        key = conflict_key(target, suffix, self._storage.limits)
        metadata = to_metadata(inode.attributes)
        await self._keep_xattrs(inode.attributes.xattrs)
        if isinstance(inode, Symlink):
            etag = await self._storage.put(key, inode.target, metadata=metadata, mode=CREATE_ONLY)
            return Version(key, etag, len(inode.target))
        if isinstance(inode, File) and inode.content.changed:
            return await self._uploads.keep(inode, key, metadata=metadata)
        if inode.version is None or inode.version.key == target:
            return None
        if not isinstance(inode, File) and not inode.hides_content:
            return None
        try:
            version = await copy_object(
                self._storage, inode.version, key, mode=CREATE_ONLY, metadata=metadata
            )
        except (NotFound, PreconditionFailed):
            return None  # it was the object at the old name that somebody else changed
        if isinstance(inode, File):
            inode.content.rebase(version)
        return version

    async def _keep_xattrs(self, text: str) -> None:
        """Store the extended attributes to which an object's metadata is going to refer."""
        key = extended_attributes.object_key(text)
        if key is None or key in self._kept_xattrs or extended_attributes.is_reference(text):
            return
        with suppress(PreconditionFailed):  # it is there, and its key says which bytes it has
            await self._storage.put(key, text.encode(), mode=CREATE_ONLY)
        self._kept_xattrs.add(key)


def conflict_key(target: str, suffix: str, limits: Limits) -> str:
    """Return where what was, or should be, under `target` is kept; `suffix` makes it a key of its own."""
    room = limits.max_key_length - len(CONFLICTS_PREFIX) - len(suffix) - 1
    return f"{CONFLICTS_PREFIX}{target.encode()[:room].decode(errors='ignore')}.{suffix}"
