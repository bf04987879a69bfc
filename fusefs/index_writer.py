"""Keeps the index up to date: now and then, and when the mount ends, what is known of directories that have changed.

Never in the way of anybody: nothing waits for it, and what cannot be written is only more expensive to know the next
time. An inode that is not published is left out; its directory is written again when it is.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Final

import trio

from backends.base import KIB
from backends.errors import StorageError
from backends.threads import beside_others
from fusefs.attributes import Defaults
from fusefs.changes import Changes
from fusefs.index_format import Block, encode_block
from fusefs.inode_packing import entry_of
from fusefs.inode_table import InodeTable
from fusefs.inodes import Directory
from fusefs.keys import name_of
from fusefs.listed import ListedDirectory, ListedEntry, ListedObject
from fusefs.placement import Placement
from fusefs.tree_index import TreeIndex, shard_of

_log = logging.getLogger(__name__)

INTERVAL_SECONDS: Final = 60.0
"""Between two times that the index is written while something changes."""

EFFORT: Final = 0.01
"""Share of the time that writing may take: after a large tree the pause is longer."""

BYTES_PER_SECOND: Final = 32 * KIB
"""Written in the long run, at most: one change in a directory of a million files writes all that is known of it."""

TASKS: Final = 4
"""Shards written at once."""

FINISH_SECONDS: Final = 30.0
"""For how long the end of a mount waits for the index, which nothing depends on."""

NOTE_SECONDS: Final = 5.0
"""And for the note that it is not whole."""

YIELD_AFTER: Final = 1_000
"""Entries after which other tasks have their turn."""

LARGE_BLOCK: Final = 15_000
"""Entries of a block that is packed in a thread: 100,000 take a sixth of a second."""


class IndexWriter:
    """Writes what the tree knows; `TreeIndex` knows how."""

    def __init__(
        self,
        index: TreeIndex,
        inodes: InodeTable,
        placement: Placement,
        changes: Changes,
        defaults: Defaults,
        *,
        shared: bool,
    ) -> None:
        self._index = index
        self._inodes = inodes
        self._placement = placement
        self._changes = changes
        self._defaults = defaults
        self._shared = shared
        #: Whoever comes second finds what the first could not write.
        self._saving = trio.Lock()
        #: Bytes of the index since the mount began.
        self._written = 0

    async def run(self) -> None:
        """Write what has changed, again and again."""
        while True:
            began, written_before = trio.current_time(), self._written
            await self.save()
            took, written = trio.current_time() - began, self._written - written_before
            await trio.sleep(max(INTERVAL_SECONDS, took / EFFORT, written / BYTES_PER_SECOND))

    async def finish(self) -> None:
        """Write what has changed when this mount writes nothing to the bucket any more, as far as that goes quickly.

        Where it does not, the index has directories as they were before, and no listing tells: that is noted.
        """
        is_whole = False
        try:
            with trio.move_on_after(FINISH_SECONDS):
                await self.save(is_final=True)
                is_whole = self._is_whole()
        finally:
            if not is_whole:
                await self._note_not_whole()

    async def _note_not_whole(self) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + NOTE_SECONDS):
            try:
                await self._index.note_crash()
            except StorageError as error:
                _log.warning("attributes of directories may be older in the next mount: %s", error)

    async def save(self, *, is_final: bool = False) -> None:
        """Write what has changed since the last time. `is_final`: this mount writes nothing to the bucket any more.

        Then also where only directories have other times, since something inside has changed, of which no object tells.
        """
        async with self._saving:
            changed: dict[int, list[Directory]] = defaultdict(list)
            for directory in self._inodes.directories():
                is_whole = directory.listed_at is not None and directory.moving_with is None
                is_indexed = directory.is_indexed and (directory.are_times_indexed or not is_final)
                if is_whole and directory.linked and not is_indexed:
                    changed[shard_of(directory.prefix)].append(directory)
            is_last = is_final and not self._shared
            not_after_ns = await self._index.time_before_ns() if changed and not is_last else 0
            if not_after_ns is None:
                return
            limiter = trio.CapacityLimiter(TASKS)
            async with trio.open_nursery() as nursery:
                for shard, directories in changed.items():
                    nursery.start_soon(self._save_shard, limiter, shard, directories, not_after_ns)

    async def _save_shard(
        self, limiter: trio.CapacityLimiter, shard: int, directories: list[Directory], not_after_ns: int
    ) -> None:
        """`not_after_ns`: of what has changed later the blocks do not tell; 0: nothing will."""
        async with limiter:
            blocks = {}
            for directory in directories:
                # Until it changes again, be it while this is written.
                directory.is_indexed = directory.are_times_indexed = True
                block = await self._block(directory)
                blocks[block.prefix] = replace(block, not_after_ns=not_after_ns)
            is_final = not not_after_ns
            written = await self._index.update(shard, blocks, is_gone=self._is_gone, is_final=is_final)
            self._written += written or 0
            if written is None:
                for directory in directories:
                    directory.is_indexed = False

    def _is_whole(self) -> bool:
        """Return whether the index has all that this mount knows of directories."""
        directories = self._inodes.directories()
        return all(each.is_indexed for each in directories if each.linked and each.subdirectories)

    async def _block(self, directory: Directory) -> Block:
        prefix = directory.prefix
        entries = []
        for count, name in enumerate(list(directory.children), 1):
            entry = self._entry(directory, name)
            if entry is not None:
                entries.append((name, entry))
            if count % YIELD_AFTER == 0:
                await trio.lowlevel.checkpoint()
        if not entries:
            return Block(prefix=prefix, not_after_ns=0, defaults=self._defaults, payload=b"")
        if len(entries) > LARGE_BLOCK:
            return await beside_others(partial(encode_block, prefix, self._defaults, entries))
        return encode_block(prefix, self._defaults, entries)

    def _entry(self, directory: Directory, name: bytes) -> ListedEntry | None:
        """Return what is known of an entry, as it is in the bucket; None if there is nothing to remember.

        Of an object that this mount has written, and not listed since, another host may have changed the attributes.
        """
        entry = self._known_entry(directory, name)
        if not self._shared or not isinstance(entry, ListedObject) or entry.stored_at_ns:
            return entry
        return ListedObject.pack(size=entry.size, stored_at_ns=0, etag=entry.etag).with_number_of(entry)

    def _known_entry(self, directory: Directory, name: bytes) -> ListedEntry | None:
        child = directory.children.get(name)
        if isinstance(child, ListedEntry):
            return None if child.number is None else child
        if child is None or self._changes.is_unpublished(child):
            return None
        return entry_of(child, self._placement)

    def _is_gone(self, prefix: str) -> bool:
        """Return whether the tree knows that there is no such directory; another host may have made it just now."""
        if self._shared or self._placement.moving_from(prefix) is not None:
            return False
        directory = self._inodes.root
        for segment in _segments(prefix):
            if directory.listed_at is None:
                return False
            name = name_of(segment)
            child = directory.children.get(name) if name is not None else None
            if not isinstance(child, Directory):
                return not isinstance(child, ListedDirectory)
            directory = child
        return False


def _segments(prefix: str) -> Iterator[str]:
    return iter(prefix.removesuffix("/").split("/") if prefix else ())
