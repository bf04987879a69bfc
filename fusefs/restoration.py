"""Puts what a recovery has found into the tree, before anybody sees it.

Parents come before children. A directory that the log does not tell of is in the bucket, and is looked up there; if
somebody has removed it since, it is made again. What such a look lists of objects that the log knows under other
names, or not at all any more, is taken out of the tree.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Final, TypeAlias

from fusefs.committer import Committer
from fusefs.content import Version
from fusefs.errors import NoSuchEntry
from fusefs.inodes import Directory, Inode, InodeTable
from fusefs.keys import name_of
from fusefs.listed import ListedObject
from fusefs.namespace import Namespace
from fusefs.placement import Placement
from fusefs.publisher import Publisher
from fusefs.recovery import Recovered, RecoveredInode

_log = logging.getLogger(__name__)

_Path: TypeAlias = tuple[bytes, ...]


class Restoration:
    """One restoration, into the tree below `root`."""

    def __init__(
        self,
        root: Directory,
        namespace: Namespace,
        inodes: InodeTable,
        placement: Placement,
        publisher: Publisher,
        committer: Committer,
    ) -> None:
        self._root: Final = root
        self._namespace: Final = namespace
        self._inodes: Final = inodes
        self._placement: Final = placement
        self._publisher: Final = publisher
        self._committer: Final = committer

    async def restore(self, recovered: Recovered) -> None:
        """Enter everything, and note what is to be published. Raises what the store raises."""
        told_of = {found.path for found in recovered.inodes if isinstance(found.inode, Directory)}
        for path in sorted({found.path[:-1] for found in recovered.inodes if found.path}):
            await self._look_up(path, told_of)
        for found in recovered.inodes:
            self._enter(found, recovered)
        for leftover in recovered.leftovers:
            self._placement.leave(leftover)
            self._hide(leftover)
        if recovered.inodes or recovered.leftovers:
            _log.info(
                "%d files and directories of an earlier mount are there again and will be published",
                len(recovered.inodes),
            )

    async def _look_up(self, path: _Path, told_of: Collection[_Path]) -> None:
        """Find the directories of a path, or make them, down to the first that the log tells of."""
        directory = self._root
        for depth, name in enumerate(path, 1):
            if path[:depth] in told_of:
                return
            try:
                child = await self._namespace.lookup(directory, name)
            except NoSuchEntry:
                child = None
            if not isinstance(child, Directory):
                child = self._namespace.new_directory(directory.attributes)
                directory.attach(name, child)
                self._inodes.add(child)
                self._publisher.changed(child)
            directory = child

    def _enter(self, found: RecoveredInode, recovered: Recovered) -> None:
        inode = self._attached(found)
        if found.version is not None:
            self._placement.place(inode, found.version)
            if found.version.key.removesuffix("/") != inode.path_key:
                self._hide(found.version)
        self._publisher.changed(inode)
        self._committer.recovered(inode, recovered.first)

    def _attached(self, found: RecoveredInode) -> Inode:
        """Give the inode its place; a directory that was looked up is as the log says."""
        directory: Directory = self._root
        if not found.path:
            known: object = self._root
        else:
            parent = self._at(found.path[:-1])
            assert isinstance(parent, Directory), "parents come first"
            directory = parent
            known = directory.children.get(found.path[-1])
        if isinstance(known, Directory) and isinstance(found.inode, Directory):
            known.attributes = found.inode.attributes
            known.log_id = found.inode.log_id
            return known
        directory.attach(found.path[-1], found.inode)
        self._inodes.add(found.inode)
        return found.inode

    def _at(self, path: Sequence[bytes]) -> object:
        node: object = self._root
        for name in path:
            node = node.children.get(name) if isinstance(node, Directory) else None
        return node

    def _hide(self, version: Version) -> None:
        """Take an object that a listing named as a file out of the tree."""
        names = [name_of(segment) for segment in version.key.split("/")]
        if None in names:
            return
        *path, name = [name for name in names if name is not None]
        directory = self._at(path)
        child = directory.children.get(name) if isinstance(directory, Directory) else None
        if (
            isinstance(directory, Directory)
            and isinstance(child, ListedObject)
            and child.etag == version.etag
        ):
            directory.detach(name)
