"""Lists directories, and brings what the bucket says into the tree.

A directory is listed once, wholly, and then answered from memory: the tree is this mount's. Listing it again brings in
what others have changed. Our own changes win over a listing, which may be older than they are: an entry that is
pending, moved away or deleted here is left as the tree has it.

Where there are an object `x` and others below `x/`, the directory has the name, and the object another one. Keys for
which there is no name are told of in the log (`hidden_keys`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeGuard

import trio

from backends.base import ListPage, ObjectInfo, ObjectStorage
from backends.errors import StorageError
from fusefs.changes import Changes
from fusefs.content import Spawn
from fusefs.directory_listing import DirectoryListing
from fusefs.directory_names import DirectoryNames, ListingRun, PagesAhead
from fusefs.hidden_keys import HiddenKeys
from fusefs.inodes import (
    ROOT_NUMBER,
    Alias,
    Child,
    Directory,
    File,
    Inode,
    InodeTable,
)
from fusefs.keys import name_of, name_of_file_beside, segment_of
from fusefs.listed import ListedDirectory, ListedObject
from fusefs.placement import Deletions, Placement
from fusefs.tree_index import NO_MEMORIES, Memories, TreeIndex

_SECOND: Final = 1_000_000_000

_NEIGHBOURS: Final = 16
"""How many keys are asked for to find one: `x.old` and `x-1` are between `x` and `x/`."""


@dataclass(slots=True)
class _Merge:
    """What one listing must remember from page to page."""

    directory: Directory
    listing: DirectoryListing
    run: ListingRun
    deletions: Deletions
    #: Names that have come up, where the tree had some before; None where whatever it has is of this listing.
    seen: set[bytes] | None
    directories: set[bytes] = field(default_factory=set)
    #: Objects of the same name as what the tree has for a directory: that may be gone.
    shadowed: dict[bytes, ListedObject] = field(default_factory=dict)
    #: Names that were asked for, and found, before the listing has come to them.
    ahead: set[bytes] = field(default_factory=set)
    #: Names of objects beside directories that the reader has not been told yet.
    beside: list[bytes] = field(default_factory=list)
    memories: Memories = NO_MEMORIES
    #: Keys that cannot be shown and that the log does not name.
    unnamed: int = 0

    @property
    def is_outdated(self) -> bool:
        """Whether the directory was moved or removed since."""
        return not self.directory.linked or self.directory.bucket_prefix != self.listing.prefix

    @contextmanager
    def indexed(self) -> Iterator[None]:
        """Let what a first listing brings in change nothing of whether the index has the directory."""
        is_indexed = self.directory.is_indexed
        yield
        if self.run.is_first:
            self.directory.is_indexed = is_indexed

    def tell_what_is_beside(self) -> None:
        self.run.add((name for name in self.beside if name in self.directory.children), past=self.run.past)
        self.beside.clear()


class Listings:
    """Listings under way, one for each directory, and the merging of them, page by page."""

    def __init__(
        self,
        storage: ObjectStorage,
        spawn: Spawn,
        placement: Placement,
        changes: Changes,
        inodes: InodeTable,
        index: TreeIndex | None,
        *,
        others_write: bool = False,
    ) -> None:
        """`index`: what earlier mounts knew; None if nothing is kept. `others_write` while this mount lasts."""
        self._storage = storage
        self._spawn = spawn
        self._placement = placement
        self._changes = changes
        self._inodes = inodes
        self._index = index
        self._others_write = others_write
        self._runs: dict[Directory, ListingRun] = {}
        #: Of first listings, when something has come.
        self._merges: dict[Directory, _Merge] = {}
        self._hidden_keys = HiddenKeys()

    async def ensure_listed(self, directory: Directory, *, max_age_seconds: float = math.inf) -> None:
        """Return when there is a listing that was no older than that at the time of the call.

        Older than that it may be on return, and is good for as long again as it took: in a large directory whoever
        asks for one name after the other would wait for a listing each time.
        """
        begun_after = self._begun_after(directory, max_age_seconds)
        while self._is_wanted(directory, begun_after):
            await self._run_of(directory).wait_until_over()

    async def ensure_read(self, directory: Directory, name: bytes) -> None:
        """Return when the tree has what the bucket has under a name.

        A first listing has all of that when it is past the key that a directory of that name would have. Who asks for
        what comes later, in a directory that has more than a page, asks the bucket for that alone.
        """
        while self._is_wanted(directory, -math.inf):
            run = self._run_of(directory)
            if run.is_first:
                await run.wait_until_begun()
                if await self._find_ahead(directory, name):
                    return
                await run.wait_until_past(_last_key_of(directory, name))
                if name in directory.children and run.is_trusted:
                    return
            await run.wait_until_over()

    async def _find_ahead(self, directory: Directory, name: bytes) -> bool:
        """Bring an entry into the tree that a first listing has not come to; return whether it is certain now."""
        merge, last = self._merges.get(directory), _last_key_of(directory, name)
        key = last.removesuffix("/")
        if merge is None or merge.run.past >= key:
            return False
        if name in directory.children:
            return name in merge.ahead and merge.run.is_trusted
        is_beside = name_of(segment_of(name)) != name
        if is_beside or len(last.encode()) > self._storage.limits.max_key_length:
            return False
        page = await self._storage.list_prefix(key, delimiter="/", page_size=_NEIGHBOURS)
        found = [child for named, child in DirectoryListing(merge.listing.prefix).read(page) if named == name]
        is_certain = (page.next_token is None or _last_key(page) >= last) and len(found) <= 1
        is_current = merge is self._merges.get(directory) and not merge.is_outdated and merge.run.is_trusted
        if not is_certain or not is_current or merge.run.past >= key:
            return False
        with merge.indexed():
            for child in found:
                self._merge_entry(merge, name, child, merge.memories)
        merge.ahead.update([name] if name in directory.children else [])
        return True

    def is_listed(self, directory: Directory, *, max_age_seconds: float) -> bool:
        """Return whether `ensure_listed` would ask for nothing."""
        return not self._is_wanted(directory, self._begun_after(directory, max_age_seconds))

    @staticmethod
    def _begun_after(directory: Directory, max_age_seconds: float) -> float:
        return trio.current_time() - max(max_age_seconds, 2 * directory.listing_took)

    async def names(self, directory: Directory, *, max_age_seconds: float) -> DirectoryNames:
        """Return the names from a listing that is as young, or from one that has just begun to name them."""
        begun_after = self._begun_after(directory, max_age_seconds)
        while self._is_wanted(directory, begun_after):
            run = self._run_of(directory)
            await run.wait_for_names(0)
            if run.is_over:
                continue
            if run.began >= begun_after and run.is_trusted:
                return DirectoryNames(directory, run)
            await run.wait_until_over()
        return DirectoryNames(directory, None)

    def _is_wanted(self, directory: Directory, begun_after: float) -> bool:
        if not directory.linked or directory.listed_at is None:
            return directory.linked
        return directory.listed_at < begun_after and self._can_be_listed_again(directory)

    def _can_be_listed_again(self, directory: Directory) -> bool:
        """Return whether the bucket may have what the tree has not: not under a prefix that is too long for a key."""
        is_too_long = len(directory.bucket_prefix.encode()) > self._storage.limits.max_key_length
        return directory.moving_with is None and not is_too_long

    def _run_of(self, directory: Directory) -> ListingRun:
        """Return the listing of the directory that is under way, or begin one; it goes on without those who wait."""
        run = self._runs.get(directory)
        if run is None:
            run = self._runs[directory] = ListingRun(directory)
            directory.listing_since = run.began
            self._spawn(self._list, directory, run)
        return run

    async def _list(self, directory: Directory, run: ListingRun) -> None:
        failure: Exception | None = StorageError("the listing was given up")
        try:
            await self._list_now(directory, run)
            failure = None
        except Exception as error:  # of any kind: it is for those who wait
            failure = error
        finally:
            del self._runs[directory]
            self._merges.pop(directory, None)
            directory.listing_since = math.inf
            directory.is_indexed = directory.is_indexed and directory.listed_at is not None
            run.end(failure)

    async def _list_now(self, directory: Directory, run: ListingRun) -> None:
        """Ask the bucket for the entries of a directory and bring them into the tree."""
        listing = DirectoryListing(directory.bucket_prefix)
        with (
            PagesAhead(self._storage, self._spawn, listing.prefix) as pages,
            self._placement.recorded_deletions(listing.prefix) as deletions,
        ):
            merge = _Merge(directory, listing, run, deletions, seen=None if run.is_first else set())
            index = self._index if run.is_first else None
            directory.is_indexed = directory.is_indexed or run.is_first
            if index is not None:
                index.expect(listing.prefix)  # while the first page is on its way
            is_over = False
            while not is_over:
                page = await pages.take()
                is_over = page.next_token is None
                if index is not None:
                    merge.memories, index = await index.recall(listing.prefix), None
                if merge.is_outdated:
                    return
                self._merge_page(merge, page)
                if run.is_first:
                    self._merges[directory] = merge
            self._finish(merge)

    def _merge_page(self, merge: _Merge, page: ListPage) -> None:
        with merge.indexed():
            self._merge_entries(merge, page)

    def _merge_entries(self, merge: _Merge, page: ListPage) -> None:
        names = []
        for name, child in merge.listing.read(page):
            is_ahead = name in merge.ahead
            is_new = is_ahead or name not in (merge.directory.children if merge.seen is None else merge.seen)
            self._merge_entry(merge, name, child, NO_MEMORIES if is_ahead else merge.memories)
            merge.ahead.discard(name)
            if merge.seen is not None:
                merge.seen.add(name)
            if is_new and name in merge.directory.children:
                names.append(name)
        merge.run.add(names, past=_last_key(page))
        merge.tell_what_is_beside()
        for key in merge.listing.take_nameless():
            self._report(merge, key, "its name would be too long")

    def _merge_entry(
        self, merge: _Merge, name: bytes, child: ListedObject | ListedDirectory, memories: Memories
    ) -> None:
        if isinstance(child, ListedObject):
            self._merge_object(merge, name, memories.of_object(name, child))
        else:
            self._merge_directory(merge, name, memories.of_directory(name, child))

    def _merge_object(self, merge: _Merge, name: bytes, child: ListedObject) -> None:
        directory, started = merge.directory, merge.run.began
        known = directory.children.get(name)
        if known is None:
            segment = segment_of(name)
            key = merge.listing.prefix + segment
            is_departing = self._placement.is_departing(key) or self._placement.is_anothers(key, directory)
            if not is_departing and segment not in merge.deletions.objects:
                directory.attach(name, child)
        elif isinstance(known, Directory | ListedDirectory):
            merge.shadowed[name] = child
        elif self._is_ours(known, started):
            return
        elif _is_as_written(known, child):
            is_certain = not self._others_write
            directory.attach(name, child.with_memory_of(known) if is_certain else child.with_number_of(known))
        elif not _is_same_version(known, child):
            self._replace(directory, name, _with_number_of(known, child))
        elif isinstance(known, Inode):
            known.is_doubtful = known.is_doubtful or not self._is_stored_when_known(known, child)
            known.stored_at_ns = child.stored_at_ns

    def _is_stored_when_known(self, known: Inode, child: ListedObject) -> bool:
        """Return whether an object has the attributes of its inode: whoever changes them leaves the ETag as it was."""
        if known.stored_at_ns == 0:  # since this mount wrote it, nobody has looked
            return not self._others_write
        return known.stored_at_ns == child.stored_at_ns

    def _merge_directory(self, merge: _Merge, name: bytes, child: ListedDirectory) -> None:
        directory = merge.directory
        known = directory.children.get(name)
        merge.directories.add(name)
        if isinstance(known, Directory):
            return
        segment = segment_of(name)
        prefix = f"{merge.listing.prefix}{segment}/"
        is_departing = self._placement.knows_below(prefix) or self._placement.is_anothers(prefix, directory)
        if is_departing or segment in merge.deletions.directories:
            return  # it may have nothing else below it than what is on its way out
        if known is None:
            directory.attach(name, child)
        elif not isinstance(known, ListedDirectory) and not self._is_ours(known, merge.run.began):
            if merge.seen is None or name in merge.seen:
                self._veil(merge, name)
            self._replace(directory, name, child)

    def _veil(self, merge: _Merge, name: bytes) -> None:
        """Make room for the directory of the same name as an object, which gets another one."""
        beside = self._name_beside(merge, name)
        if beside is not None:
            child = merge.directory.children[name]
            merge.directory.detach(name)
            merge.directory.attach(beside, child)

    def _merge_beside(self, merge: _Merge, name: bytes, child: ListedObject) -> None:
        beside = self._name_beside(merge, name)
        if beside is not None:
            self._merge_object(merge, beside, child)

    def _name_beside(self, merge: _Merge, name: bytes) -> bytes | None:
        segment = segment_of(name)
        beside = name_of_file_beside(segment)
        if beside is None:
            self._report(merge, merge.listing.prefix + segment, "a directory has the same name")
            return None
        if merge.seen is not None:
            merge.seen.add(beside)
        merge.beside.append(beside)
        return beside

    def _finish(self, merge: _Merge) -> None:
        """Take in what only the whole listing tells: what is not there any more."""
        directory, started = merge.directory, merge.run.began
        with merge.indexed():
            self._merge_shadowed(merge)
        if merge.unnamed:
            self._hidden_keys.note_more(merge.listing.prefix, merge.unnamed)
        gone = merge.ahead if merge.seen is None else directory.children.keys() - merge.seen
        for name in gone & directory.children.keys():
            if not self._is_ours(directory.children[name], started):
                self._replace(directory, name, None)
        self._compare_marker(directory, merge.listing.marker, started)
        directory.listed_at = started if merge.run.is_trusted else None
        directory.listing_took = trio.current_time() - started
        directory.files_ahead = directory.directories_ahead = (
            None  # they know the names of the listing before
        )
        if merge.run.is_first:
            directory.is_indexed &= merge.memories.believed == len(merge.memories)

    def _merge_shadowed(self, merge: _Merge) -> None:
        directory, started = merge.directory, merge.run.began
        for name, child in merge.shadowed.items():
            known = directory.children.get(name)
            if name in merge.directories or (known is not None and self._is_ours(known, started)):
                self._merge_beside(merge, name, child)
            elif known is not None:
                self._replace(directory, name, None)
                self.unveil(directory, name)
                self._merge_object(merge, name, child)
        merge.tell_what_is_beside()

    def _compare_marker(self, directory: Directory, marker: ObjectInfo | None, started: float) -> None:
        """Look whether the directory's own marker is what was known of it; the parent's listing does not tell."""
        is_ours = self._changes.is_unpublished(directory) or directory.state.published_at >= started
        if directory.number == ROOT_NUMBER or is_ours:
            return
        if marker is None and directory.version is not None:
            # Some stores (SeaweedFS) answer HEAD for every common prefix.
            self._placement.forget(directory.version.key)
        elif marker is not None and not self._is_known_marker(directory, marker):
            directory.is_doubtful = True

    def _is_known_marker(self, directory: Directory, marker: ObjectInfo) -> bool:
        """Return whether the marker is the one whose attributes the directory has."""
        stored_at_ns = directory.stored_at_ns
        if directory.version is None or directory.version.etag != marker.etag:
            return False
        if not stored_at_ns:
            return not self._others_write  # this mount wrote it
        if stored_at_ns < 0:
            return marker.last_modified_ns <= -stored_at_ns
        return marker.last_modified_ns // _SECOND == stored_at_ns // _SECOND  # HEAD tells no more

    def _report(self, merge: _Merge, key: str, reason: str) -> None:
        if not self._hidden_keys.note(merge.listing.prefix, key, reason):
            merge.unnamed += 1

    def _is_ours(self, known: Child, started: float) -> bool:
        """Return whether the tree knows better than a listing begun at `started`.

        A file that is open for writing is ours: a foreign change is found when it is published, and both are kept.
        """
        return isinstance(known, Inode) and any(
            self._is_newer(inode, started) for inode in known.with_all_below()
        )

    def _is_newer(self, inode: Inode, started: float) -> bool:
        if self._changes.is_unpublished(inode) or inode.state.published_at >= started:
            return True
        if isinstance(inode, Directory):
            return False
        if any(self._is_newer(alias, started) for alias in inode.aliases):
            return True
        return inode.version is None or (
            isinstance(inode, File) and (inode.content.changed or inode.writers > 0)
        )

    def _replace(self, directory: Directory, name: bytes, child: Child | None) -> None:
        """Take somebody else's change in: the old inode, if any, becomes one without a name."""
        known = directory.children.get(name)
        directory.detach(name)
        if isinstance(known, Inode):
            self._let_go(known)
        if child is not None:
            directory.attach(name, child)

    def _let_go(self, inode: Inode) -> None:
        """Give up an inode, with everything below it, whose object somebody else has replaced or removed."""
        gone = list(inode.with_all_below())
        for directory in gone:
            if isinstance(directory, Directory):
                for name in list(directory.children):
                    directory.detach(name)
        for lost in gone:
            if isinstance(lost, Alias):
                lost.lose_name()  # before its inode is let go of, which may be gone as well
        for lost in gone:
            for alias in list(lost.aliases):
                self._let_go_of_name(alias)
            lost.links = None  # or the list of those names would go with it
        for lost in reversed(gone):
            self._changes.lost(lost)
            self.drop_if_unused(lost)

    def _let_go_of_name(self, alias: Alias) -> None:
        """Let what the bucket has under a further name be looked up anew: the inode is gone, and it is a file still."""
        directory, name, version = alias.parent, alias.name, alias.version
        alias.lose_name()
        if directory is not None and version is not None:
            stored_at_ns = alias.stored_at_ns or 0
            directory.attach(
                name, ListedObject.pack(size=version.size, stored_at_ns=stored_at_ns, etag=version.etag)
            )
            alias.parent = None
        self._changes.let_go_of_name(alias)

    def unveil(self, directory: Directory, name: bytes) -> None:
        """Give the file beside a directory that is gone its own name; a log that tells of it has to tell that, too."""
        child = directory.unveil(name)
        if isinstance(child, Inode) and self._changes.needs(child):
            self._changes.changed(child)

    def drop_if_unused(self, inode: Inode) -> None:
        """Let an inode go that has no name, no handle and no reference from the kernel."""
        if inode.linked or inode.handles or inode.lookups:
            return
        self._changes.released(inode)
        self._inodes.drop(inode)


def _last_key_of(directory: Directory, name: bytes) -> str:
    """Return the last key in a listing of the directory that tells of a name: that of a directory."""
    return f"{directory.bucket_prefix}{segment_of(name)}/"


def _last_key(page: ListPage) -> str:
    return max((*page.prefixes[-1:], *(info.key for info in page.objects[-1:])), default="")


def _is_same_version(known: Child, listed: ListedObject) -> bool:
    if isinstance(known, Inode):
        return known.version is not None and known.version.etag == listed.etag
    return known.etag == listed.etag and known.stored_at_ns == listed.stored_at_ns


def _is_as_written(known: Child, listed: ListedObject) -> TypeGuard[ListedObject]:
    """Return whether a listing names the object that this mount has written, for the first time since."""
    return isinstance(known, ListedObject) and known.stored_at_ns == 0 and known.etag == listed.etag


def _with_number_of(known: Child, listed: ListedObject) -> ListedObject:
    """Let what takes the place of an entry that nobody needs keep its number, as it would in the next mount."""
    return listed.with_number_of(known) if isinstance(known, ListedObject) else listed
