"""Directories that were renamed before everything below them was known: found out behind the rename, then moved.

A rename takes no longer for many objects than for few: it gives the directory a source (`Directory.source`), and one
record of the log says so. Until the source ends, the directory is served from where its objects are.

    renamed     `begin`: the source; what is known below moves with the directory, and waits (`turns`)
    finding     in the background: everything below is listed and looked up, again and again while that fails
    known       in one moment: the source ends, and all below is to be moved, as after a rename of what was known

After a crash the log has the source, and the next mount goes on with the finding.
"""

from __future__ import annotations

import logging
import math
from typing import Final

import trio

from fusefs.content import Spawn
from fusefs.inodes import Directory, Inode
from fusefs.keys import segment_of
from fusefs.placement import Placement
from fusefs.publish_queue import RETRY_SECONDS
from fusefs.publisher import Publisher
from fusefs.subtrees import Subtrees, is_known_below

_log = logging.getLogger(__name__)

LEAST_ROOM: Final = 512
"""Bytes that a key must have left for what is below a directory, where nobody has looked how long its paths are."""


class RenamedDirectories:
    """Those that have a source, each with a task that finds out what is below."""

    def __init__(
        self,
        spawn: Spawn,
        subtrees: Subtrees,
        placement: Placement,
        publisher: Publisher,
        *,
        max_key_length: int,
        max_age_seconds: float,
    ) -> None:
        """`max_age_seconds`: of listings from which it is known, before a rename, what is below a directory."""
        self._spawn = spawn
        self._subtrees = subtrees
        self._placement = placement
        self._publisher = publisher
        self._changes = publisher.changes
        self._max_key_length = max_key_length
        self._max_age_seconds = max_age_seconds
        self._finding: set[Directory] = set()

    def can_be_moved(self, inode: Inode, new_prefix: str) -> bool:
        """Return whether an inode may have another name now; `new_prefix` is that of what will be below it."""
        return all(map(is_known_below, self._to_be_known(inode, new_prefix)))

    async def prepare(self, inode: Inode, new_prefix: str, *, again: bool = False) -> None:
        """Find out what has to be known before an inode may have another name. Raises what the store raises."""
        for directory in self._to_be_known(inode, new_prefix):
            await self._subtrees.find_all(
                directory, max_age_seconds=math.inf if again else self._max_age_seconds
            )

    def moved(self, directory: Directory, source: str) -> None:
        """Note that a directory has another name; `source` is where it was to be listed before."""
        if directory.source is None and not is_known_below(directory):
            self._placement.begin_source(directory, source)
        if directory.source is not None:
            self.go_on(directory)

    def go_on(self, directory: Directory) -> None:
        """Have all below a directory that has a source found, unless it is where the source is."""
        if self._is_at_home(directory):
            self._changes.source_ended(directory)
        elif directory not in self._finding:
            self._finding.add(directory)
            self._spawn(self._find, directory)

    def _to_be_known(self, inode: Inode, new_prefix: str) -> list[Directory]:
        """Return the directories, the inode or below it, that cannot be moved unless everything below them is known.

        Without a log, which says where objects are, that is so for all; and for those below which a key may become
        too long, or whose name in the bucket is still the source of another one.
        """
        if not isinstance(inode, Directory):
            return []
        parts = [inode, *(part for part in self._placement.moving if inode in part.above())]
        return [part for part in parts if not self._can_follow(part, inode, new_prefix)]

    def _can_follow(self, part: Directory, moved: Directory, new_prefix: str) -> bool:
        old = part.bucket_prefix
        if not self._publisher.has_log or self._placement.is_anothers(old, part):
            return False
        length = len(new_prefix.encode()) + len(part.prefix.encode()) - len(moved.prefix.encode())
        return length <= len(old.encode()) or self._max_key_length - length >= LEAST_ROOM

    def _is_at_home(self, directory: Directory) -> bool:
        """Return whether what a directory has in the bucket would be found there without its source, too."""
        assert directory.source is not None
        assert directory.parent is not None
        key = directory.source.removesuffix("/")
        is_at_home = key == directory.parent.bucket_prefix + segment_of(directory.name)
        return is_at_home and not self._placement.is_anothers(key, directory.parent)

    async def _find(self, directory: Directory) -> None:
        while directory.source is not None:
            try:
                await self._subtrees.find_all(directory)
            except Exception as error:  # of any kind: nothing may end the nursery of the whole mount
                await self._pause_after(error, directory)
                continue
            if directory.source is not None and is_known_below(directory):
                is_at_home = self._is_at_home(directory)
                self._changes.source_ended(directory)
                if not is_at_home:
                    self._changes.moved(directory)
        self._finding.discard(directory)

    async def _pause_after(self, error: Exception, directory: Directory) -> None:
        if directory.source is None:
            return  # it was removed, or is at home again
        _log.error(
            "cannot find out what is below %r, trying again in %.0f s: %s",
            directory.path_key,
            RETRY_SECONDS,
            error,
        )
        self._publisher.source_failed(directory, error)
        with trio.move_on_after(RETRY_SECONDS):
            await self._publisher.wait_until_hurried()
