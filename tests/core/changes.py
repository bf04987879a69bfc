"""Every call that changes something, for the tests of mounts that may not; and the calls that change nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeAlias

from fusefs.attribute_changes import AttributeChanges
from tests.core.tree import CALLER, Tree

Change: TypeAlias = Callable[[Tree, int, int], Coroutine[Any, Any, object]]
"""A call in a tree that has a file `f` and an empty directory `d`; given the number of `f`, and a handle on it."""

CHANGES: Final[dict[str, Change]] = {
    "create": lambda tree, number, handle: tree.filesystem.create(1, b"n", 0o644, os.O_RDWR, CALLER),
    "mkdir": lambda tree, number, handle: tree.filesystem.mkdir(1, b"n", 0o755, CALLER),
    "symlink": lambda tree, number, handle: tree.filesystem.symlink(1, b"n", b"x", CALLER),
    "mknod": lambda tree, number, handle: tree.filesystem.mknod(1, b"n", stat.S_IFIFO, 0, CALLER),
    "link": lambda tree, number, handle: tree.filesystem.link(number, 1, b"n"),
    "unlink": lambda tree, number, handle: tree.filesystem.unlink(1, b"f"),
    "rmdir": lambda tree, number, handle: tree.filesystem.rmdir(1, b"d"),
    "rename": lambda tree, number, handle: tree.filesystem.rename(1, b"f", 1, b"n", 0),
    "open to write": lambda tree, number, handle: tree.filesystem.open(number, os.O_WRONLY, CALLER),
    "open to read and write": lambda tree, number, handle: tree.filesystem.open(number, os.O_RDWR, CALLER),
    "open and empty": lambda tree, number, handle: tree.filesystem.open(
        number, os.O_RDONLY | os.O_TRUNC, CALLER
    ),
    "write": lambda tree, number, handle: tree.filesystem.write(handle, 0, b"x"),
    "setattr mode": lambda tree, number, handle: tree.filesystem.setattr(
        number, AttributeChanges(mode=0o600)
    ),
    "setattr owner": lambda tree, number, handle: tree.filesystem.setattr(number, AttributeChanges(uid=1)),
    "setattr size": lambda tree, number, handle: tree.filesystem.setattr(number, AttributeChanges(size=0)),
    "setattr times": lambda tree, number, handle: tree.filesystem.setattr(
        number, AttributeChanges(mtime_ns=0)
    ),
    "set": lambda tree, number, handle: tree.xattrs.set(number, b"user.a", b""),
    "remove": lambda tree, number, handle: tree.xattrs.remove(number, b"user.a"),
}
"""By the method that is called, and what is done by it."""

UNCHANGING: Final = {
    *("lookup", "readlink", "getattr", "read", "flush", "release", "release_all", "fsync"),
    *("opendir", "readdir", "releasedir", "fsyncdir"),
    *("get", "names"),
}
"""The other methods."""
