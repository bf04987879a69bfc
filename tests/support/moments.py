"""A tree as it is at one moment, to be compared with what a crash has left of it.

A step of the differential test makes several calls, and a crash may come between two of them. So what is in the mount
after it must be what there was before one step, but for the files and directories that this step has changed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Entry:
    """What a crash may not change of a file or directory; `content` is None while only the kernel may know it."""

    mode: int
    owner: tuple[int, int]
    links: int
    content: bytes | None

    def is_like(self, other: Entry | None) -> bool:
        if other is None or None not in (self.content, other.content):
            return self == other
        return replace(self, content=None) == replace(other, content=None)


Moment: TypeAlias = Mapping[str, Entry]
"""A tree at one moment, by path."""


def is_between(found: Moment, before: Moment, after: Moment) -> bool:
    """Return whether a tree is one that there was while `before` became `after`."""
    return all(
        (was := before.get(path)) != after.get(path) or _are_alike(found.get(path), was)
        for path in {*found, *before, *after}
    )


def _are_alike(one: Entry | None, other: Entry | None) -> bool:
    return one is other if one is None else one.is_like(other)


def moment(root: Path, unsure: Collection[int] = ()) -> Moment:
    """Return a tree; `unsure` are the numbers of files whose content is not to be told."""
    entries = {}
    for path in [root, *sorted(root.rglob("*"))]:
        found = path.lstat()
        kind = stat.S_IFMT(found.st_mode)
        content: bytes | None = b""
        if kind == stat.S_IFLNK:
            content = os.fsencode(os.readlink(path))
        elif found.st_ino in unsure:
            content = None
        elif kind == stat.S_IFREG:
            content = hashlib.sha256(path.read_bytes()).digest()
        links = 1 if kind == stat.S_IFDIR else found.st_nlink
        entries[str(path.relative_to(root))] = Entry(
            found.st_mode, (found.st_uid, found.st_gid), links, content
        )
    return entries
