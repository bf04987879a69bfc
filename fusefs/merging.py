"""Brings what listings say into the tree, page by page: the decisions, without a request.

Our own changes win over a listing, which may be older than they are: an entry that is pending, moved away or deleted
here is left as the tree has it.

Where there are an object `x` and others below `x/`, the directory has the name, and the object another one. Keys for
which there is no name are told of in the log (`hidden_keys`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeGuard

import trio

from backends.base import ListPage, ObjectInfo
from fusefs.changes import Changes
from fusefs.directory_listing import DirectoryListing
from fusefs.directory_names import ListingRun
from fusefs.hidden_keys import HiddenKeys
from fusefs.inode_table import InodeTable
from fusefs.inodes import ROOT_NUMBER, Alias, Child, Directory, File, Inode
from fusefs.keys import name_of_file_beside, segment_of
from fusefs.listed import UNKNOWN_DIRECTORY, ListedDirectory, ListedObject
from fusefs.placement import Deletions, Placement
from fusefs.tree_index import NO_MEMORIES, Memories

_SECOND: Final = 1_000_000_000


@dataclass(eq=False, slots=True)
class Merge:
    """What one listing must remember from page to page."""

    directory: Directory
    listing: DirectoryListing
    run: ListingRun
    deletions: Deletions
    #: Names that have come up, where the tree had some before; None where it has those alone, and what is `ahead`.
    seen: set[bytes] | None
    directories: set[bytes] = field(default_factory=set)
    #: Objects of the same name as what the tree has for a directory: that may be gone.
    shadowed: dict[bytes, ListedObject] = field(default_factory=dict)
    #: Names that were asked for, and found, before the listing has come to them.
    ahead: set[bytes] = field(default_factory=set)
    #: Names of objects beside directories that the reader has not been told yet.
    beside: list[bytes] = field(default_factory=list)
    memories: Memories = NO_MEMORIES
    hides_keys: bool = False
    #: Keys that cannot be shown and that the log does not name.
    unnamed: int = 0
    #: Seconds for which an outage has held it up.
    held_up: float = 0.0

    @property
    def is_outdated(self) -> bool:
        """Whether the directory was moved or removed since."""
        return not self.directory.linked or self.directory.bucket_prefix != self.listing.prefix

    @contextmanager
    def indexed(self) -> Iterator[None]:
        """Let what a first listing brings in change nothing of whether the index has the directory."""
        is_indexed = self.directory.is_indexed
        try:
            yield
        finally:
            if self.run.is_first and self.directory.listed_at is None:
                self.directory.is_indexed = is_indexed

    def tell_what_is_beside(self) -> None:
        self.run.add((name for name in self.beside if name in self.directory.children), past=self.run.past)
        self.beside.clear()


class Merger:
    """Merges all listings into the tree, and lets go of what others have taken from it."""

    def __init__(
        self, placement: Placement, changes: Changes, inodes: InodeTable, *, others_write: bool = False
    ) -> None:
        """`others_write` while this mount lasts."""
        self._placement = placement
        self._changes = changes
        self._inodes = inodes
        self._others_write = others_write
        self._hidden_keys = HiddenKeys()

    def merge_page(self, merge: Merge, page: ListPage) -> None:
        with merge.indexed():
            self._merge_entries(merge, page)

    def _merge_entries(self, merge: Merge, page: ListPage) -> None:
        names = []
        for name, child in merge.listing.read(page):
            is_new = name in merge.ahead or name not in (
                merge.directory.children if merge.seen is None else merge.seen
            )
            if isinstance(child, ListedDirectory):
                merge.directories.add(name)
            self.merge_entry(merge, name, child)
            merge.ahead.discard(name)
            if merge.seen is not None:
                merge.seen.add(name)
            if is_new and name in merge.directory.children:
                names.append(name)
        merge.run.add(names, past=last_key(page))
        merge.tell_what_is_beside()
        for key in merge.listing.take_nameless():
            self._report(merge, key, "its name would be too long")

    def merge_entry(self, merge: Merge, name: bytes, child: ListedObject | ListedDirectory) -> None:
        """Bring an entry in, with what is remembered of it, unless the tree has more of that name."""
        known = merge.directory.children.get(name)
        is_beside = isinstance(child, ListedDirectory) and isinstance(known, ListedObject)
        is_unknown = known is None or known == UNKNOWN_DIRECTORY or is_beside
        memories = merge.memories if is_unknown else NO_MEMORIES
        if isinstance(child, ListedObject):
            self._merge_object(merge, name, memories.of_object(name, child))
        elif self._placement.is_departing(f"{merge.listing.prefix}{segment_of(name)}/"):
            self._merge_directory(merge, name, child)  # what is remembered is another one's
        else:
            self._merge_directory(merge, name, memories.of_directory(name, child))

    def _merge_object(self, merge: Merge, name: bytes, child: ListedObject) -> None:
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

    def _merge_directory(self, merge: Merge, name: bytes, child: ListedDirectory) -> None:
        directory = merge.directory
        known = directory.children.get(name)
        if isinstance(known, Directory):
            known.is_doubtful = known.is_doubtful or self._may_be_changed(known, merge.run.began)
            return
        if known == UNKNOWN_DIRECTORY != child:
            directory.attach(name, child)  # a recovery has found it, and knew nothing else
            return
        segment = segment_of(name)
        prefix = f"{merge.listing.prefix}{segment}/"
        is_departing = self._placement.knows_below(prefix) or self._placement.is_anothers(prefix, directory)
        if is_departing or segment in merge.deletions.directories:
            return  # it may have nothing else below it than what is on its way out
        if known is None:
            directory.attach(name, child)
        elif not isinstance(known, ListedDirectory) and not self._is_ours(known, merge.run.began):
            if name not in merge.ahead and (merge.seen is None or name in merge.seen):
                self._veil(merge, name)
            self._replace(directory, name, child)

    def _may_be_changed(self, known: Directory, started: float) -> bool:
        """Return whether others may have changed the marker of a directory that was not listed since `started`."""
        is_listed = known.listed_at is not None and known.listed_at >= started
        return self._others_write and not is_listed and not self._is_newer(known, started)

    def _veil(self, merge: Merge, name: bytes) -> None:
        """Make room for the directory of the same name as an object, which gets another one."""
        beside = self._name_beside(merge, name)
        if beside is not None and merge.directory.veil(name):
            child = merge.directory.children[beside]
            if isinstance(child, ListedObject) and child.number is None:
                merge.directory.attach(beside, merge.memories.of_object(beside, child))

    def _merge_beside(self, merge: Merge, name: bytes, child: ListedObject) -> None:
        beside = self._name_beside(merge, name)
        if beside is not None:
            self.merge_entry(merge, beside, child)

    def _name_beside(self, merge: Merge, name: bytes) -> bytes | None:
        segment = segment_of(name)
        beside = name_of_file_beside(segment)
        if beside is None:
            self._report(merge, merge.listing.prefix + segment, "a directory has the same name")
            return None
        if merge.seen is not None:
            merge.seen.add(beside)
        merge.beside.append(beside)
        return beside

    def finish(self, merge: Merge) -> None:
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
                if name in merge.ahead:
                    directory.distrust()  # the page that has not got it may be older than the answer that had
        self._compare_marker(directory, merge.listing.marker, started)
        directory.listed_at = started if merge.run.is_trusted else None
        directory.listing_took = trio.current_time() - started - merge.held_up
        directory.hiding_prefix = merge.listing.prefix if merge.hides_keys else None
        # They know the names of the listing before.
        directory.files_ahead = directory.directories_ahead = None
        if merge.run.is_first:
            directory.is_indexed &= merge.memories.believed == len(merge.memories)

    def _merge_shadowed(self, merge: Merge) -> None:
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
        if marker is not None and self._placement.has_anothers_marker(directory):
            return
        if marker is None and directory.version is not None:
            # Some stores (SeaweedFS) answer HEAD for every common prefix.
            self._placement.forget(directory.version.key)
        elif marker is not None and not self._is_known_marker(directory, marker):
            directory.is_doubtful = True
        elif marker is not None and not directory.stored_at_ns:
            directory.stored_at_ns = marker.last_modified_ns  # as this mount wrote it; a later time is theirs

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

    def _report(self, merge: Merge, key: str, reason: str) -> None:
        merge.hides_keys = True
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

    def let_go(self, directory: Directory, name: bytes) -> None:
        """Give up an entry whose object is another one by now, and have the directory listed again."""
        self._replace(directory, name, None)
        directory.distrust()

    def drop_if_unused(self, inode: Inode) -> None:
        """Let an inode go that has no name, no handle and no reference from the kernel."""
        if inode.linked or inode.handles or inode.lookups:
            return
        self._changes.released(inode)
        self._inodes.drop(inode)


def last_key(page: ListPage) -> str:
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
