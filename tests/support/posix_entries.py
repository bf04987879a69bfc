"""What POSIX programs do with names, call by call, for `tests.support.posix_calls`: the table is `ENTRIES`."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import socket
import stat
import struct
from typing import Final

from tests.support.posix_calls import EXCHANGE, NOREPLACE, Calls, Scenario, rename_with

_F_OFD_SETLK: Final = 37


def directories(do: Calls) -> None:
    do(os.mkdir, "d", 0o755)
    do(os.mkdir, "d", 0o755)
    do(os.mkdir, "d/e", 0o700)
    do(os.mkdir, "d/e/f/", 0o1777)
    do(os.mkdir, "missing/d")
    do.write_file("file")
    do(os.mkdir, "file/d")
    do(os.mkdir, "file")
    do(os.mkdir, ".")
    do(os.mkdir, "d/..")
    do(os.rmdir, "d")
    do(os.rmdir, "file")
    do(os.rmdir, "missing")
    do(os.rmdir, "d/e/f/.")
    do(os.rmdir, "d/e/f/..")
    do(os.unlink, "d/e/f")
    do(os.unlink, "d/e/f/")
    do(os.unlink, ".")
    do(os.rmdir, "d/e/f/")
    do(os.rmdir, "d/e")
    do(os.rmdir, "d")
    do(os.rmdir, "d")


def removed_directories(do: Calls) -> None:
    """What is left of a directory for those who are in it."""
    do(os.mkdir, "d")
    descriptor = do.open("d", os.O_RDONLY | os.O_DIRECTORY)
    do(os.rmdir, "d")
    do.fstat(descriptor)
    do(os.listdir, descriptor)
    do(lambda: os.mkdir("e", dir_fd=descriptor))
    do(lambda: os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    do(lambda: os.symlink("f", "g", dir_fd=descriptor))
    do(lambda: os.stat("f", dir_fd=descriptor))
    do.write_file("file")
    do(lambda: os.rename("file", "file", dst_dir_fd=descriptor))
    do(os.fchmod, descriptor, 0o700)
    do.fstat(descriptor)
    do(os.fsync, descriptor)


def creation(do: Calls) -> None:
    do.close(do.open("a", os.O_RDONLY | os.O_CREAT, 0o640))
    do.close(do.open("a", os.O_RDWR | os.O_CREAT | os.O_EXCL))
    do.close(do.open("b", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o4755))
    do.close(do.open("c", os.O_WRONLY | os.O_CREAT, 0o000))
    do.close(do.open("missing", os.O_RDWR))
    do.close(do.open("missing/c", os.O_RDWR | os.O_CREAT))
    do.close(do.open("a/c", os.O_RDWR | os.O_CREAT))
    do.close(do.open("a/", os.O_RDONLY))
    do.close(do.open("new/", os.O_RDWR | os.O_CREAT))
    do(os.mkdir, "d")
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_RDONLY | os.O_CREAT):
        do.close(do.open("d", flags))
    do.close(do.open("d", os.O_RDONLY | os.O_DIRECTORY))
    do.close(do.open("a", os.O_RDONLY | os.O_DIRECTORY))
    do.close(do.open("", os.O_RDONLY))
    do(os.symlink, "target", "link")
    do.close(do.open("link", os.O_RDWR))
    do.close(do.open("link", os.O_RDWR | os.O_CREAT | os.O_EXCL))
    do.close(do.open("link", os.O_RDWR | os.O_CREAT))
    do.close(do.open("link", os.O_RDWR | os.O_NOFOLLOW))
    descriptor = do.open("object", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o444)
    do(os.write, descriptor, b"content")
    do.close(descriptor)


def content(do: Calls) -> None:
    """Times and sizes as write, truncate and O_TRUNC leave them."""
    do.write_file("file")
    descriptor = do.open("file", os.O_RDWR | os.O_APPEND)
    do(os.write, descriptor, b"more")
    do(os.ftruncate, descriptor, 3)
    do(os.ftruncate, descriptor, 3)
    do(os.ftruncate, descriptor, 10)
    do(os.ftruncate, descriptor, -1)
    do(os.pread, descriptor, 100, 0)
    do.close(descriptor)
    do(os.truncate, "file", 5)
    do(os.truncate, "missing", 5)
    do(os.truncate, "file/", 5)
    do(os.mkdir, "d")
    do(os.truncate, "d", 0)
    do.close(do.open("file", os.O_WRONLY | os.O_TRUNC))
    do.close(do.open("file", os.O_WRONLY | os.O_TRUNC))
    descriptor = do.open("file", os.O_RDONLY)
    do(os.ftruncate, descriptor, 1)
    do(os.write, descriptor, b"x")
    do.close(descriptor)
    descriptor = do.open("file", os.O_WRONLY)
    do(os.read, descriptor, 1)
    do(os.pwrite, descriptor, b"far", 100_000)
    do(os.fsync, descriptor)
    do.fstat(descriptor)


def symbolic_links(do: Calls) -> None:
    do.write_file("file")
    do(os.symlink, "file", "link")
    do(os.symlink, "file", "link")
    do(os.symlink, "", "empty")
    do(os.symlink, "t" * 4_095, "long")
    do(os.symlink, "t" * 4_096, "longer")
    do(os.symlink, b"bytes \xff\x01 of any kind", "bytes")
    for path in ("link", "long", "bytes", "file", "missing", "."):
        do(os.readlink, path)
    do(os.chmod, "link", 0o600)
    do(lambda: os.chown("link", -1, -1, follow_symlinks=False))
    do(os.symlink, "loop", "loop")
    do(os.symlink, "there", "back")
    do(os.symlink, "back", "there")
    for path in ("loop", "back", "there/file"):
        do(os.stat, path)
        do.close(do.open(path, os.O_RDONLY))
    do(os.chmod, "loop", 0o600)
    do(os.truncate, "back", 0)
    do(os.mkdir, "d")
    do(os.symlink, "d", "to d")
    do(os.mkdir, "to d/e")
    do(os.rmdir, "to d")
    do(os.rmdir, "to d/")
    do(os.mkdir, "to d")
    do(os.rename, "to d", "moved")
    do(os.rename, "file", "link")
    do(os.unlink, "moved")
    do(os.unlink, "loop")


def special_files(do: Calls) -> None:
    do(os.mkfifo, "fifo", 0o640)
    do(os.mkfifo, "fifo")
    do(os.mknod, "socket", stat.S_IFSOCK | 0o600)
    do(os.mknod, "character", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    do(os.mknod, "block", stat.S_IFBLK | 0o600, os.makedev(7, 259))
    do(os.mknod, "file", stat.S_IFREG | 0o604)
    do(os.mknod, "file", stat.S_IFREG | 0o604)
    do(os.mknod, "directory", stat.S_IFDIR | 0o700)
    do(os.mknod, "link", stat.S_IFLNK | 0o777)
    do(os.mknod, "of no kind", 0o604)
    do(os.mknod, "unknown", 0o170000 | 0o600)
    do(os.mknod, "large", stat.S_IFCHR | 0o600, os.makedev(0xFFF, 0xFFFFF))
    do(os.mknod, "whiteout", stat.S_IFCHR | 0o600, 0)
    do(os.mkfifo, "set-ID fifo", 0o6777)
    do.close(do.open("fifo", os.O_WRONLY | os.O_NONBLOCK))
    reader = do.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = do.open("fifo", os.O_WRONLY | os.O_NONBLOCK)
    do.aside(os.write, writer, b"through")  # the kernel tells no file system behind FUSE of a pipe's times
    do.aside(os.read, reader, 100)
    do(os.truncate, "fifo", 0)
    do.close(do.open("socket", os.O_RDWR))
    do(os.chmod, "fifo", 0o600)
    do(os.rename, "fifo", "pipe")
    do(os.rename, "pipe", "file")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        do(server.bind, "listening")
        do(server.listen)
        do(client.connect, "listening")
        do(os.unlink, "listening")
        do(client.connect, "socket")


def names(do: Calls) -> None:
    """Any bytes but a slash and NUL, 255 of them."""
    longest = b"n" * 255
    for name in (
        longest,
        "\u00e4".encode() * 127 + b"x",
        b"%",
        b"%41",
        b"a\\b",
        b"new\nline",
        b"\x01",
        b"\x7f",
    ):
        do.write_file(name)
    for name in (b" ", b"...", b".fusefs", b"~", b"*?[]", b"'\"", b"a:b", b"\xff", b"\xe9t\xe9", b"\xc0\xaf"):
        do(os.mkdir, name)
        do.write_file(name + b"/" + name)
    do(lambda: sorted(os.listdir(b".")))
    do.write_file(longest + b"n")
    do(os.mkdir, longest + b"n")
    do(os.symlink, "x", longest + b"n")
    do(os.mkfifo, longest + b"n")
    do(os.unlink, longest + b"n")
    do(os.rmdir, longest + b"n")
    do(os.stat, longest + b"n")
    do(os.rename, longest, longest + b"n")
    do(os.rename, longest, b"\xff/" + longest)
    do(os.rename, b"\xe9t\xe9", b"\xed\xa0\x80")
    do.write_file(b"\xff" * 80)
    do(lambda: sorted(os.listdir(b".")))


def listing(do: Calls) -> None:
    """Every name is listed once, whatever changes meanwhile among the others."""
    do(os.mkdir, "d")
    for number in range(300):
        os.close(os.open(f"d/{number:03}", os.O_CREAT))
    with os.scandir("d") as entries:
        found = [next(entries).name for _ in range(10)]
        for number in range(0, 300, 3):
            os.unlink(f"d/{number:03}")
        os.mkdir("d/new")
        found += [entry.name for entry in entries]
    lasting = {f"{number:03}" for number in range(300) if number % 3}
    do(lambda: sorted(lasting.intersection(found)) == sorted(name for name in found if name in lasting))
    do(lambda: lasting <= set(found))
    do(os.listdir, "file")
    do(lambda: len(os.listdir("d")))


class _Entry(ctypes.Structure):
    """struct dirent."""

    _fields_ = (
        ("ino", ctypes.c_ulong),
        ("off", ctypes.c_long),
        ("length", ctypes.c_ushort),
        ("kind", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.POINTER(_Entry)
_libc.readdir.argtypes = _libc.rewinddir.argtypes = _libc.closedir.argtypes = [ctypes.c_void_p]
_libc.telldir.restype = ctypes.c_long
_libc.telldir.argtypes = [ctypes.c_void_p]
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


def _read_on(stream: int, count: int = 1_000_000) -> list[tuple[int, str]]:
    """Return up to `count` of the next entries of a directory stream, dots included, each after its position."""
    found: list[tuple[int, str]] = []
    while len(found) < count:
        position = _libc.telldir(stream)
        entry = _libc.readdir(stream)
        if not entry:
            break
        found.append((position, entry.contents.name.decode()))
    return found


def listing_positions(do: Calls) -> None:
    """What telldir(3) has told leads back to the same entry, whatever has come and gone since, until rewinddir(3)."""
    do(os.mkdir, "d")
    for number in range(300):
        os.close(os.open(f"d/{number:03}", os.O_CREAT))
    stream = _libc.opendir(b"d")  # in an order that is the file system's, so only the answers can be the same
    read = _read_on(stream, 100)
    end = _libc.telldir(stream)
    for _, name in read[::2]:
        if name not in {".", ".."}:
            os.unlink(f"d/{name}")
            os.close(os.open(f"d/new {name}", os.O_CREAT))
    lasting = {name for name in [".", "..", *os.listdir("d")] if not name.startswith("new")}
    astray = []
    for position, name in read[1:]:  # to the beginning would be rewinddir(3) for the kernel
        _libc.seekdir(stream, position)
        [(_, again)] = _read_on(stream, 1)
        if (again == name) != (name in lasting):
            astray.append((name, again))
    do.aside(lambda: astray)
    _libc.seekdir(stream, end)
    rest = [name for _, name in read + _read_on(stream) if name in lasting]
    do.aside(lambda: sorted(rest) == sorted(lasting))
    _libc.rewinddir(stream)
    do.aside(lambda: sorted(name for _, name in _read_on(stream)) == sorted([".", "..", *os.listdir("d")]))
    _libc.closedir(stream)


# Renames


def renames(do: Calls) -> None:
    do.write_file("a", b"a")
    do.write_file("b", b"the other")
    do(os.mkdir, "d")
    do(os.mkdir, "d/e")
    do(os.mkdir, "empty")
    do(os.rename, "a", "b")
    do(os.rename, "b", "b")
    do(os.rename, "missing", "b")
    do(os.rename, "b", "missing/b")
    do(os.rename, "b", "d")
    do(os.rename, "b", "empty")
    do(os.rename, "empty", "b")
    do(os.rename, "empty", "d")
    do(os.rename, "d", "d/e/f")
    do(os.rename, "d", "d/e")
    do(os.rename, "d/e", "d")
    do(os.rename, "d", "d")
    do(os.rename, "b", "new/")
    do(os.rename, "b/", "new")
    do(os.rename, "b", "b/c")
    do(os.rename, "empty/", "moved/")
    do(os.rename, "moved", "d/e")
    do(os.rename, "d/e", "out")
    do(os.rename, ".", "x")
    do(os.rename, "d/.", "x")
    do(os.rename, "d", "..")
    do(os.rename, "b", "d/b")
    do(os.rename, "d", "q")
    do(os.rename, "", "q")


def renames_of_odd_paths(do: Calls) -> None:
    """Slashes at the end, dots, and links where a directory should be."""
    do.write_file("a")
    do(os.mkdir, "d")
    do(os.mkdir, "d/e")
    do.write_file("d/e/f")
    do(os.mkdir, "x")
    do(os.symlink, "d", "to d")
    do(os.symlink, "a", "to a")
    for source, target in (
        *(
            ("a", "a/"),
            ("a", "x/"),
            ("d/", "d2"),
            ("d2", "d/"),
            ("d", "a"),
            ("to d", "to d2"),
            ("to d2/", "q"),
        ),
        *(("x", "to d2"), ("x", "to d2/"), ("to a", "a"), ("a", "to a"), ("d/e", "d/e/f"), ("d/e/f", "d/e")),
        *(("d", "d/e/g"), ("..", "z"), ("x", ".."), ("x", "."), ("d/..", "z"), ("d/e/..", "z"), ("x", "x/")),
        *(("d", "x"), ("/", "z"), ("x", "/"), ("x", ""), ("x/e/f", "x/e/f")),
    ):
        do(os.rename, source, target)


def renames_with_flags(do: Calls) -> None:
    do.write_file("a", b"a")
    do(os.mkdir, "d")
    do(os.mkdir, "d/e")
    do.write_file("d/b", b"the other")
    do(rename_with, "a", "d/b", NOREPLACE)
    do(rename_with, "a", "a", NOREPLACE)
    do(rename_with, "a", "c", NOREPLACE)
    do(rename_with, "missing", "x", NOREPLACE)
    do(rename_with, "d/e", "e", NOREPLACE)
    do(rename_with, "c", "d/b", EXCHANGE)
    do(rename_with, "c", "e", EXCHANGE)
    do(rename_with, "c", "c", EXCHANGE)
    do(rename_with, "c", "missing", EXCHANGE)
    do(rename_with, "missing", "c", EXCHANGE)
    do(rename_with, "d", "d/b", EXCHANGE)
    do(rename_with, "d/b", "d", EXCHANGE)
    do(rename_with, "c", "d", EXCHANGE)
    do(rename_with, "c", "d", NOREPLACE | EXCHANGE)
    do(rename_with, "c", "d", 1 << 7)


def renames_of_what_is_in_use(do: Calls) -> None:
    """Open, locked and mapped files go with their directories and stay what they are."""
    do(os.mkdir, "d")
    descriptor = do.open("d/file", os.O_RDWR | os.O_CREAT)
    second = do.open("d/file", os.O_RDWR)
    do(os.write, descriptor, b"x" * 5_000)
    do(fcntl.flock, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0)
    do(lambda: fcntl.fcntl(descriptor, _F_OFD_SETLK, lock) and None)
    with mmap.mmap(second, 5_000) as mapping:
        do(os.rename, "d", "moved")
        do(fcntl.flock, second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        do(lambda: fcntl.fcntl(second, _F_OFD_SETLK, lock) and None)
        do(os.pwrite, descriptor, b"after", 10)
        do(lambda: bytes(mapping[8:17]))
        do(fcntl.lockf, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 100)
        do.write_file("new")
        do(os.rename, "new", "moved/file")
        do.fstat(descriptor)
        do(os.pwrite, descriptor, b"gone", 10)
        do(os.pread, second, 7, 8)
        do(lambda: bytes(mapping[8:17]))
        do(fcntl.flock, second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    do(fcntl.flock, descriptor, fcntl.LOCK_UN)
    do(fcntl.flock, second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def hard_links(do: Calls) -> None:
    do.write_file("file", b"content")
    do(os.mkdir, "d")
    do(os.link, "file", "d/second")
    do(os.link, "d/second", "third")
    do(os.link, "file", "third")
    do(os.link, "file", "d")
    do(os.link, "d", "directory")
    do(os.link, "missing", "new")
    do(os.link, "file", "missing/new")
    do(os.link, "file", "file/new")
    do(os.link, "file", "n" * 256)
    do(os.rename, "file", "third")
    do(os.unlink, "file")
    do.write_file("d/second", b"written by another name")
    do(os.chmod, "third", 0o600)
    do(os.truncate, "third", 7)
    do(os.mkfifo, "fifo")
    do(os.link, "fifo", "d/fifo")
    do(os.symlink, "target", "link")
    do(lambda: os.link("link", "d/link", follow_symlinks=False))
    do(os.unlink, "link")
    do.write_file("other", b"")
    do(os.rename, "other", "third")
    do(os.rename, "d", "moved")
    do(os.link, "moved/second", "second")
    do(os.rename, "second", "moved/second")
    do(os.unlink, "second")


def unlinked_files(do: Calls) -> None:
    descriptor = do.open("file", os.O_RDWR | os.O_CREAT, 0o600)
    do(os.write, descriptor, b"content")
    with mmap.mmap(descriptor, 7) as mapping:
        do(os.unlink, "file")
        do.fstat(descriptor)
        do(os.fchmod, descriptor, 0o640)
        do(os.ftruncate, descriptor, 4)
        do(os.pwrite, descriptor, b"CON", 0)
        do(lambda: bytes(mapping[:4]))
        do(os.utime, descriptor, (1, 2))
        do(os.fsync, descriptor)
        do.fstat(descriptor)
    do.write_file("file", b"another")
    do(os.pread, descriptor, 100, 0)
    do(os.unlink, "missing")
    do(os.unlink, "file/")


ENTRIES: Final[dict[str, Scenario]] = {
    scenario.__name__: scenario
    for scenario in (
        directories,
        removed_directories,
        creation,
        content,
        symbolic_links,
        special_files,
        names,
        listing,
        listing_positions,
        renames,
        renames_of_odd_paths,
        renames_with_flags,
        renames_of_what_is_in_use,
        hard_links,
        unlinked_files,
    )
}
