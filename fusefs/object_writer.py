"""Writes the object of one inode, whatever its kind, and keeps what is ours beside what somebody else has changed."""

from __future__ import annotations

from typing import Final, NamedTuple

from backends.base import CREATE_ONLY, OVERWRITE, IfMatch, Limits, Metadata, ObjectStorage, PutMode
from backends.errors import NotFound, PreconditionFailed, StorageError
from fusefs.attributes import to_metadata
from fusefs.change_log import ChangeLog
from fusefs.inodes import Alias, Directory, File, Inode, Symlink
from fusefs.keys import MAX_NAME_LENGTH, RESERVED_PREFIX
from fusefs.object_copy import copy_object
from fusefs.sidecars import Sidecars
from fusefs.uploads import Uploads
from fusefs.versions import Version

CONFLICTS_PREFIX: Final = f"{RESERVED_PREFIX}conflicts/"
"""Where what is ours is kept when somebody else has changed the object that it was to replace."""

MARKER_ATTEMPTS: Final = 3
"""Of a marker that somebody else changes at the same time."""


class Written(NamedTuple):
    """What is in the bucket now, and with which metadata: a stream's are those of its beginning."""

    version: Version
    metadata: Metadata


def has_to_go_up(inode: Inode) -> bool:
    """Return whether the inode's object is made by an upload of its content."""
    return isinstance(inode, File) and inode.linked and (inode.content.changed or inode.version is None)


class ObjectWriter:
    """The requests that make an object equal to its inode. Each raises what the store raises."""

    def __init__(
        self, storage: ObjectStorage, uploads: Uploads, log: ChangeLog, sidecars: Sidecars, *, mount_id: str
    ) -> None:
        self._log = log
        self._storage = storage
        self._uploads = uploads
        self._sidecars = sidecars
        self._mount_id = mount_id
        self.conflicts = 0
        #: Where there may be a copy of these already: the request for it had no answer.
        self._perhaps_kept: dict[Version, str] = {}

    async def write(self, inode: Inode, target: str, *, mode: PutMode, metadata: Metadata) -> Written:
        """Make the object under `target` equal to the inode, and those beside it, to which it refers."""
        await self._sidecars.keep_xattrs(inode.subject)
        written = await self._write(inode, target, mode, metadata)
        try:
            await self._sidecars.list_names(inode.subject)
        except StorageError as error:
            error.is_in_doubt = True  # the object is there: whoever tries again has to know it for our own
            raise
        return written

    async def _write(self, inode: Inode, target: str, mode: PutMode, metadata: Metadata) -> Written:
        """Upload what the inode has, or let the store copy it where the bytes are there already."""
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
            version = (await self._write(alias.of, target, mode, metadata)).version
        alias.copied = source
        return Written(version, metadata)

    async def write_marker_over(self, directory: Directory, target: str) -> Version:
        """Write a marker over the one that somebody else made or changed; the bytes that it may have stay.

        Raises `PreconditionFailed` where it changes each time that it is looked at.
        """
        metadata = {**to_metadata(directory.attributes), **self._log.mark(directory)}
        await self._sidecars.keep_xattrs(directory)
        for _ in range(MARKER_ATTEMPTS):
            try:
                return await self._write_marker(target, metadata)
            except (PreconditionFailed, NotFound) as error:
                failure = error  # it has changed since we looked
        raise failure

    async def _write_marker(self, target: str, metadata: Metadata) -> Version:
        try:
            found = await self._storage.head(target)
        except NotFound:
            return await self._put_marker(target, metadata, CREATE_ONLY)
        if found.size:
            theirs = Version(target, found.etag, found.size)
            return await copy_object(
                self._storage, theirs, target, mode=IfMatch(found.etag), metadata=metadata
            )
        try:
            return await self._put_marker(target, metadata, IfMatch(found.etag))
        except PreconditionFailed:
            if await self._is_listed(target):
                raise
        # A store that keeps a tree (SeaweedFS) answers HEAD for a directory without a marker, and meets no condition
        # on it. It keeps no bytes of markers, so there are none to be overwritten.
        return await self._put_marker(target, metadata, OVERWRITE)

    async def _put_marker(self, target: str, metadata: Metadata, mode: PutMode) -> Version:
        return Version(target, await self._storage.put(target, b"", metadata=metadata, mode=mode), 0)

    async def _is_listed(self, key: str) -> bool:
        page = await self._storage.list_prefix(key, page_size=1)
        return any(info.key == key for info in page.objects)

    async def keep_beside(self, inode: Inode, target: str) -> Version | None:
        """Store what is ours under `.fusefs/conflicts/`; None if the object under `target` was all there was of it."""
        self.conflicts += 1
        suffix = f"{self._mount_id}-{inode.number}-{self.conflicts}"
        key = conflict_key(target, suffix, self._storage.limits)
        inode.share_xattrs()  # what is kept stays for ever, and so do they
        metadata = to_metadata(inode.attributes)
        await self._sidecars.keep_xattrs(inode)
        if isinstance(inode, Symlink):
            etag = await self._storage.put(key, inode.target, metadata=metadata, mode=CREATE_ONLY)
            return Version(key, etag, len(inode.target))
        if isinstance(inode, File) and inode.content.changed:
            return await self._uploads.keep(inode, key, metadata=metadata)
        if inode.version is None or inode.version.key == target:
            return None
        if not isinstance(inode, File) and not inode.hides_content:
            return None
        version = await self._keep_copy(inode.version, key, metadata)
        if version is not None and isinstance(inode, File):
            inode.content.rebase(version)
        return version

    async def _keep_copy(self, source: Version, key: str, metadata: Metadata) -> Version | None:
        """Copy `source` to `key`; None if it was the object at the old name that somebody else changed.

        Where an earlier request for a copy had no answer, its key is taken: what is there by now is what it has made.
        """
        earlier = self._perhaps_kept.get(source)
        key = earlier or key
        try:
            return await copy_object(self._storage, source, key, mode=CREATE_ONLY, metadata=metadata)
        except (NotFound, PreconditionFailed):
            return await self._find(key) if earlier else None
        except StorageError as error:
            if error.is_in_doubt:
                self._perhaps_kept[source] = key
            raise

    async def _find(self, key: str) -> Version | None:
        try:
            found = await self._storage.head(key)
        except NotFound:
            return None
        return Version(key, found.etag, found.size)


def conflict_key(target: str, suffix: str, limits: Limits) -> str:
    """Return where what was, or should be, under `target` is kept; `suffix` makes it a key of its own."""
    above, slash, name = target.rpartition("/")
    name = _cut(name, MAX_NAME_LENGTH - len(suffix) - 1)  # where the store keeps objects in files
    room = limits.max_key_length - len(CONFLICTS_PREFIX) - len(suffix) - 1
    return f"{CONFLICTS_PREFIX}{_cut(f'{above}{slash}{name}', room)}.{suffix}"


def _cut(text: str, length: int) -> str:
    """Return whole characters of `text`, of no more than `length` bytes."""
    return text.encode()[:length].decode(errors="ignore")
