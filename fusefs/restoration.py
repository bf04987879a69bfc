"""Puts what a recovery has found into the tree, before anybody sees it.

First of all it is said what is where: a listing does not show what the log knows under another name, or not at all
any more, and what is below a directory that has a source is found there. Then parents come before children, and all in
a directory before anything below it: for that the directory is listed, and the index adds to what is there.

A directory that the log does not tell of is in the bucket, and is looked up there, together with the others in which
there is to be something at the same depth; if there is none, because everything below it is still on its way, or gone,
it is made. Where a listing cannot tell, since something is on its way out of a directory, the recovery has looked
whether that has anything else.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Final

from backends.errors import InvalidKey
from fusefs.changes import Changes
from fusefs.committer import Committer
from fusefs.directory_search import Path
from fusefs.errors import NoSuchEntry
from fusefs.inode_table import InodeTable
from fusefs.inodes import Directory
from fusefs.listed import UNKNOWN_DIRECTORY
from fusefs.namespace import Namespace
from fusefs.placement import Placement
from fusefs.recovery import Recovered, RecoveredInode
from fusefs.start_progress import StartProgress

_log = logging.getLogger(__name__)


class Restoration:
    """One restoration, into the whole tree."""

    def __init__(
        self,
        namespace: Namespace,
        inodes: InodeTable,
        placement: Placement,
        changes: Changes,
        committer: Committer,
        progress: StartProgress,
    ) -> None:
        self._root: Final = inodes.root
        self._namespace: Final = namespace
        self._inodes: Final = inodes
        self._placement: Final = placement
        self._changes: Final = changes
        self._committer: Final = committer
        self._progress: Final = progress

    async def restore(self, recovered: Recovered) -> None:
        """Enter everything, and note what is to be published. Raises what the store raises."""
        for found in recovered.inodes:
            if found.version is not None:
                self._placement.place(found.inode, found.version)
        for leftover in recovered.leftovers:
            self._placement.leave(leftover)
        moving = [
            (found.inode, found.inode.source)
            for found in recovered.inodes
            if isinstance(found.inode, Directory) and found.inode.source is not None
        ]
        for renamed, source in moving:
            self._placement.begin_source(renamed, source)
        entries: dict[tuple[bytes, ...], RecoveredInode | None] = {
            **dict.fromkeys(recovered.directories),
            **{found.path: found for found in recovered.inodes},
        }
        for _, paths in groupby(sorted(entries, key=lambda path: (len(path), path)), key=len):
            await self._restore_together(list(paths), entries, recovered)
        for renamed, _ in moving:
            self._namespace.go_on_with_move(renamed)
        self._committer.restored()
        if recovered.inodes or recovered.leftovers:
            _log.info(
                "%d files and directories of an earlier mount are there again and will be published",
                len(recovered.inodes),
            )

    async def _restore_together(
        self, paths: Sequence[Path], entries: Mapping[Path, RecoveredInode | None], recovered: Recovered
    ) -> None:
        """Enter what has paths of one length."""
        await self._look_up({path[:-1]: None for path in paths})
        for path in paths:
            directory, entry = self._directory(path[:-1]), entries[path]
            if entry is not None:
                self._enter(entry, directory, recovered)
            elif path[-1] not in directory.children:
                directory.attach(path[-1], UNKNOWN_DIRECTORY)

    async def _look_up(self, paths: Collection[Path]) -> None:
        """Find directories in the bucket, and first those on the way to them: the next of every way at once."""
        asked: set[tuple[Directory, bytes]] = set()
        while True:
            nearest = dict.fromkeys(filter(None, map(self._nearest_unknown, paths)))
            unknown = [place for place in nearest if place not in asked]
            if not unknown:
                return
            asked.update(unknown)
            await self._progress.for_each(
                unknown, self._look_up_one, "looking for the directories of its files in the bucket"
            )

    def _nearest_unknown(self, path: Path) -> tuple[Directory, bytes] | None:
        """Return which name on the way, and in which directory, is not known to be one; None if all are."""
        directory = self._root
        for name in path:
            child = directory.children.get(name)
            if not isinstance(child, Directory):
                return directory, name
            directory = child
        return None

    async def _look_up_one(self, place: tuple[Directory, bytes]) -> None:
        with suppress(NoSuchEntry, InvalidKey):
            await self._namespace.lookup(*place)

    def _directory(self, path: Path) -> Directory:
        """Return a directory; make it, and those on the way to it, where a look has found none."""
        directory = self._root
        for name in path:
            child = directory.children.get(name)
            if not isinstance(child, Directory):
                if child is not None:
                    directory.veil(name)  # somebody else has put it where ours is to be
                child = self._namespace.new_prefix()
                directory.attach(name, child)
                self._inodes.add(child)
                self._changes.changed(child)
            directory = child
        return directory

    def _enter(self, found: RecoveredInode, directory: Directory, recovered: Recovered) -> None:
        inode = found.inode
        if found.path:
            directory.attach(found.path[-1], inode)
            if inode is inode.subject:
                self._inodes.add(inode)
        else:
            inode = self._root
            inode.attributes, inode.log_id = found.inode.attributes, found.inode.log_id
            if found.version is not None:
                self._placement.place(inode, found.version)
        self._changes.changed(inode)
        for each in (inode.subject, *inode.subject.aliases):
            self._committer.recovered(each, recovered.first)  # or one would be told again without the others
