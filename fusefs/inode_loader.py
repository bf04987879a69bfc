"""Makes an inode out of what the bucket has: the object's metadata tells which kind it is.

A HEAD for each, one more request for the target of a symbolic link. A common prefix without a marker is a directory
with the attributes of the mount.
"""

from __future__ import annotations

import stat
from dataclasses import replace

from backends.base import ObjectInfo
from backends.errors import NotFound, PreconditionFailed
from fusefs.attributes import Attributes, Defaults, from_metadata
from fusefs.content import Content, ContentSources
from fusefs.inode_table import number_of_key
from fusefs.inodes import Alias, Directory, File, Inode, Links, Special, Symlink
from fusefs.link_lists import list_of
from fusefs.listed import MAX_SYMLINK_SIZE, ListedDirectory, ListedEntry
from fusefs.versions import Version


class InodeLoader:
    """The requests and decisions that it takes; the tree is not touched."""

    def __init__(
        self,
        sources: ContentSources,
        *,
        defaults: Defaults,
        mounted_at_ns: int,
    ) -> None:
        self._storage = sources.storage
        self._sources = sources
        self._defaults = defaults
        self._mounted_at_ns = mounted_at_ns

    async def load(self, key: str, child: ListedEntry) -> tuple[Inode | None, Version | None]:
        """Return a new inode for an object, and the object's version; (None, None) if it is gone by now."""
        if isinstance(child, ListedDirectory):
            return await self._load_directory(f"{key}/", child)
        while True:
            try:
                info = await self._storage.head(key)
                version = Version(key, info.etag, info.size)
                inode = await self._inode_of(self.attributes_of(info, directory=False), version)
                inode.number = child.number or inode.number
                number = list_of(info.metadata or {})
                if number is not None:
                    inode.links = Links(number=number, is_joined=False)
                # As the listing says it: answers to HEAD round it in their own way.
                inode.stored_at_ns = child.stored_at_ns if child.etag == info.etag else None
                return inode, version
            except NotFound:
                return None, None
            except PreconditionFailed:
                continue  # somebody has replaced it since the HEAD

    def from_memory(self, key: str, child: ListedEntry) -> tuple[Inode, Version | None] | None:
        """Return what `load` would, for an entry of which everything is remembered; None for others."""
        remembered = child.remembered
        if remembered is None:
            return None
        number, attributes, target = remembered
        inode: Inode
        if isinstance(child, ListedDirectory):
            version = Version(f"{key}/", child.etag, 0) if child.etag else None
            inode = Directory(number=number, attributes=attributes, stored_at_ns=child.stored_at_ns)
            return inode, version
        version = Version(key, child.etag, child.size)
        if attributes.kind == stat.S_IFLNK:
            inode = Symlink(number=number, attributes=attributes, target=target)
        elif attributes.kind == stat.S_IFREG:
            content = Content(self._sources, base=version)
            inode = File(number=number, attributes=attributes, content=content)
        else:
            inode = Special(number=number, attributes=attributes)
        inode.stored_at_ns = child.stored_at_ns
        return inode, version

    async def reload(self, inode: Inode) -> Version | None:
        """Read the attributes of an object again that somebody else has changed; return its version if it is known.

        A marker that carries none leaves those that are remembered: there are stores that keep none with it. What the
        object of a further name says is the inode's, as long as it says that it is one of its names.
        """
        subject = inode.subject
        is_directory = isinstance(inode, Directory)
        key = inode.bucket_prefix if isinstance(inode, Directory) else inode.bucket_key
        before = subject.attributes
        try:
            info = await self._storage.head(key)
        except NotFound:
            return None
        if not inode.is_doubtful or subject.attributes is not before:
            return None  # we have changed it ourselves meanwhile
        if not is_directory and (inode.version is None or info.etag != inode.version.etag):
            return None
        if is_directory and inode.state.storing == (key, info.metadata):
            # Nobody else has written it; what has happened inside since is told by no object.
            inode.stored_at_ns = info.last_modified_ns
            return Version(key, info.etag, info.size)
        if not is_directory or "mode" in (info.metadata or {}):
            if isinstance(inode, Alias) and not _names_list_of(info, inode):
                return None
            found = self.attributes_of(info, directory=is_directory)
            subject.attributes = replace(found, mode=before.kind | stat.S_IMODE(found.mode))
        if is_directory and inode.stored_at_ns in (None, 0, info.last_modified_ns):
            # This mount wrote it before they did, or nobody has; neither tells what has happened inside since.
            inode.attributes = replace(
                inode.attributes,
                mtime_ns=max(inode.attributes.mtime_ns, before.mtime_ns),
                ctime_ns=max(inode.attributes.ctime_ns, before.ctime_ns),
            )
        inode.stored_at_ns = info.last_modified_ns if is_directory else inode.stored_at_ns
        return Version(key, info.etag, info.size)

    async def _inode_of(self, attributes: Attributes, version: Version) -> Inode:
        number = number_of_key(version.key)
        if attributes.kind == stat.S_IFLNK and version.size <= MAX_SYMLINK_SIZE:
            target = (await self._storage.get_range(version.key, if_match=version.etag)).data
            return Symlink(number=number, attributes=attributes, target=target)
        if attributes.kind in (stat.S_IFREG, stat.S_IFLNK):
            if attributes.kind != stat.S_IFREG:
                attributes = replace(attributes, mode=stat.S_IFREG | stat.S_IMODE(attributes.mode))
            content = Content(self._sources, base=version)
            return File(number=number, attributes=attributes, content=content)
        return Special(number=number, attributes=attributes)

    async def _load_directory(self, key: str, child: ListedDirectory) -> tuple[Directory, Version | None]:
        number = child.number or number_of_key(key)
        try:
            info = await self._storage.head(key)
        except NotFound:
            return self.unmarked(number), None
        attributes = self.attributes_of(info, directory=True)
        directory = Directory(number=number, attributes=attributes, stored_at_ns=info.last_modified_ns)
        return directory, Version(key, info.etag, info.size)

    def unmarked(self, number: int) -> Directory:
        """Return a new inode for a directory of which no object tells."""
        info = ObjectInfo(key="", etag="", size=0, last_modified_ns=self._mounted_at_ns)
        return Directory(number=number, attributes=self.attributes_of(info, directory=True), stored_at_ns=0)

    def attributes_of(self, info: ObjectInfo, *, directory: bool) -> Attributes:
        """Return what an object's metadata says, or the defaults of the mount."""
        return from_metadata(
            info.metadata or {},
            directory=directory,
            stored_at_ns=info.last_modified_ns,
            defaults=self._defaults,
        )


def _names_list_of(info: ObjectInfo, alias: Alias) -> bool:
    """Return whether an object says that its key is one of an inode's names."""
    links = alias.of.links
    return links is not None and list_of(info.metadata or {}) == links.number
