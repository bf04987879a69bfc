"""What rename(2) refuses. Pure: between these checks and the move there is no await."""

from __future__ import annotations

from dataclasses import dataclass

from fusefs import keys
from fusefs.errors import (
    DirectoryNotEmpty,
    EntryExists,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NoSuchEntry,
    NotADirectory,
)
from fusefs.inodes import Directory, Inode, check_not_stale


@dataclass(frozen=True, slots=True, kw_only=True)
class Rename:
    """An entry under its name, and where it is to go. `other` is what has that name now; None if nothing has."""

    directory: Directory
    name: bytes
    inode: Inode
    new_directory: Directory
    new_name: bytes
    other: Inode | None
    #: Whether the two are to be swapped.
    exchange: bool = False

    @property
    def swapped(self) -> Inode | None:
        """What goes the other way."""
        return self.other if self.exchange else None


def check_rename(rename: Rename, *, max_key_length: int) -> None:
    """Raise as rename(2), and `NameTooLong` where something below would have a key that is too long.

    And `StaleFile` for a file that is being kept beside somebody else's: it will have no name.
    """
    inode, other = rename.inode, rename.other
    if not rename.new_directory.linked:
        raise NoSuchEntry("the directory was removed")
    check_not_stale(inode)
    _check_not_below(inode, rename.new_directory)
    _check_keys_below(inode, rename.new_directory, rename.new_name, max_key_length)
    if other is None:
        return
    if rename.exchange:
        check_not_stale(other)
        _check_stays_veiled(rename.directory, rename.name, by=other)
        _check_stays_veiled(rename.new_directory, rename.new_name, by=inode)
        _check_not_below(other, rename.directory)
        _check_keys_below(other, rename.directory, rename.name, max_key_length)
        return
    if isinstance(inode, Directory) and not isinstance(other, Directory):
        raise NotADirectory(f"{other.path_key!r} is no directory")
    if isinstance(other, Directory):
        if not isinstance(inode, Directory):
            raise IsADirectory(f"{other.path_key!r} is a directory")
        check_empty(other)


def check_empty(directory: Directory) -> None:
    """Raise `DirectoryNotEmpty` if there is anything that would go with a directory."""
    if directory.children:
        raise DirectoryNotEmpty(f"{directory.path_key!r} is not empty")
    if directory.hides_keys:
        raise DirectoryNotEmpty(f"there are objects in {directory.path_key!r} that cannot be shown")
    if directory.hides_content:
        raise DirectoryNotEmpty(f"the object of {directory.path_key!r} has bytes of somebody else")


def _check_stays_veiled(directory: Directory, name: bytes, *, by: Inode) -> None:
    """Raise `EntryExists` if something else than a directory would have the key of an object beside a directory."""
    if not isinstance(by, Directory) and directory.has_file_beside(name):
        raise EntryExists(f"the key of {name!r} has an object, which is beside the directory")


def _check_not_below(inode: Inode, directory: Directory) -> None:
    if any(above is inode for above in (directory, *directory.above())):
        raise InvalidArgument("a directory cannot be moved below itself")


def _check_keys_below(inode: Inode, new_directory: Directory, new_name: bytes, max_key_length: int) -> None:
    """Raise `NameTooLong` if something below a directory would have too long a key in its new place."""
    room = max_key_length - len(new_directory.prefix.encode()) - _key_length(new_name)
    if _most_below(inode) >= room and _longest_path_below(inode) >= room:
        raise NameTooLong(f"{new_name!r} would have a path below it that is too long for a key")


def _key_length(name: bytes) -> int:
    """Return the bytes that a name has in a key."""
    return len(keys.segment_of(name).encode())


def _most_below(inode: Inode) -> int:
    """Return what `_longest_path_below` does not exceed, without a look at what each name is in a key."""
    if not isinstance(inode, Directory):
        return 0
    most = 0
    lengths: dict[Directory | None, int] = {}
    for known in inode.with_directories_below():
        length = 0 if known is inode else lengths[known.parent] + 1 + _key_length(known.name)
        lengths[known] = length
        most = max(most, length + 1 + keys.longest_segment(max(map(len, known.children), default=0)))
    return most


def _longest_path_below(inode: Inode) -> int:
    """Return the bytes, slashes included, of the longest path that begins below a directory; 0 for anything else."""
    longest = 0
    lengths: dict[Inode, int] = {inode: 0}
    for known in inode.with_directories_below() if isinstance(inode, Directory) else ():
        length = lengths.pop(known)
        for name, child in known.children.items():
            below = length + 1 + _key_length(name)
            longest = max(longest, below)
            if isinstance(child, Directory):
                lengths[child] = below
    return longest
