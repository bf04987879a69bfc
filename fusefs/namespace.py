"""The tree: what there is under which name, and how names are made, changed and taken away.

A directory is found by listing the bucket when it is first asked for (`listings`), and answered from memory then. What
an entry is follows from its object's metadata, which is read when the entry is looked up (`resolver`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import trio

from backends.errors import NotFound
from fusefs import keys
from fusefs.attributes import Attributes, Defaults
from fusefs.attributes_ahead import AttributesAhead, RollingWindow
from fusefs.clock import Clock
from fusefs.content import Content, ContentSources
from fusefs.directory_names import DirectoryNames
from fusefs.entry_changes import EntryChanges
from fusefs.entry_numbers import number_of_listed, numbers_in
from fusefs.errors import EntryExists, IsADirectory, NoSuchEntry, NoSuchInode, NotADirectory
from fusefs.inode_loader import InodeLoader
from fusefs.inode_packing import pack
from fusefs.inode_table import InodeTable
from fusefs.inodes import Directory, File, Inode, Special, Symlink, is_joined
from fusefs.linked_names import LinkedNames
from fusefs.listed import ListedEntry, outline_of
from fusefs.listings import Listings
from fusefs.look_ahead import LookAhead
from fusefs.merging import Merger
from fusefs.placement import ROOT_MARKER, Placement
from fusefs.publisher import Publisher
from fusefs.rename_checks import Rename, check_empty, check_rename
from fusefs.renamed_directories import RenamedDirectories
from fusefs.resolver import Resolver
from fusefs.small_files import SmallFiles
from fusefs.subtrees import Subtrees
from fusefs.tree_index import TreeIndex
from fusefs.versions import Version
from fusefs.walks import Walks


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceOptions:
    """How the tree is seen."""

    defaults: Defaults
    #: When the mount began: the time of directories that no object carries a time for.
    mounted_at_ns: int
    #: How old a listing may be when its directory is opened.
    revalidate_seconds: float
    #: Whether others write the same prefix: then every lookup of an entry older than that asks the store.
    shared: bool = False


class Outline(NamedTuple):
    """What can be told of an entry without a request."""

    number: int
    #: Type bits of the mode, or 0.
    kind: int


class Namespace:
    """Entries by directory and name. Methods that change the tree do so without an await between check and change."""

    def __init__(
        self,
        sources: ContentSources,
        placement: Placement,
        publisher: Publisher,
        inodes: InodeTable,
        clock: Clock,
        options: NamespaceOptions,
        index: TreeIndex | None = None,
    ) -> None:
        self._storage = storage = sources.storage
        self._max_key_length = storage.limits.max_key_length
        self._sources = sources
        self._placement = placement
        self._changes = publisher.changes
        self._inodes = inodes
        self._options = options
        self._loader = InodeLoader(sources, defaults=options.defaults, mounted_at_ns=options.mounted_at_ns)
        self._resolver = Resolver(self._loader, placement, inodes, clock)
        self._ahead = AttributesAhead(sources.spawn, self._resolver)
        self._merger = Merger(placement, self._changes, inodes, others_write=options.shared)
        self._listings = Listings(storage, sources.spawn, placement, self._merger, index)
        self._walks = Walks(
            sources.spawn,
            self._listings,
            self._resolver,
            SmallFiles(sources, self._resolver),
            # On a shared mount what is listed ahead again may be too old again by the time that it is read.
            max_age_seconds=math.inf if options.shared else options.revalidate_seconds,
        )
        self._names = LinkedNames(storage, placement, self._changes, inodes, self._listings, self._resolver)
        self._renamed = RenamedDirectories(
            sources.spawn,
            Subtrees(self._listings, self._resolver, self._names),
            placement,
            publisher,
            max_key_length=self._max_key_length,
            max_age_seconds=options.revalidate_seconds if options.shared else math.inf,
        )
        self._entries = EntryChanges(inodes, self._changes, self._merger, self._renamed)

    # Looking

    async def load_root(self, root: Directory) -> None:
        """Give the root the attributes that an earlier mount left in the bucket."""
        try:
            info = await self._storage.head(ROOT_MARKER)
        except NotFound:
            return
        root.attributes = self._loader.attributes_of(info, directory=True)
        self._placement.place(root, Version(info.key, info.etag, info.size))

    async def lookup(self, directory: Directory, name: bytes, *, wholly: bool = True) -> Inode:
        """Return the entry's inode. Raises `NoSuchEntry`, `NameTooLong`.

        The directory is listed `wholly` then, which whoever changes its names relies on.
        """
        return (await self._lookup_entry(directory, name, wholly=wholly)).subject

    async def _lookup_entry(self, directory: Directory, name: bytes, *, wholly: bool = True) -> Inode:
        """Return the inode, or the alias, that has a name."""
        keys.check_name(name)
        if wholly:
            await self._listings.ensure_listed(directory)
        else:
            await self._listings.ensure_read(directory, name)
        if self._options.shared:
            await self._revalidate(directory, name)
        if name not in directory.children:
            raise NoSuchEntry(f"{name!r} does not exist")
        while True:
            entry = await self._ahead.look_up(directory, name)
            if is_joined(entry):
                return entry
            await self._names.join(entry)

    async def names(self, directory: Directory) -> DirectoryNames:
        """Return the names in the directory, from a listing that is recent enough; it may be still going on.

        Names that a complete listing has are sorted; those of one that goes on come as it names them.
        """
        self._walks.reads(directory)
        names = await self._listings.names(directory, max_age_seconds=self._options.revalidate_seconds)
        directory.look_ahead = LookAhead(names.so_far, numbers_in(directory))
        self._walks.has_read(directory)
        return names

    def outlines(
        self, directory: Directory, names: Iterable[bytes], start: int
    ) -> Iterator[tuple[bytes, Inode | Outline, int]]:
        """Yield what is known of entries without a request, with the position after each, from `start` on.

        Those that are gone are left out. Of a listing that is too old on a shared mount it is no more than an outline:
        the kernel would keep the rest.
        """
        prefix, children = directory.bucket_prefix, directory.children
        is_current = not self._options.shared or self._is_listed_now(directory)
        for position, name in enumerate(names, start + 1):
            child = children.get(name)
            if isinstance(child, ListedEntry):
                number, kind = outline_of(child)
                yield name, Outline(number or number_of_listed(prefix, name, child), kind), position
            elif child is not None:
                inode = child.subject
                is_known = is_current and not inode.is_doubtful and is_joined(inode)
                yield name, inode if is_known else Outline(inode.number, inode.attributes.kind), position

    def attributes_ahead(self, directory: Directory) -> RollingWindow:
        """Return what finds out, ahead of one reader, what is not known of the entries yet."""
        return self._ahead.window(directory)

    def opened(self, file: File, *, fetch_ahead_bytes: int) -> None:
        """Note that a file was opened for reading; small ones that come next are fetched, as many bytes at most."""
        self._walks.opens(file, max_bytes=fetch_ahead_bytes)

    # Changing

    async def prepare_create(self, directory: Directory, name: bytes) -> None:
        """Make sure that `add` can tell whether the name is free. Raises `EntryExists`, and the errors of names."""
        self._check_key(directory, name)
        await self._listings.ensure_listed(directory)
        if self._options.shared:
            await self._revalidate(directory, name)
        self._entries.check_free(directory, name)
        self._check_key(directory, name)  # the directory may have got a longer name meanwhile

    def new_file(self, attributes: Attributes) -> File:
        """Return an empty file that is not in the tree yet."""
        return File(number=self._inodes.new_number(), attributes=attributes, content=Content(self._sources))

    def new_directory(self, attributes: Attributes) -> Directory:
        """Return an empty directory that is not in the tree yet."""
        return Directory(
            number=self._inodes.new_number(), attributes=attributes, listed_at=trio.current_time()
        )

    def new_prefix(self) -> Directory:
        """Return a directory that is not in the tree yet, as one that is there by what is below it alone."""
        directory = self._loader.unmarked(self._inodes.new_number())
        directory.listed_at = trio.current_time()
        return directory

    def new_symlink(self, attributes: Attributes, target: bytes) -> Symlink:
        """Return a symbolic link that is not in the tree yet."""
        return Symlink(number=self._inodes.new_number(), attributes=attributes, target=target)

    def new_special(self, attributes: Attributes) -> Special:
        """Return a fifo, socket or device that is not in the tree yet."""
        return Special(number=self._inodes.new_number(), attributes=attributes)

    def add(self, directory: Directory, name: bytes, inode: Inode, now_ns: int) -> None:
        """As `EntryChanges`."""
        self._entries.add(directory, name, inode, now_ns)

    def link(self, inode: Inode, directory: Directory, name: bytes, now_ns: int) -> None:
        """As `EntryChanges`."""
        self._entries.link(inode, directory, name, now_ns)

    async def unlink(self, directory: Directory, name: bytes, now_ns: int) -> Inode:
        """Remove the entry of anything but a directory; return its inode. Raises `NoSuchEntry`, `IsADirectory`."""
        entry = await self._lookup_entry(directory, name)
        if isinstance(entry, Directory):
            raise IsADirectory(f"{entry.path_key!r} is a directory")
        self._entries.remove(directory, name, entry, now_ns)
        return entry.subject

    async def rmdir(self, directory: Directory, name: bytes, now_ns: int) -> Inode:
        """Remove an empty directory, and return it. Raises `NoSuchEntry`, `NotADirectory`, `DirectoryNotEmpty`."""
        while True:
            inode = await self.lookup(directory, name)
            if not isinstance(inode, Directory):
                raise NotADirectory(f"{inode.path_key!r} is no directory")
            await self._listings.ensure_listed(inode, max_age_seconds=self._options.revalidate_seconds)
            if directory.children.get(name) is inode:
                break
        check_empty(inode)
        self._entries.remove(directory, name, inode, now_ns)
        return inode

    async def rename(
        self,
        directory: Directory,
        name: bytes,
        new_directory: Directory,
        new_name: bytes,
        now_ns: int,
        *,
        exchange: bool = False,
        replace: bool = True,
    ) -> Inode | None:
        """Move an entry, over another one if `replace`, or swap the two if `exchange`.

        Returns the inode that lost a name, if one did. Errors as rename(2).
        """
        self._check_key(new_directory, new_name)
        if exchange:
            self._check_key(directory, name)  # which is a new one for the other entry
        is_again = False
        while True:
            rename = Rename(
                directory=directory,
                name=name,
                inode=await self._lookup_entry(directory, name),
                new_directory=new_directory,
                new_name=new_name,
                other=await self._lookup_if_any(new_directory, new_name),
                exchange=exchange,
            )
            if exchange and rename.other is None:
                raise NoSuchEntry(f"{new_name!r} does not exist")
            if rename.other is not None and not replace and not exchange:
                raise EntryExists(f"{rename.other.path_key!r} exists")
            if await self._prepare_rename(rename, again=is_again):
                break
            is_again = True
        other = rename.other
        if other is not None and rename.inode.subject is other.subject:
            return None
        check_rename(rename, max_key_length=self._max_key_length)
        self._entries.move(rename, now_ns)
        return None if exchange or other is None else other.subject

    async def _prepare_rename(self, rename: Rename, *, again: bool) -> bool:
        """Find out what has to be known for a rename; return whether all is, and both entries are what they were."""
        directory, new_directory = rename.directory, rename.new_directory
        new_prefixes = {rename.inode: _prefix_of(new_directory, rename.new_name)}
        if rename.swapped is not None:
            new_prefixes[rename.swapped] = _prefix_of(directory, rename.name)
        for moved in new_prefixes.items():
            await self._renamed.prepare(*moved, again=again)
        if isinstance(rename.other, Directory) and not rename.exchange:
            await self._listings.ensure_listed(rename.other, max_age_seconds=self._options.revalidate_seconds)
        return (
            directory.children.get(rename.name) is rename.inode
            and new_directory.children.get(rename.new_name) is rename.other
            and all(self._renamed.can_be_moved(*moved) for moved in new_prefixes.items())
        )

    def go_on_with_move(self, directory: Directory) -> None:
        """Find out what is below a directory that an earlier mount has renamed, and then move it."""
        self._renamed.go_on(directory)

    def drop_if_unused(self, inode: Inode) -> None:
        """Let an inode go that has no handle and no reference from the kernel: for good, if it has no name either."""
        self._merger.drop_if_unused(inode)
        pack(inode, self._inodes, self._placement, self._changes)

    async def _lookup_if_any(self, directory: Directory, name: bytes) -> Inode | None:
        try:
            return await self._lookup_entry(directory, name)
        except NoSuchEntry:
            return None

    def _check_key(self, directory: Directory, name: bytes) -> None:
        keys.join(directory.prefix, name, max_length=self._max_key_length)

    # Shared mounts

    async def check_current(self, file: File) -> None:
        """Ask the store whether the file's object is still the one that we know, unless what we have is newer.

        Raises `NoSuchInode` where it is not; the next lookup finds what is there now.
        """
        version, directory = file.version, file.parent
        if version is None or directory is None or self._has_own(file):
            return
        try:
            etag = (await self._storage.head(version.key)).etag
        except NotFound:
            etag = ""
        if etag != version.etag and file.version == version and not self._has_own(file):
            if file.aliases and file.parent is directory:
                self._merger.let_go(
                    directory, file.name
                )  # or the next lookup of another name would find it again
            directory.distrust()
            raise NoSuchInode(f"{version.key!r} is another file by now")

    def found_stale(self, file: File) -> None:
        """Note that somebody else has replaced or removed a file's object: whoever opens it looks it up anew."""
        if file.parent is not None and not self._has_own(file):
            self._merger.let_go(file.parent, file.name)

    def _has_own(self, file: File) -> bool:
        return self._changes.is_unpublished(file) or file.writers > 0

    def _is_listed_now(self, directory: Directory) -> bool:
        return self._listings.is_listed(directory, max_age_seconds=self._options.revalidate_seconds)

    async def _revalidate(self, directory: Directory, name: bytes) -> None:
        """List again where the last listing is too old for an answer about this name."""
        if directory.listed_at is not None:
            await self._listings.ensure_listed(directory, max_age_seconds=self._options.revalidate_seconds)


def _prefix_of(directory: Directory, name: bytes) -> str:
    return f"{directory.prefix}{keys.segment_of(name)}/"
