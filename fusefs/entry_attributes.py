"""Fills pyfuse3's attribute struct: from an inode, or for a name that there is not."""

from __future__ import annotations

from typing import Final

import pyfuse3

from backends.base import KIB
from fusefs.inodes import Inode
from fusefs.namespace import Outline

BLOCK_SIZE: Final = 512
"""The unit of st_blocks, whatever the file system (stat(2))."""

IO_SIZE: Final = 128 * KIB
"""st_blksize: what cp and stdio take as their buffer."""


def entry_attributes(inode: Inode, *, timeout_seconds: float) -> pyfuse3.EntryAttributes:
    """Return the struct; the kernel may keep name and attributes for `timeout_seconds`."""
    entry = pyfuse3.EntryAttributes()
    attributes = inode.attributes
    entry.st_ino = inode.number
    entry.entry_timeout = timeout_seconds
    entry.attr_timeout = timeout_seconds
    entry.st_mode = attributes.mode
    entry.st_nlink = inode.link_count
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_rdev = attributes.rdev
    entry.st_size = inode.size
    entry.st_blksize = IO_SIZE
    entry.st_blocks = -(-inode.size // BLOCK_SIZE)
    entry.st_atime_ns = attributes.atime_ns
    entry.st_mtime_ns = attributes.mtime_ns
    entry.st_ctime_ns = attributes.ctime_ns
    return entry


def missing_entry(*, timeout_seconds: float) -> pyfuse3.EntryAttributes:
    """Return what tells the kernel that a name is free, and that it need not ask again for `timeout_seconds`."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = timeout_seconds
    return entry


def outlined_entry(outline: Outline) -> pyfuse3.EntryAttributes:
    """Return a directory entry without attributes: the kernel asks for them when somebody wants to know.

    What it takes for that is node 0 beside a number to be shown (fs/fuse/readdir.c, `fuse_direntplus_link`): libfuse
    has two fields for them, and pyfuse3's setter of `st_ino` fills both, in this order.
    """
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = _NoNodeButNumber(outline.number)  # type: ignore[assignment]
    entry.st_mode = outline.kind
    return entry


class _NoNodeButNumber:
    """Gives 0 to the first who asks for an integer, and the number to the second."""

    def __init__(self, number: int) -> None:
        self._answers = [number, 0]

    def __int__(self) -> int:
        return self._answers.pop()
