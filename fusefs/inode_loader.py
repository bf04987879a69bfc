"""Makes an inode out of what the bucket has: the object's metadata tells which kind it is.

A HEAD for each, one more request for the target of a symbolic link. A common prefix without a marker is a directory
with the attributes of the mount.
"""

from __future__ import annotations

import stat
from dataclasses import replace

from backends.base import ObjectInfo, ObjectStorage
from backends.errors import NotFound, PreconditionFailed
from fusefs.attributes import Attributes, Defaults, from_metadata
from fusefs.content import Content, ContentSources, Version
from fusefs.inodes import Directory, File, Inode, Special, Symlink, number_of_key
from fusefs.listed import MAX_SYMLINK_SIZE, ListedDirectory, ListedEntry


class InodeLoader:
    """The requests and decisions that it takes; the tree is not touched."""

    def __init__(
        self,
        storage: ObjectStorage,
        sources: ContentSources,
        *,
        defaults: Defaults,
        mounted_at_ns: int,
    ) -> None:
        self._storage = storage
        self._sources = sources
        self._defaults = defaults
        self._mounted_at_ns = mounted_at_ns

    async def load(self, key: str, child: ListedEntry) -> tuple[Inode | None, Version | None]:
        """Return a new inode for an object, and the object's version; (None, None) if it is gone by now."""
        if isinstance(child, ListedDirectory):
            return await self._load_directory(f"{key}/")
        while True:
            try:
                info = await self._storage.head(key)
                version = Version(key, info.etag, info.size)
                return await self._inode_of(self.attributes_of(info, directory=False), version), version
            except NotFound:
                return None, None
            except PreconditionFailed:
                continue  # somebody has replaced it since the HEAD

    async def _inode_of(self, attributes: Attributes, version: Version) -> Inode:
        number = number_of_key(version.key)
        if attributes.kind == stat.S_IFLNK and version.size <= MAX_SYMLINK_SIZE:
            target = (await self._storage.get_range(version.key, if_match=version.etag)).data
            return Symlink(number=number, attributes=attributes, target=target)
        if attributes.kind in (stat.S_IFREG, stat.S_IFLNK):
            attributes = replace(attributes, mode=stat.S_IFREG | stat.S_IMODE(attributes.mode))
            content = Content(self._sources, base=version)
            return File(number=number, attributes=attributes, content=content)
        return Special(number=number, attributes=attributes)

    async def _load_directory(self, key: str) -> tuple[Directory, Version | None]:
        version: Version | None = None
        try:
            info = await self._storage.head(key)
            version = Version(key, info.etag, info.size)
        except NotFound:
            info = ObjectInfo(key=key, etag="", size=0, last_modified_ns=self._mounted_at_ns)
        attributes = self.attributes_of(info, directory=True)
        return Directory(number=number_of_key(key), attributes=attributes), version

    def attributes_of(self, info: ObjectInfo, *, directory: bool) -> Attributes:
        """Return what an object's metadata says, or the defaults of the mount."""
        return from_metadata(
            info.metadata or {},
            directory=directory,
            stored_at_ns=info.last_modified_ns,
            defaults=self._defaults,
        )
