"""Lists directories, and brings what the bucket says into the tree.

A directory is listed once, wholly, and then answered from memory: the tree is this mount's. Listing it again brings in
what others have changed. Our own changes win over a listing, which may be older than they are: an entry that is
pending, moved away or deleted here is left as the tree has it.

Keys that cannot be names here, and a file `x` beside a directory `x/`, are reported once in the log.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from functools import partial

import trio

from backends.base import ObjectInfo, ObjectStorage, iterate_pages
from fusefs.directory_listing import DirectoryListing
from fusefs.inodes import (
    ROOT_NUMBER,
    Child,
    Directory,
    File,
    ImplicitDirectory,
    Inode,
    InodeTable,
)
from fusefs.placement import Placement
from fusefs.publisher import Publisher
from fusefs.single_flight import SingleFlight

_log = logging.getLogger(__name__)


class Listings:
    """Listings under way, one for each directory, and the merging of them."""

    def __init__(
        self, storage: ObjectStorage, placement: Placement, publisher: Publisher, inodes: InodeTable
    ) -> None:
        self._storage = storage
        self._placement = placement
        self._publisher = publisher
        self._inodes = inodes
        self._listing = SingleFlight[Directory]()
        self._reported: set[str] = set()

    async def ensure_listed(self, directory: Directory, *, max_age_seconds: float = math.inf) -> None:
        """Return when there is a listing that was no older than that at the time of the call.

        Older than that it may be on return: a large directory takes longer to list than a shared mount's interval.
        """
        begun_after = trio.current_time() - max_age_seconds
        while directory.linked and (directory.listed_at is None or directory.listed_at < begun_after):
            await self._listing.run(directory, partial(self._list, directory))

    async def _list(self, directory: Directory) -> None:
        """Ask the bucket for the entries of a directory and bring them into the tree."""
        started = trio.current_time()
        listing = DirectoryListing(directory.prefix)
        with self._placement.recorded_deletions() as deleted:
            async for page in iterate_pages(self._storage, listing.prefix, delimiter="/"):
                listing.add(page)
        if directory.linked and directory.prefix == listing.prefix:
            entries = listing.entries(directory, self._publisher.departing() | deleted)
            self._report(listing.not_shown(entries))
            self._merge(directory, entries, started)
            if not listing.has_marker:
                self._forget_marker(directory, started)
            directory.listed_at = started

    def _forget_marker(self, directory: Directory, started: float) -> None:
        """Believe a listing that lacks the marker: some stores (SeaweedFS) answer HEAD for every common prefix."""
        is_ours = self._publisher.is_unpublished(directory) or directory.state.published_at >= started
        if directory.version is not None and directory.number != ROOT_NUMBER and not is_ours:
            self._placement.forget(directory.version.key)

    def _report(self, not_shown: Iterable[tuple[str, str]]) -> None:
        for key, reason in not_shown:
            if key not in self._reported:
                self._reported.add(key)
                _log.warning("the object %r cannot be shown: %s", key, reason)

    def _merge(self, directory: Directory, found: dict[bytes, Child], started: float) -> None:
        for name, child in found.items():
            self._merge_entry(directory, name, child, started)
        for name, known in list(directory.children.items()):
            if name not in found and not self._is_ours(known, started):
                self._replace(directory, name, None)

    def _merge_entry(self, directory: Directory, name: bytes, child: Child, started: float) -> None:
        known = directory.children.get(name)
        if known is None:
            directory.attach(name, child)
        elif isinstance(known, Directory | ImplicitDirectory) and isinstance(child, ImplicitDirectory):
            return
        elif not self._is_ours(known, started) and not _is_same_version(known, child):
            self._replace(directory, name, child)

    def _is_ours(self, known: Child, started: float) -> bool:
        """Return whether the tree knows better than a listing begun at `started`.

        A file that is open for writing is ours: a foreign change is found when it is published, and both are kept.
        """
        if not isinstance(known, Inode):
            return False
        if self._publisher.is_unpublished(known) or known.state.published_at >= started:
            return True
        if isinstance(known, Directory):
            return any(self._is_ours(child, started) for child in known.children.values())
        return known.version is None or (
            isinstance(known, File) and (known.content.changed or known.writers > 0)
        )

    def _replace(self, directory: Directory, name: bytes, child: Child | None) -> None:
        """Take somebody else's change in: the old inode, if any, becomes one without a name."""
        known = directory.children[name]
        directory.detach(name)
        if isinstance(known, Inode):
            self._let_go(known)
        if child is not None:
            directory.attach(name, child)

    def _let_go(self, inode: Inode) -> None:
        """Give up an inode, with everything below it, whose object somebody else has replaced or removed."""
        if isinstance(inode, Directory):
            for name, child in list(inode.children.items()):
                inode.detach(name)
                if isinstance(child, Inode):
                    self._let_go(child)
        self._publisher.lost(inode)
        self.drop_if_unused(inode)

    def drop_if_unused(self, inode: Inode) -> None:
        """Let an inode go that has no name, no handle and no reference from the kernel."""
        if inode.linked or inode.handles or inode.lookups:
            return
        self._publisher.released(inode)
        self._inodes.drop(inode)


def _is_same_version(known: Child, listed: Child) -> bool:
    if isinstance(listed, ObjectInfo):
        if isinstance(known, Inode):
            return known.version is not None and known.version.etag == listed.etag
        return isinstance(known, ObjectInfo) and known.etag == listed.etag
    return False
