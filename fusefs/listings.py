"""Lists directories: the requests, and who waits for them (`merging` brings the answers into the tree).

A directory is listed once, wholly, and then answered from memory: the tree is this mount's. Listing it again brings in
what others have changed. Readers follow a listing that goes on; who looks one name up waits for no more of it than
that takes.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Final

import trio

from backends.base import ObjectStorage
from backends.errors import StorageError
from fusefs.content import Spawn
from fusefs.directory_listing import DirectoryListing
from fusefs.directory_names import DirectoryNames, ListingRun, PagesAhead
from fusefs.inodes import Directory
from fusefs.keys import name_of, segment_of
from fusefs.merging import Merge, Merger, last_key
from fusefs.placement import Placement
from fusefs.single_flight import SingleFlight
from fusefs.tree_index import TreeIndex

PAGE_SECONDS: Final = 10.0
"""A page that takes longer meets an outage, which says nothing of how long the next listing will take."""

_NEIGHBOURS: Final = 16
"""How many keys are asked for to find one: `x.old` and `x-1` are between `x` and `x/`."""


class Listings:
    """Listings under way, one for each directory."""

    def __init__(
        self,
        storage: ObjectStorage,
        spawn: Spawn,
        placement: Placement,
        merger: Merger,
        index: TreeIndex | None,
    ) -> None:
        """`index`: what earlier mounts knew; None if nothing is kept."""
        self._storage = storage
        self._spawn = spawn
        self._placement = placement
        self._merger = merger
        self._index = index
        self._runs: dict[Directory, ListingRun] = {}
        #: Of first listings, when something has come.
        self._merges: dict[Directory, Merge] = {}
        #: For single names, ahead of those.
        self._asking = SingleFlight[tuple[Merge, bytes], bool]()

    async def ensure_listed(self, directory: Directory, *, max_age_seconds: float = math.inf) -> None:
        """Return when there is a listing that was no older than that at the time of the call.

        Older than that it may be on return, and is good for as long again as it took, outages aside: in a large
        directory whoever asks for one name after the other would wait for a listing each time.
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
        if merge is None or merge.run.past >= last.removesuffix("/") or not merge.run.is_trusted:
            return False
        if name in directory.children:
            return name in merge.ahead
        is_beside = name_of(segment_of(name)) != name
        if is_beside or len(last.encode()) > self._storage.limits.max_key_length:
            return False
        is_certain = await self._asking.run((merge, name), partial(self._ask_ahead, merge, name, last))
        return is_certain is True and self._is_current(merge)

    async def _ask_ahead(self, merge: Merge, name: bytes, last: str) -> bool:
        """Ask for one entry, the `last` of its keys included, and merge the answer; return whether it is certain."""
        key = last.removesuffix("/")
        try:
            page = await self._storage.list_prefix(key, delimiter="/", page_size=_NEIGHBOURS)
        except StorageError:
            return False  # the listing will tell
        found = [child for named, child in DirectoryListing(merge.listing.prefix).read(page) if named == name]
        is_certain = (page.next_token is None or last_key(page) >= last) and len(found) <= 1
        if not is_certain or not self._is_current(merge) or merge.run.past >= key:
            return False
        with merge.indexed():
            for child in found:
                self._merger.merge_entry(merge, name, child)
        merge.ahead.update([name] if name in merge.directory.children else [])
        return True

    def _is_current(self, merge: Merge) -> bool:
        """Return whether a first listing is still under way, of the directory as it is."""
        is_under_way = merge is self._merges.get(merge.directory)
        return is_under_way and not merge.is_outdated and merge.run.is_trusted

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
            merge = Merge(directory, listing, run, deletions, seen=None if run.is_first else set())
            index = self._index if directory.listed_at is None else None
            directory.is_indexed = directory.is_indexed or (run.is_first and directory.listed_at is None)
            if index is not None:
                merge.memories = await index.recall(listing.prefix)  # while the first page is on its way
            is_over, since = False, run.began
            while not is_over:
                page = await pages.take()
                merge.held_up += max(trio.current_time() - since - PAGE_SECONDS, 0.0)
                is_over = page.next_token is None
                if merge.is_outdated:
                    return
                self._merger.merge_page(merge, page)
                if run.is_first:
                    self._merges[directory] = merge
                since = trio.current_time()
            self._merger.finish(merge)
            # One that is not trusted is made again, and needs the index as this one did.
            if index is not None and directory.listed_at is not None:
                index.let_go(listing.prefix)


def _last_key_of(directory: Directory, name: bytes) -> str:
    """Return the last key in a listing of the directory that tells of a name: that of a directory."""
    return f"{directory.bucket_prefix}{segment_of(name)}/"
