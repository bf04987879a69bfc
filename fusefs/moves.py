"""Directories that have another name, until it was noted of all below them that they have another path.

A rename notes the directory alone, so that it takes no longer for many files than for few. Publish queue and log have a
list of their own, and take what is below the directories when they next have to know of it. What has left a directory
before that, or has come, was noted by itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from fusefs.inodes import Directory, Inode


class Moves:
    """The directories of which that is still to be noted."""

    def __init__(self) -> None:
        self._directories: dict[Directory, None] = {}

    def add(self, directory: Directory) -> None:
        """Note that a directory has another name."""
        self._directories[directory] = None

    def take(self) -> list[Inode]:
        """Return all inodes that have another path and have to be told of, parents first, and forget that they have."""
        if not self._directories:
            return []
        directories, self._directories = self._directories, {}
        found: dict[Inode, None] = {}
        for directory in directories:
            if directory.linked:
                for inode in _worth_telling(directory):
                    found |= dict.fromkeys((inode.subject, *inode.subject.aliases))
        return list(found)


def _worth_telling(directory: Directory) -> Iterator[Inode]:
    """Yield what the bucket or the log may know by its path; a common prefix of keys is nothing by itself."""
    for inode in directory.with_all_below():
        if not isinstance(inode, Directory) or inode.version is not None or inode.state.is_behind:
            yield inode
