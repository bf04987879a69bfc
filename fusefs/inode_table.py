"""Inodes by number, and the numbers to come.

A number must stay the same from mount to mount (PostgreSQL and git compare st_ino), and two hosts may give them at the
same time, so there is no counter: a new inode's number is drawn from 63 bits; that of an object without a remembered
one follows from its key.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from random import Random
from typing import Final

from fusefs.errors import NoSuchInode
from fusefs.inodes import ROOT_NUMBER, Directory, Inode

NUMBER_BITS: Final = 63
"""Of an inode number: some programs keep it in a signed integer."""


def number_of_key(key: str) -> int:
    """Return the number of an inode of which nothing is known but its key; that of a directory ends with a slash."""
    digest = blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % ((1 << NUMBER_BITS) - 2) + 2


class InodeTable:
    """The inodes that the tree, the kernel, a handle or a publication needs."""

    def __init__(self, root: Directory, rng: Random | None = None) -> None:
        self.root = root
        self._inodes: dict[int, Inode] = {root.number: root}
        self._rng = Random() if rng is None else rng
        self._kept = 0
        root.lookups = 1  # the kernel never forgets the root, and never looks it up

    def __getitem__(self, number: int) -> Inode:
        """Return the inode; raises `NoSuchInode`, which only a confused kernel should ever see."""
        try:
            return self._inodes[number]
        except KeyError:
            raise NoSuchInode(f"inode {number} is not known") from None

    def __len__(self) -> int:
        return len(self._inodes)

    def all(self) -> list[Inode]:
        """Return them, as they are now."""
        return list(self._inodes.values())

    def directories(self) -> list[Directory]:
        """Return the directories among them."""
        return [inode for inode in self._inodes.values() if isinstance(inode, Directory)]

    def new_number(self) -> int:
        """Return a number that no inode has."""
        while True:
            number = self._rng.randrange(ROOT_NUMBER + 1, 1 << NUMBER_BITS)
            if number not in self._inodes:
                return number

    def add(self, inode: Inode) -> None:
        """Make the inode known by its number, or by another one if that is taken."""
        if inode.number in self._inodes:
            inode.number = self.new_number()
        self._inodes[inode.number] = inode

    def renumber(self, inode: Inode, number: int) -> None:
        """Give an inode that the kernel does not know yet another number, unless that is taken."""
        if number not in self._inodes and not inode.lookups:
            self.drop(inode)
            inode.number = number
            self.add(inode)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Let what nobody refers to stay an inode for the block, which needs many at once and finds them one by one."""
        self._kept += 1
        try:
            yield
        finally:
            self._kept -= 1

    @property
    def are_kept(self) -> bool:
        """Whether what nobody refers to has to stay an inode for now."""
        return self._kept > 0

    def forget(self, number: int, lookups: int) -> Inode | None:
        """Take references of the kernel back; returns the inode when the last one went, None otherwise."""
        inode = self._inodes.get(number)
        if inode is None:
            return None
        inode.lookups = max(inode.lookups - lookups, 0)
        return inode if inode.lookups == 0 else None

    def drop(self, inode: Inode) -> None:
        """Forget the inode for good."""
        if self._inodes.get(inode.number) is inode:
            del self._inodes[inode.number]
