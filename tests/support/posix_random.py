"""Calls of POSIX at random, of root, of an owner and of strangers in turn, for `tests.support.posix_calls`.

The table is `RANDOM`. What the kernel does not let a file system behind FUSE do as others do is left out: SEMANTICS.md
names it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Final

from tests.support.posix_attributes import GROUP, OTHER
from tests.support.posix_calls import (
    EXCHANGE,
    NOREPLACE,
    ROOT,
    SOMEBODY,
    UTIME_NOW,
    UTIME_OMIT,
    Calls,
    Scenario,
    User,
    acting_as,
    rename_with,
    set_times,
)

SEED: Final = 7
STEPS: Final = 300

STRANGER: Final = User(uid=OTHER, gid=OTHER, groups=(GROUP,))

_NAMES: Final = ("a", "a", "b", "b", "c", "d", "n" * 255)
_ENDS: Final = ("",) * 24 + ("/", "/.", "/..", "/" + "n" * 256)
_OPEN_TO_ALL: Final = (0o777,) * 8
_MODES: Final = (*_OPEN_TO_ALL, 0o755, 0o666, 0o600, 0, 0o1777, 0o2777, 0o2755, 0o4755, 0o6777, 0o7777)
_IDS: Final = (-1, ROOT.uid, SOMEBODY.uid, OTHER, GROUP)
_KINDS: Final = (0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR)
_TARGETS: Final = ("a", "b/c", "nothing", "a/", "", "t" * 4_096)
_TIMES: Final = ((0, UTIME_NOW), (0, UTIME_OMIT), (5_000_000_000, 1), (-1, 999_999_999))
_ACCESS: Final = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)
_FLAGS: Final = (
    os.O_CREAT,
    os.O_CREAT,
    os.O_EXCL,
    os.O_TRUNC,
    os.O_APPEND,
    os.O_DIRECTORY,
    os.O_NOFOLLOW,
    os.O_PATH,
    os.O_SYNC,
    os.O_NOATIME,
)
_MAX_DESCRIPTORS: Final = 4


class _Chance:
    """One call after the other; which they are depends on the numbers alone, and not on what there is."""

    def __init__(self, do: Calls, rng: Random) -> None:
        self._do = do
        self._rng = rng
        self._descriptors: list[int] = []

    def step(self) -> None:
        call = self._rng.choice((self._open, self._close, self._by_path, self._by_path, self._by_descriptor))
        with acting_as(self._rng.choice((ROOT, SOMEBODY, STRANGER))):
            call()

    def _path(self) -> str:
        names = [self._rng.choice(_NAMES) for _ in range(self._rng.choice((1, 1, 1, 2, 2)))]
        return "/".join(names) + self._rng.choice(_ENDS)

    def _open(self) -> None:
        if len(self._descriptors) == _MAX_DESCRIPTORS:
            self._close()
        flags = self._rng.choice(_ACCESS) | os.O_NONBLOCK  # or a fifo would be waited for
        for flag in _FLAGS:
            flags |= flag if self._rng.random() < 0.2 else 0
        self._descriptors.append(self._do.open(self._path(), flags, self._rng.choice(_MODES)))

    def _close(self) -> None:
        if self._descriptors:
            self._do.close(self._descriptors.pop(self._rng.randrange(len(self._descriptors))))

    def _by_path(self) -> None:
        rng, path, other = self._rng, self._path(), self._path()
        mode, owner = rng.choice(_MODES), (rng.choice(_IDS), rng.choice(_IDS))
        calls: tuple[Callable[[], object], ...] = (
            partial(os.mkdir, path, mode),
            partial(os.mkdir, path, mode),
            partial(os.mknod, path, rng.choice(_KINDS) | mode),
            partial(os.symlink, rng.choice(_TARGETS), path),
            partial(os.link, path, other, follow_symlinks=rng.random() < 0.5),
            partial(os.link, path, other, follow_symlinks=False),
            partial(os.rename, path, other),
            partial(os.rename, path, other),
            partial(rename_with, path, other, rng.choice((NOREPLACE, EXCHANGE, EXCHANGE | NOREPLACE))),
            partial(os.unlink, path),
            partial(os.rmdir, path),
            partial(os.chmod, path, mode),
            partial(os.chmod, path, mode),
            partial(os.chown, path, *owner, follow_symlinks=rng.random() < 0.5),
            partial(set_times, path, rng.choice(_TIMES), rng.choice(_TIMES)),
            # To the size that it has, file systems differ.
            partial(os.truncate, path, rng.randrange(1, 1_000_000)),
            partial(os.readlink, path),
            partial(os.access, path, rng.randrange(8), effective_ids=True),
            partial(_listed, path),
        )
        self._do(rng.choice(calls))

    def _by_descriptor(self) -> None:
        rng = self._rng
        descriptor = rng.choice(self._descriptors) if self._descriptors else -1
        calls: tuple[Callable[[], object], ...] = (
            partial(_write, descriptor, b"x" * rng.randrange(1, 10_000), rng.randrange(10_000)),
            partial(os.ftruncate, descriptor, rng.randrange(1, 1_000_000)),
            partial(os.fchmod, descriptor, rng.choice(_MODES)),
            partial(os.fchown, descriptor, rng.choice(_IDS), rng.choice(_IDS)),
            partial(os.link, f"/proc/self/fd/{descriptor}", self._path(), follow_symlinks=True),
            partial(os.mkdir, rng.choice(_NAMES), rng.choice(_MODES), dir_fd=descriptor),
            partial(os.unlink, rng.choice(_NAMES), dir_fd=descriptor),
        )
        self._do(rng.choice(calls))


def _listed(path: str) -> list[str]:
    return sorted(os.listdir(path))


def _write(descriptor: int, data: bytes, offset: int) -> int:
    """The kernel tells no file system behind FUSE of what goes through a fifo."""
    is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
    return os.pwrite(descriptor, data, offset) if is_file else 0


def random_calls(do: Calls) -> None:
    chance = _Chance(do, Random(SEED + do.user.uid))
    for name in ("a", "b"):
        do(os.mkdir, name)
        do(os.chmod, name, 0o1777)
    do(os.chmod, ".", 0o777)
    for _ in range(STEPS):
        chance.step()


RANDOM: Final[dict[str, Scenario]] = {random_calls.__name__: random_calls}
