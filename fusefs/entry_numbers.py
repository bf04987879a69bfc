"""Which inode numbers entries have, those included that nobody has looked up yet."""

from __future__ import annotations

from collections.abc import Callable

from fusefs import keys
from fusefs.inode_table import number_of_key
from fusefs.inodes import Child, Directory, Inode
from fusefs.listed import ListedDirectory, ListedEntry


def numbers_in(directory: Directory) -> Callable[[bytes], int]:
    """Return what tells the numbers of the entries of a directory; 0 for those that are gone."""
    prefix = directory.bucket_prefix

    def number_of(name: bytes) -> int:
        child = directory.children.get(name)
        return 0 if child is None else _number_of(prefix, name, child)

    return number_of


def _number_of(prefix: str, name: bytes, child: Child) -> int:
    """Return the number that an entry has or, if nobody has looked at it, would get."""
    if isinstance(child, Inode):
        return child.subject.number
    return child.number or number_of_listed(prefix, name, child)


def number_of_listed(prefix: str, name: bytes, child: ListedEntry) -> int:
    """Return the number that an entry gets of which no number is remembered; `prefix` is that of its directory."""
    slash = "/" if isinstance(child, ListedDirectory) else ""
    return number_of_key(f"{prefix}{keys.segment_of(name)}{slash}")
