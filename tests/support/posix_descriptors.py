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


def descriptors_of_paths_alone(do: Calls) -> None:
    """O_PATH: what names a file, a link or a directory, and what can be done with no more than that."""
    do.write_file("file")
    do(os.mkdir, "d")
    do.write_file("d/below")
    do(os.symlink, "file", "link")
    file, directory = do.open("file", os.O_PATH), do.open("d", os.O_PATH | os.O_DIRECTORY)
    link = do.open("link", os.O_PATH | os.O_NOFOLLOW)

    def link_path(path: int, target: str) -> None:
        # With a directory's descriptor it is linkat(2), which follows the link in /proc; link(2) does not.
        os.link(f"/proc/self/fd/{path}", target, src_dir_fd=directory, follow_symlinks=True)

    do(lambda: os.readlink("", dir_fd=link))
    do(lambda: os.stat("below", dir_fd=directory).st_size)
    do(partial(os.open, "below", os.O_RDONLY | os.O_CREAT | os.O_EXCL, dir_fd=directory))
    for path, target in ((file, "second"), (link, "second link"), (directory, "second d")):
        do(link_path, path, target)
    for call in (partial(os.ftruncate, file, 1), partial(os.fsync, file), partial(os.listdir, directory)):
        do(call)
    do(os.utime, f"/proc/self/fd/{file}", (1, 2))
    do(os.unlink, "file")
    writer = do.open(f"/proc/self/fd/{file}", os.O_RDWR)
    do(os.write, writer, b"by its other name")
    do(os.unlink, "second")
    do.fstat(file)
    do(link_path, file, "again")


def copies_inside_the_system(do: Calls) -> None:
    """copy_file_range(2) and sendfile(2), within a file and between two."""
    do.write_file("a", b"0123456789" * 1_000)
    do.write_file("b", b"b" * 100)
    source, target = do.open("a", os.O_RDWR), do.open("b", os.O_RDWR)
    read_only, appending = do.open("b", os.O_RDONLY), do.open("b", os.O_WRONLY | os.O_APPEND)
    for count, start, end in ((100, 0, 50), (10_000, 9_990, 0), (100, 20_000, 0), (1 << 31, 0, 300_000)):
        do(os.copy_file_range, source, target, count, start, end)
    for end in (50, 5_000):
        do(os.copy_file_range, source, source, 100, 0, end)
    for other in (read_only, appending, do.open(".", os.O_RDONLY)):
        do(os.copy_file_range, source, other, 10, 0, 0)
    do(os.copy_file_range, appending, target, 10, 0, 0)
    do(os.sendfile, target, source, 0, 300)
    do.fstat(target)
    do(os.pread, target, 64, 0)
    for place in (0, 299_999, 400_000):
        do(os.lseek, target, place, os.SEEK_DATA)


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
        descriptors_of_paths_alone,
        copies_inside_the_system,
        chains_of_links,
        renames_of_linked_files,
    )
}
