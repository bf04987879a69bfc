"""Puts what a recovery has found into the tree, before anybody sees it.

First of all it is said what is where: a listing does not show what the log knows under another name, or not at all
any more, and what is below a directory that has a source is found there. Then parents come before children, and all in
a directory before anything below it: for that the directory is listed, and the index adds to what is there.

A directory that the log does not tell of is in the bucket, and is looked up there; if there is none, because everything
below it is still on its way, or gone, it is made. Where a listing cannot tell, since something is on its way out of a
directory, the recovery has looked whether that has anything else.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from backends.errors import InvalidKey
from fusefs.changes import Changes
from fusefs.committer import Committer
from fusefs.errors import NoSuchEntry
from fusefs.inode_table import InodeTable
from fusefs.inodes import Directory
from fusefs.listed import UNKNOWN_DIRECTORY
from fusefs.namespace import Namespace
from fusefs.placement import Placement
from fusefs.recovery import Recovered, RecoveredInode

_log = logging.getLogger(__name__)


class Restoration:
    """One restoration, into the tree below `root`."""

    def __init__(
        self,
        root: Directory,
        namespace: Namespace,
        inodes: InodeTable,
        placement: Placement,
        changes: Changes,
        committer: Committer,
    ) -> None:
        self._root: Final = root
        self._namespace: Final = namespace
        self._inodes: Final = inodes
        self._placement: Final = placement
        self._changes: Final = changes
        self._committer: Final = committer

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
        for path, entry in sorted(entries.items(), key=lambda item: (len(item[0]), item[0])):
            directory = await self._directory(path[:-1])
            if entry is not None:
                self._enter(entry, directory, recovered)
            elif path[-1] not in directory.children:
                directory.attach(path[-1], UNKNOWN_DIRECTORY)
        for renamed, _ in moving:
            self._namespace.go_on_with_move(renamed)
        self._committer.restored()
        if recovered.inodes or recovered.leftovers:
            _log.info(
                "%d files and directories of an earlier mount are there again and will be published",
                len(recovered.inodes),
            )

    async def _directory(self, path: Sequence[bytes]) -> Directory:
        """Find a directory, or make it."""
        directory = self._root
        for name in path:
            child: object = directory.children.get(name)
            if not isinstance(child, Directory):
                with suppress(NoSuchEntry, InvalidKey):
                    child = await self._namespace.lookup(directory, name)
            if not isinstance(child, Directory):
                if name in directory.children:
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
