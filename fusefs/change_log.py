"""What the rest of a mount tells the log, and asks of it; and the mount that has none.

The rule that everybody keeps who changes the bucket: *what is published is in the log first*. So after a crash the
tree that the log tells of is at least as new as every object, and to go on from there changes nothing twice.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from backends.base import NO_METADATA, Metadata
from fusefs.inodes import Directory, File, Inode
from fusefs.versions import Version

LOG_KEY: Final = "fusefs-log"
"""The name in an object's metadata that tells which inode of a log it is, and up to which batch it is complete."""


def without_mark(metadata: Metadata) -> dict[str, str]:
    """Return the metadata but for what it says of a log."""
    return {name: value for name, value in metadata.items() if name != LOG_KEY}


@dataclass(slots=True)
class Publication:
    """One attempt to make the bucket equal to an inode. A stream has the attributes of its beginning."""

    has_attributes: bool = True


class ChangeLog(Protocol):
    """The log of one mount, as those see it who change the tree and the bucket."""

    @property
    def is_kept(self) -> bool:
        """Whether `commit` makes anything durable."""

    def changed(self, inode: Inode) -> None:
        """Note that a commit has to tell of the inode."""

    def moved(self, directory: Directory) -> None:
        """Note that a commit has to tell of all below a directory that was noted to have changed: its name did."""

    def touched(self, inode: Inode) -> None:
        """Note that only times changed: the next batch tells of it, and nobody waits for that."""

    def left_over(self, version: Version, *, waits: bool) -> None:
        """Note an object that is to be deleted; `waits` if that may not happen before the log knows."""

    def gone(self, version: Version) -> None:
        """Note that such an object is there no more."""

    def in_use(self, version: Version) -> None:
        """Note that an object is somebody's, or one that looks the same, that was another's or to be deleted."""

    def publishing(self, inode: Inode) -> AbstractContextManager[Publication]:
        """Say that the block publishes the inode as it is now, but for what it says itself, or raises."""

    def settled(self, inode: Inode) -> None:
        """Note that the bucket has all of the inode."""

    def is_behind(self, inode: Inode) -> bool:
        """Return whether the inode has changed since the last batch."""

    def has(self, inode: Inode) -> bool:
        """Return whether the inode as it is now, but for times alone, is durable for certain."""

    def tells_of(self, inode: Inode) -> bool:
        """Return whether a reader of the log may find the inode in it, now or soon."""

    def must_keep(self, file: File) -> bool:
        """Return whether the log refers to parts of an upload of the file."""

    def mark(self, inode: Inode) -> Metadata:
        """Return what the metadata of an object that is made of the inode now has to say of the log."""

    async def wait_until_grown(self) -> list[Inode]:
        """Return when the log is longer than it should be, and which inodes it is kept for, the oldest first.

        They are to be published, or told again.
        """

    def tell_again(self, inode: Inode) -> None:
        """Let the next commit tell of the inode, and of all its names, as of one that the log has nothing of yet."""

    async def give_way(self) -> bool:
        """Take no more of the local disk than is needed; return whether that is less. Raises why it cannot be said."""

    async def commit(self) -> None:
        """Return when all that changed until now is durable. Raises why it is not."""

    def has_caused(self, error: Exception) -> bool:
        """Return whether it is a commit that has failed with an error, and every other one does for now."""

    def check(self) -> None:
        """Raise `LeaseLost` if nothing can be committed any more."""

    async def wait_for_room(self) -> None:
        """Return when a writer may go on: the log has nearly caught up. Raises `LeaseLost`."""


class NoLog:
    """Of shared and read-only mounts: nothing is noted, and nothing waits."""

    is_kept = False

    def changed(self, inode: Inode) -> None:
        pass

    def moved(self, directory: Directory) -> None:
        pass

    def touched(self, inode: Inode) -> None:
        pass

    def left_over(self, version: Version, *, waits: bool) -> None:
        pass

    def gone(self, version: Version) -> None:
        pass

    def in_use(self, version: Version) -> None:
        pass

    def publishing(self, inode: Inode) -> AbstractContextManager[Publication]:
        return nullcontext(Publication())

    def settled(self, inode: Inode) -> None:
        pass

    def is_behind(self, inode: Inode) -> bool:
        return False

    def has(self, inode: Inode) -> bool:
        return False

    def tells_of(self, inode: Inode) -> bool:
        return False

    def must_keep(self, file: File) -> bool:
        return False

    def mark(self, inode: Inode) -> Metadata:
        return NO_METADATA

    async def wait_until_grown(self) -> list[Inode]:
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    def tell_again(self, inode: Inode) -> None:
        pass

    async def give_way(self) -> bool:
        return False

    async def commit(self) -> None:
        pass

    def has_caused(self, error: Exception) -> bool:
        return False

    def check(self) -> None:
        pass

    async def wait_for_room(self) -> None:
        pass


async def commit_all_of(log: ChangeLog, inode: Inode) -> None:
    """Return when the log has the inode as it is now: it may change again while a commit is on its way."""
    await log.commit()
    while log.is_behind(inode):
        await log.commit()
