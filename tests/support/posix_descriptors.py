"""What POSIX programs do through descriptors, within limits and beyond, for `tests.support.posix_calls`.

The table is `DESCRIPTORS`.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from tests.support.posix_calls import EXCHANGE, NOREPLACE, Calls, Scenario, rename_with


def descriptors_of_what_is_gone(do: Calls) -> None:
    """Through /proc, a path that leads to a file and a directory without names."""
    descriptor = do.open("file", os.O_RDWR | os.O_CREAT)
    do(os.write, descriptor, b"content")
    do(os.unlink, "file")
    path = f"/proc/self/fd/{descriptor}"
    do(partial(os.link, path, "again", follow_symlinks=True))
    second = do.open(path, os.O_RDWR)
    do(os.pwrite, second, b"C", 0)
    do(os.pread, descriptor, 100, 0)
    do(os.chmod, path, 0o600)
    do(os.truncate, path, 3)
    do.close(do.open(path, os.O_WRONLY | os.O_TRUNC))
    do.fstat(descriptor)
    do.close(descriptor)
    do(os.pwrite, second, b"after the first one was closed", 0)
    do(os.pread, second, 100, 0)
    do.fstat(second)
    do(os.mkdir, "d")
    directory = do.open("d", os.O_RDONLY)
    do(os.rmdir, "d")
    for call in (os.stat, os.mkdir, os.unlink):
        do(call, f"/proc/self/fd/{directory}/x")
    do(os.listdir, f"/proc/self/fd/{directory}")


@contextmanager
def _file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def limits(do: Calls) -> None:
    do.write_file("file", b"x" * 100)
    descriptor = do.open("file", os.O_RDWR)
    with _file_size_limit(1_000):  # Python ignores SIGXFSZ
        do(os.pwrite, descriptor, b"y" * 100, 950)
        do(os.pwrite, descriptor, b"y", 1_000)
        do(os.ftruncate, descriptor, 1_001)
        do(os.truncate, "file", 2_000)
        do(os.ftruncate, descriptor, 1_000)
    do.fstat(descriptor)
    do(os.lseek, descriptor, -1, os.SEEK_SET)
    do(os.lseek, descriptor, 10, 99)
    do(os.pread, descriptor, 10, -1)
    do(os.pwrite, descriptor, b"x", -1)
    do(os.pread, descriptor, 10, 5_000)
    do(os.pwrite, descriptor, b"", 9_000)
    long, longer = "./" * 2_047 + "d", "./" * 2_048 + "d"
    for path in (long, longer, "missing/" + "n" * 256):
        do(partial(os.mkdir, path))
        do(partial(os.path.exists, path))
        do(partial(os.rename, path, "x"))


def ways_to_open(do: Calls) -> None:
    do.write_file("file")
    appending = do.open("file", os.O_RDWR | os.O_APPEND)
    do(os.pwrite, appending, b"at the end", 0)
    do(os.lseek, appending, 0, os.SEEK_CUR)
    for flags in (os.O_SYNC, os.O_DSYNC | os.O_TRUNC):
        do(os.write, do.open("file", os.O_RDWR | flags), b"synced")
    path_only = do.open("file", os.O_PATH)
    do(os.read, path_only, 1)
    do(os.fchmod, path_only, 0o600)
    do.fstat(path_only)
    directory = do.open(".", os.O_RDONLY)
    do(os.read, directory, 10)
    do(os.write, directory, b"x")
    do(os.ftruncate, directory, 0)
    do(os.fsync, directory)
    do(os.fdatasync, directory)
    do.close(do.open("file", os.O_RDWR | os.O_DIRECTORY))
    do.close(do.open("missing", os.O_RDWR | os.O_DIRECTORY | os.O_CREAT))
    do(os.chdir, "file")
    do(os.chdir, "missing")
    do(lambda: os.statvfs(".").f_namemax)


def chains_of_links(do: Calls) -> None:
    """40 symbolic links are followed, and dangling ones where POSIX says so."""
    do.write_file("link 0")
    for number in range(1, 43):
        do(os.symlink, f"link {number - 1}", f"link {number}")
    for number in (40, 41):
        path = f"link {number}"
        do.close(do.open(path, os.O_RDWR))
        do.close(do.open(path, os.O_RDWR | os.O_NOFOLLOW))
        do(os.chmod, path, 0o600)
        do(os.truncate, path, number)
    do(os.symlink, "nothing", "dangling")
    do(os.mkdir, "dangling")
    do(os.mknod, "dangling", stat.S_IFREG | 0o600)
    do(os.link, "link 0", "dangling")
    do(os.rename, "link 0", "dangling/")
    do(os.rmdir, "dangling")
    do(os.chmod, "dangling", 0o600)
    do(os.truncate, "dangling", 0)
    for follow in (True, False):
        do(partial(os.link, "dangling", "copy", follow_symlinks=follow))
    do(os.symlink, ".", "here")
    do(os.truncate, "here/here/link 0", 1)
    do(os.unlink, "here/")
    do(os.rmdir, "here")
    do(os.rename, "here/", "there")
    do(os.rename, "here", "there")


def renames_of_linked_files(do: Calls) -> None:
    """Between names of one inode nothing happens, and with flags what these say."""
    do.write_file("a")
    do(os.mkdir, "d")
    for name in ("b", "d/c"):
        do(os.link, "a", name)
    do(rename_with, "a", "b", NOREPLACE)
    do(rename_with, "a", "b", EXCHANGE)
    do(rename_with, "a", "d/c", EXCHANGE)
    do(rename_with, "a", "d", EXCHANGE)
    do(rename_with, "a/c", "d", EXCHANGE)
    do(os.rename, "d", "b")
    do.write_file("other", b"others")
    do(rename_with, "b", "other", EXCHANGE)
    do(os.rename, "other", "b")
    do(os.unlink, "b")
    do(os.symlink, "target", "link")
    do(partial(os.link, "link", "second", follow_symlinks=False))
    do(rename_with, "link", "second", EXCHANGE)
    do(os.rename, "link", "second")
    do(os.unlink, "second")


DESCRIPTORS: Final[dict[str, Scenario]] = {
    scenario.__name__: scenario
    for scenario in (
        descriptors_of_what_is_gone,
        limits,
        ways_to_open,
        chains_of_links,
        renames_of_linked_files,
    )
}
