"""Where the directory store keeps the objects: keys to paths, and the walk over them in key order.

The key `a/b` is the file `b` in the directory `a`; `escaping` says what becomes of segments that a file system
cannot hold. Where a key also has keys below it, its path is taken by their directory, and its file stands beside it
under the suffixed name. A file goes from the plain place to the suffixed one, never back, and readers look in this
order, so they find it whenever it is there. In between directories come and go: they are made for an object that
needs them, and the empty ones above a removed object are removed.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from backends.directory_files import closing, missing_root, open_regular, sync_directory, translate
from backends.directory_private import PrivateArea
from backends.directory_records import read_segment, write_segment
from backends.errors import InvalidKey
from backends.escaping import BESIDE_SUFFIX, file_name, is_digested, segment_of
from backends.listing import Query

#: What a path raises whose directory was removed by another thread or process, or became a file.
_GONE: Final = (FileNotFoundError, NotADirectoryError)

#: A directory of fewer entries is read again for each page: that costs less than to look whether it has changed.
_MANY_CHILDREN: Final = 1_000

#: A directory that has not changed for so long gets another time with its next change: as coarse are those of any
#: file system (vfat: 2 s).
_SETTLED_NS: Final = 3 * 10**9

#: How many directories are remembered as durable; that of another one costs an fsync again.
_MOST_DURABLE: Final = 10_000


@dataclass(frozen=True, slots=True, order=True)
class _Child:
    """A file that is an object, or a directory that belongs to keys."""

    #: The object's key, or what all keys in the directory begin with, slash included: so children sort as keys do.
    name: bytes
    is_directory: bool
    path: str


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The sorted children of one large directory, as long as that has the same inode number and change time."""

    directory: str
    version: tuple[int, int]
    children: list[_Child]


class ObjectTree:
    """The files of all objects. Synchronous; whoever changes the file of a key holds the key's lock."""

    def __init__(self, root: str, private: PrivateArea, clock_ns: Callable[[], int] = time.time_ns) -> None:
        """`clock_ns` is the clock by which the file system notes changes: nanoseconds since the epoch."""
        self._root: Final = root
        self._resolved_root: Final = os.path.realpath(root)
        self._private: Final = private
        self._clock_ns: Final = clock_ns
        #: Of the large directory that is being listed: each page of a listing would read and sort all of it again.
        self._snapshot: _Snapshot | None = None
        #: Directories that a crash of the machine leaves, by their path, with their inode numbers: this process has
        #: synced those above them. Whoever made one may have been killed before that.
        self._durable: Final[dict[str, int]] = {}

    def open_object(self, key: str, access: int = os.O_RDONLY) -> tuple[int, str] | None:
        """Open the file of an object as `open_regular`; return it with its path, or None if there is no such object."""
        plain = self._plain_path(key)
        if not self._is_real(os.path.dirname(plain)):
            return None
        for path in (plain, plain + BESIDE_SUFFIX):
            descriptor = open_regular(path, access)
            if descriptor is not None:
                return descriptor, path
        return None

    def move_into_place(self, key: str, temporary: str) -> bool:
        """Give a complete file the name of `key`, durably, or return False if its directory is gone or changed.

        Then the caller lets the key's lock go, calls `make_directories` and comes again.
        """
        plain = self._plain_path(key)
        beside = plain + BESIDE_SUFFIX
        path = beside if _is_directory(plain) or (_is_free(plain) and not _is_free(beside)) else plain
        try:
            os.rename(temporary, path)
        except (*_GONE, IsADirectoryError):
            return False
        try:
            sync_directory(os.path.dirname(path))
        except OSError as error:
            failure = translate(error, self._root)
            failure.is_in_doubt = True  # it has the name, and may not keep it
            raise failure from error
        return True

    def tag_file(self, key: str, descriptor: int) -> None:
        """Keep the last segment of `key` with its file, if the file's name will not tell it."""
        segment = key.rpartition("/")[2]
        if is_digested(file_name(segment)):
            write_segment(descriptor, segment)

    def remove(self, key: str) -> str | None:
        """Remove the file of an object and return its directory, for `settle`; None if there was no object."""
        plain = self._plain_path(key)
        if not self._is_real(os.path.dirname(plain)):
            return None
        removed = [_unlink(path) for path in (plain, plain + BESIDE_SUFFIX)]
        return os.path.dirname(plain) if any(removed) else None

    def settle(self, directories: Collection[str]) -> None:
        """Make removals from directories durable, and remove those that are empty, and those above them.

        In this order: with a directory goes the one above it, whose removals would not be synced any more.
        """
        for directory in directories:
            with contextlib.suppress(*_GONE):
                sync_directory(directory)
        for directory in directories:
            with contextlib.suppress(OSError):
                while directory != self._root:
                    os.rmdir(directory)
                    self._durable.pop(directory, None)  # whoever makes it anew may get the same inode number
                    directory = os.path.dirname(directory)

    def make_directories(self, key: str) -> None:
        """Make the directories above the file of `key`, durably, unless others remove or replace them meanwhile.

        Takes the locks of keys whose files are in the way.
        """
        segments = key.split("/")[:-1]
        directory = os.path.dirname(self._plain_path(key))
        if not segments or (self._is_durable(directory) and self._is_real(directory)):
            return
        path = self._root
        with contextlib.suppress(*_GONE):
            for depth, segment in enumerate(segments, start=1):
                path = os.path.join(path, file_name(segment))
                if self._is_durable(path):
                    continue
                if not _is_directory(path):
                    self._move_aside("/".join(segments[:depth]))
                    self._make_directory(path, segment)
                number = os.lstat(path).st_ino
                sync_directory(os.path.dirname(path))
                self._note_durable(path, number)

    def walk(self, query: Query) -> Iterator[bytes]:
        """Yield keys as `listing.cut_page` wants them: in order, with the prefix, after `query.after`.

        With the delimiter `/` a directory is its common prefix, and nothing below it is read but to see that it
        holds an object.
        """
        base, slash, _ = query.prefix.decode().rpartition("/")
        directory = self._directory_of(base) if slash else self._root
        stack = [self._children_from(directory, (base + slash).encode(), query.after)]
        while stack:
            child = next(stack[-1], None)
            if child is None:
                stack.pop()
            elif not child.name.startswith(query.prefix):
                continue
            elif not child.is_directory or query.delimiter == b"/":
                if child.name > query.after and (not child.is_directory or self._holds_object(child.path)):
                    yield child.name
            elif child.name > query.after or query.after.startswith(child.name):
                stack.append(self._children_from(child.path, child.name, query.after))
        self._snapshot = None  # this was the last page, and a million children take a lot of memory

    def _plain_path(self, key: str) -> str:
        return os.path.join(self._root, *map(file_name, key.split("/")))

    def _directory_of(self, base: str) -> str:
        return self._plain_path(base)

    def _move_aside(self, key: str) -> None:
        """Move the file of `key` from the plain place to the suffixed one, if it is there."""
        plain = self._plain_path(key)
        if _is_free(plain):
            return
        beside = plain + BESIDE_SUFFIX
        with self._private.locked(key):
            if os.path.islink(plain) and not _is_free(beside):
                # As where the key itself is written: a link is no object, and what is beside may be one.
                os.unlink(plain)
            elif os.path.isfile(plain) or os.path.islink(plain):
                os.rename(plain, beside)
            elif not (_is_free(plain) or _is_directory(plain)):
                raise InvalidKey(f"{plain} is in the way, and neither a file nor a directory: remove it")

    def _is_real(self, directory: str) -> bool:
        """Whether a directory is there, and no symbolic link on the way to it: what is behind one belongs to no key."""
        if _resolved(directory) == self._resolved_root + directory.removeprefix(self._root):
            return True  # which is told at once, however deep it is
        while directory != self._root:
            if not _is_directory(directory):
                return False
            directory = os.path.dirname(directory)
        return True

    def _is_durable(self, path: str) -> bool:
        """Whether a directory is there, and known to survive a crash of the machine."""
        number = self._durable.get(path)
        try:
            status = os.lstat(path) if number is not None else None
        except OSError:
            return False  # others may remove it at any moment
        return status is not None and status.st_ino == number and stat.S_ISDIR(status.st_mode)

    def _note_durable(self, path: str, number: int) -> None:
        if len(self._durable) >= _MOST_DURABLE:
            self._durable.clear()
        self._durable[path] = number

    def _make_directory(self, path: str, segment: str) -> None:
        """Make one directory; one that is there already will do."""
        self._durable.pop(path, None)  # a new one may get the inode number of the one before
        if not is_digested(file_name(segment)):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)
        else:
            # The segment must be there as soon as the directory is.
            fresh = self._private.new_path()
            os.mkdir(fresh)
            write_segment(fresh, segment)
            sync_directory(fresh)
            try:
                os.rename(fresh, path)
            except OSError:
                os.rmdir(fresh)
                if not _is_directory(path):
                    raise

    def _children_from(self, directory: str, base: bytes, after: bytes) -> Iterator[_Child]:
        """The children from the last one on that is not behind `after`: of that, something below may be."""
        children = self._children(directory, base)
        first = bisect_right(children, after, key=lambda child: child.name)
        return islice(children, max(first - 1, 0), None)

    def _children(self, directory: str, base: bytes) -> list[_Child]:
        """The files and directories that belong to keys, sorted; none if the directory is not there (any more)."""
        known = self._snapshot
        if known is not None and known.directory == directory and known.version == _version(directory):
            return known.children
        version, now_ns = _version(directory), self._clock_ns()
        found: dict[bytes, _Child] = {}
        for entry in self._scan(directory):
            child = _child(entry, base)
            if child is not None:
                found.setdefault(child.name, child)
        children = sorted(found.values())
        # One that has changed just now may change again without another time.
        if version is not None and len(children) > _MANY_CHILDREN and version[1] < now_ns - _SETTLED_NS:
            self._snapshot = _Snapshot(directory, version, children)
        return children

    def _holds_object(self, directory: str) -> bool:
        """Whether there is an object anywhere below a directory: the first one ends the search.

        There may be one in what this process may not read. That must not hide what is beside it: a whole disk has
        `lost+found`.
        """
        pending = [directory]
        with contextlib.suppress(PermissionError):
            while pending:
                for entry in self._scan(pending.pop()):
                    child = _child(entry, b"")
                    if child is not None and not child.is_directory:
                        return True
                    if child is not None:
                        pending.append(child.path)
            return False
        return True

    def _scan(self, directory: str) -> Iterator[os.DirEntry[str]]:
        try:
            if not self._is_real(directory):
                raise FileNotFoundError(directory)
            with os.scandir(directory) as entries:
                yield from entries
        except _GONE:
            if not os.path.isdir(self._root):
                raise missing_root(self._root) from None


def _child(entry: os.DirEntry[str], base: bytes) -> _Child | None:
    """What a directory entry is to the store; None for what belongs to no key (links, pipes, strange names)."""
    is_directory = entry.is_dir(follow_symlinks=False)
    if not is_directory and not entry.is_file(follow_symlinks=False):
        return None
    segment = _segment(entry.name if is_directory else entry.name.removesuffix(BESIDE_SUFFIX), entry.path)
    if segment is None:
        return None
    name = base + segment.encode() + (b"/" if is_directory else b"")
    return _Child(name, is_directory, entry.path)


def _segment(name: str, path: str) -> str | None:
    if not is_digested(name):
        return segment_of(name)
    try:
        return read_segment(path)
    except _GONE:
        return None


def _version(directory: str) -> tuple[int, int] | None:
    """Return what changes with the entries of a directory; None if it is not there."""
    try:
        status = os.stat(directory)
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns


def _resolved(directory: str) -> str | None:
    """Return the path of a directory without symbolic links, as the kernel tells it; None where it does not."""
    try:
        with closing(os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as descriptor:
            return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return None


def _is_directory(path: str) -> bool:
    """Whether a path is a directory, and not a link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except _GONE:
        return False


def _is_free(path: str) -> bool:
    return not os.path.lexists(path)


def _unlink(path: str) -> bool:
    """Remove a file; whether there was one."""
    try:
        os.unlink(path)
    except (*_GONE, IsADirectoryError):
        return False
    return True
