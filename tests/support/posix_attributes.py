"""What POSIX programs do about permissions, owners and times, for `tests.support.posix_calls`.

Root and somebody make the same calls, and what only root may do is refused to somebody. The table is `ATTRIBUTES`.
"""

from __future__ import annotations

import os
from typing import Final

from tests.support.posix_calls import (
    EXCHANGE,
    UTIME_NOW,
    UTIME_OMIT,
    Calls,
    Scenario,
    as_root,
    rename_with,
    set_times,
)

OTHER: Final = 4321
"""A user and a group who make no calls."""

GROUP: Final = 2345
"""A group of `SOMEBODY`."""


def modes(do: Calls) -> None:
    do.write_file("file")
    for mode in (0o600, 0o7777, 0o1644, 0o000, 0o4755, 0o2755):
        do(os.chmod, "file", mode)
    do(os.mkdir, "d", 0o7777)
    for mode in (0o1777, 0o2755, 0o700):
        do(os.chmod, "d", mode)
    do(os.chmod, "missing", 0o600)
    descriptor = do.open("d", os.O_RDONLY)
    do(os.fchmod, descriptor, 0o711)
    do(os.umask, 0o077)
    do.write_file("masked", mode=0o666)
    do(os.mkdir, "masked d", 0o777)
    do(os.mkfifo, "masked fifo", 0o666)


def owners(do: Calls) -> None:
    do.write_file("file", mode=0o600)
    for mode in (0o6755, 0o6705, 0o2745):
        for uid, gid in ((-1, GROUP), (-1, -1), (OTHER, -1), (-1, OTHER), (os.geteuid(), os.getegid())):
            do(os.chmod, "file", mode)
            do(os.chown, "file", uid, gid)
    do(os.mkdir, "d")
    do(os.chmod, "d", 0o6755)
    do(os.chown, "d", -1, GROUP)
    do(os.chmod, "d", 0o2755)
    do(os.symlink, "file", "link")
    do(lambda: os.chown("link", -1, GROUP, follow_symlinks=False))
    do(os.chown, "missing", -1, -1)


def files_of_others(do: Calls) -> None:
    """What somebody may do with what is not theirs."""
    with as_root():
        do.write_file("file", mode=0o666)
        do(os.chmod, "file", 0o6777)
        do.write_file("secret", mode=0o600)
        do(os.mkdir, "d")
        do.write_file("d/file")
        do(os.chown, "file", OTHER, OTHER)
    do(os.chmod, "file", 0o777)
    do(os.chown, "file", os.geteuid(), -1)
    do(os.chown, "file", -1, GROUP)
    descriptor = do.open("file", os.O_RDWR)
    do(os.write, descriptor, b"w")
    do.close(descriptor)
    with as_root():
        do(os.chmod, "file", 0o6777)
    do(os.truncate, "file", 1)
    with as_root():
        do(os.chmod, "file", 0o6777)
    do.close(do.open("file", os.O_WRONLY | os.O_TRUNC))
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDONLY | os.O_TRUNC):
        do.close(do.open("secret", flags))
    do(os.truncate, "secret", 1)  # to the size that it has, Linux would leave the times, and POSIX not
    do(set_times, "secret", (0, UTIME_NOW), (0, UTIME_NOW))
    do(set_times, "secret", (0, UTIME_OMIT), (0, UTIME_OMIT))
    do(set_times, "file", (0, UTIME_NOW), (0, UTIME_NOW))
    do(set_times, "file", (0, UTIME_OMIT), (0, UTIME_NOW))
    do(set_times, "file", (1, 0), (1, 0))
    do(os.unlink, "d/file")
    do(os.rename, "d/file", "mine")
    do(os.rename, "file", "d/file")
    do(os.rename, "d", "e")
    do(os.rmdir, "e")
    do(os.unlink, "secret")


def directories_of_others(do: Calls) -> None:
    """Search, read and write permission of directories, and the sticky bit."""
    with as_root():
        for name, mode in (("x", 0o711), ("r", 0o744), ("w", 0o722), ("wx", 0o733), ("sticky", 0o1777)):
            do(os.mkdir, name)
            do.write_file(f"{name}/file")
            do(os.mkdir, f"{name}/d")
            do(os.chmod, name, mode)
    for name in ("x", "r", "w", "wx", "sticky"):
        do(os.listdir, name)
        do(os.stat, f"{name}/missing")
        do(os.access, f"{name}/file", os.R_OK)
        do(os.access, f"{name}/file", os.W_OK)
        do.close(do.open(f"{name}/new", os.O_WRONLY | os.O_CREAT))
        do(os.mkdir, f"{name}/mine")
        do(os.symlink, "t", f"{name}/link")
        do(os.rename, f"{name}/new", f"{name}/renamed")
        do(os.rename, f"{name}/renamed", f"{name}/file")
        do(os.rename, f"{name}/file", f"{name}/theirs")
        do(rename_with, f"{name}/link", f"{name}/d", EXCHANGE)
        do(os.unlink, f"{name}/link")
        do(os.rmdir, f"{name}/d")
        do(os.unlink, f"{name}/theirs")


def groups(do: Calls) -> None:
    """The group of what is made, with and without the set-group-ID bit above it, and its permissions."""
    with as_root():
        do(os.mkdir, "shared")
        do(os.chown, "shared", OTHER, GROUP)
        do(os.chmod, "shared", 0o2770)
        do(os.mkdir, "foreign")
        do(os.chown, "foreign", -1, OTHER)
        do(os.chmod, "foreign", 0o2777)
    for name in ("shared", "foreign"):
        do.write_file(f"{name}/file")
        do.write_file(f"{name}/set", mode=0o2755)
        do(os.mkdir, f"{name}/d", 0o700)
        do(os.symlink, "t", f"{name}/link")
        do(os.mkfifo, f"{name}/fifo")
        do(os.chmod, f"{name}/file", 0o2755)
        do(os.chmod, f"{name}/d", 0o2755)
        do(os.mkdir, f"{name}/d/below")
        do(os.rename, f"{name}/file", "file")


def _times_of(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_atime_ns, found.st_mtime_ns


def times(do: Calls) -> None:
    do.write_file("file")
    do(os.mkdir, "d")
    do(os.symlink, "file", "link")
    for path in ("file", "link"):
        do(set_times, path, (1_000_000_000, 123_456_789), (1_600_000_000, 987_654_321))
        do(_times_of, path)
        do(set_times, path, (0, UTIME_OMIT), (2, 3))
        do(_times_of, path)
        do(set_times, path, (4, 5), (0, UTIME_OMIT))
        do(_times_of, path)
        do(set_times, path, (0, UTIME_OMIT), (0, UTIME_OMIT))
        do(set_times, path, (0, UTIME_NOW), (0, UTIME_OMIT))
        do(set_times, path, (0, UTIME_NOW), (0, UTIME_NOW))
        do(set_times, path, (0, 0), (5_000_000_000, 999_999_999))
        do(_times_of, path)
        do(set_times, path, (0, 0), (-1, 500_000_000))
        do(_times_of, path)
        do(set_times, path, (0, 1_000_000_000), (0, 0))
    do.aside(os.truncate, "file", 7)  # no change of size: file systems differ, and the next mount must not
    do(set_times, "d", (1, 2), (3, 4))
    do(lambda: os.stat("d").st_mtime_ns)
    do(set_times, "missing", (0, 0), (0, 0))
    descriptor = do.open("file", os.O_RDWR)
    do(os.write, descriptor, b"written before its times are set")
    do(os.utime, descriptor, ns=(7, 8))
    do(lambda: os.stat("file").st_mtime_ns)
    do.close(descriptor)
    do(lambda: os.stat("file").st_mtime_ns)


ATTRIBUTES: Final[dict[str, Scenario]] = {
    scenario.__name__: scenario
    for scenario in (
        modes,
        owners,
        times,
        files_of_others,
        directories_of_others,
        groups,
    )
}
