"""Sparse files, of memory or of the local disk, that hold the bytes of open and unpublished inodes.

A stage file has no name that means anything and no life beyond its mount: what must survive is in the bucket. It
is opened when it is first touched and closed again when too many others are, so that ten thousand dirty files need
only a few hundred descriptors.

A small one is kept in memory, as long as there is room for it, and becomes a file when it grows. To make a file, write
it and remove it again takes 0.05 ms, and 1 ms where many have been removed within a minute: ext4 then looks at each of
their inodes before it takes another (`recently_deleted` in fs/ext4/ialloc.c).

Reads and writes are made on the caller's thread. They go to the page cache of a local disk, take less time than
handing them to another thread would, and being synchronous they are atomic to every other task.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cachetools import LRUCache

from backends.base import KIB, MIB, Data
from fusefs.extents import ExtentSet

_log = logging.getLogger(__name__)

MAX_OPEN_FILES: Final = 512
"""Descriptors kept open at once; well below the usual soft limit of 1,024."""

MEMORY_BYTES: Final = 32 * MIB
"""Of all small files together; those that come when it is full are on the disk."""

MEMORY_FILE_BYTES: Final = 64 * KIB
"""Of one small file: beyond that, to make a file is little beside what is written to it."""

MAX_WRITE_BYTES: Final = 1 * MIB
"""Of one write to the disk. ext4 takes pages of 2 MiB for larger ones, which a virtual machine that lends its free
memory to others has to fetch back from its host: 2.4 s of processor time for 1 GiB instead of 0.25 (Linux 6.18)."""

BLOCK_BYTES: Final = 4 * KIB
"""What a local disk gives a file at least: a single byte in the middle of a hole takes so much."""

_PUNCH_HOLE_KEEP_SIZE: Final = 0x02 | 0x01
"""FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE of fallocate(2), which Python's os module lacks."""

_UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOSYS)
"""What fallocate(2) says on a file system that cannot do it, with nothing changed."""

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def _read(descriptor: int, offset: int, length: int) -> bytes:
    """Return `length` bytes, or fewer at the end of the file: one pread(2) gives at most 0x7ffff000 of them."""
    pieces = [os.pread(descriptor, length, offset)]
    missing = length - len(pieces[0])
    while missing and pieces[-1]:
        pieces.append(os.pread(descriptor, missing, offset + length - missing))
        missing -= len(pieces[-1])
    return b"".join(pieces)


class _Descriptors(LRUCache[int, int]):
    """Open descriptors by stage number; the one that was not used for longest is closed first."""

    def popitem(self) -> tuple[int, int]:
        number, descriptor = super().popitem()
        os.close(descriptor)
        return number, descriptor


class Stage:
    """The directory of stage files of one mount, and the memory for small ones."""

    def __init__(
        self, directory: Path, *, max_open_files: int = MAX_OPEN_FILES, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self._memory_left = memory_bytes
        self._directory = directory
        self._open = _Descriptors(max_open_files)
        self._has_told_of_holes = False
        self._has_told_of_leftovers = False
        self._has_told_of_failure = False
        self._next_number = 0
        self._has_room: Callable[[int], bool] | None = None
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def leave_room(self, has_room: Callable[[int], bool]) -> None:
        """Take no more bytes than `has_room` allows from now on: the disk is somebody else's, too."""
        self._has_room = has_room

    def new_file(self) -> StageFile:
        """Return an empty stage file; nothing is made on disk before it has to be there."""
        self._next_number += 1
        return StageFile(self, self._next_number)

    def close(self) -> None:
        """Close every descriptor; the files stay for whoever removes the directory."""
        while self._open:
            self._open.popitem()

    def _check_room(self, length: int) -> None:
        if self._has_room is not None and not self._has_room(length):
            raise OSError(errno.ENOSPC, "what is left of the disk is needed for the log")

    def _reserve(self, size: int) -> bool:
        """Take memory, or give it back (less than 0); return whether there was enough."""
        if size > self._memory_left:
            return False
        self._memory_left -= size
        return True

    def _tell_of_holes(self) -> None:
        if not self._has_told_of_holes:
            self._has_told_of_holes = True
            _log.warning(
                "there are no holes in files in %s: what was fetched of a changed file stays until that is published",
                self._directory,
            )

    def _tell_of_failure(self, error: OSError) -> None:
        if not self._has_told_of_failure:
            self._has_told_of_failure = True
            _log.error(
                "%s cannot be written, and what is fetched is not cached: %s", self._directory, error.strerror
            )

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:x}"

    def _descriptor(self, number: int, *, is_new: bool) -> int:
        descriptor = self._open.get(number)
        if descriptor is None:
            flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_TRUNC if is_new else 0)
            try:
                descriptor = os.open(self._path(number), flags, 0o600)
            except FileNotFoundError as error:  # an empty one in its place would be zeros for everybody
                raise OSError(errno.EIO, f"{self._path(number)} is gone") from error
            self._open[number] = descriptor
        return descriptor

    def _remove(self, number: int) -> None:
        descriptor = self._open.pop(number, None)
        if descriptor is not None:
            os.close(descriptor)
        try:
            self._path(number).unlink(missing_ok=True)
        except OSError as error:  # nobody who needs no more of it could do anything about it
            if not self._has_told_of_leftovers:
                self._has_told_of_leftovers = True
                _log.warning("%s cannot be removed: %s", self._path(number), error.strerror)


class StageFile:
    """One sparse file. What was never written reads as zeros, up to any length."""

    def __init__(self, stage: Stage, number: int) -> None:
        self._stage = stage
        self._number = number
        self._exists = False
        #: All of it, while it is not on the disk.
        self._memory = bytearray()
        #: What the disk has of it, in whole blocks.
        self._blocks = ExtentSet()

    @property
    def allocated(self) -> int:
        """The bytes that it takes, in memory or on the disk; what was never written takes none there."""
        return self._blocks.total if self._exists else len(self._memory)

    def allocated_in(self, start: int, end: int) -> int:
        """Return how many bytes of a range may be other than zeros, at most; no request to the disk."""
        if not self._exists:
            return max(min(end, len(self._memory)) - start, 0)
        return sum(extent.length for extent in self._blocks.intersect(start, end))

    @property
    def data_end(self) -> int:
        """Where what may be other than zeros ends, at most; no request to the disk."""
        return self._blocks.end if self._exists else len(self._memory)

    @property
    def is_in_memory(self) -> bool:
        """Whether it has bytes, and the disk has none of them."""
        return bool(self._memory)

    def write(self, offset: int, data: Data) -> int:
        """Write `data` at `offset`, and return how many bytes of it: of what is long, or where the disk is full, fewer.

        Raises OSError (ENOSPC, EIO) of the local disk, with nothing written. A quota that is used up is ENOSPC, too,
        and so is a disk that is read-only, as ext4 becomes after an error: what is done is the same, and EDQUOT and
        EROFS would be the store's and the mount's to whoever writes.
        """
        self._stage._check_room(memoryview(data).nbytes)
        return self._put(offset, data)

    def write_fetched(self, offset: int, data: Data) -> int:
        """Write as `write` what the bucket has as well. Raises OSError (ENOSPC) for whatever the disk refuses."""
        try:
            return self.write(offset, data)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            self._stage._tell_of_failure(error)
            raise OSError(errno.ENOSPC, f"{error.strerror} in the cache directory") from error

    def _put(self, offset: int, data: Data) -> int:
        length = memoryview(data).nbytes
        if not self._exists and self._grow_memory(offset + length):
            self._memory[offset : offset + length] = data
            return length
        try:
            written = os.pwrite(self._descriptor(), memoryview(data)[:MAX_WRITE_BYTES], offset)
        except OSError as error:
            if error.errno not in (errno.EDQUOT, errno.EROFS):
                raise
            raise OSError(errno.ENOSPC, f"{error.strerror} in the cache directory") from error
        self._note_data(offset, offset + written)
        return written

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`."""
        if self._exists:
            data = _read(self._descriptor(), offset, length)
        else:
            data = bytes(self._memory[offset : offset + length])
        return data if len(data) == length else data + bytes(length - len(data))

    def data_in(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the ranges of `start` to `end` that are not holes; what lies between them reads as zeros."""
        if not self._exists:
            end = min(end, len(self._memory))
            return [(start, end)] if start < end else []
        descriptor = self._descriptor()
        found: list[tuple[int, int]] = []
        while start < end:
            try:
                start = os.lseek(descriptor, start, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # no data from there on
                    raise
                break
            hole = os.lseek(descriptor, start, os.SEEK_HOLE)
            if start < end:
                found.append((start, min(hole, end)))
            start = hole
        return found

    def truncate(self, size: int) -> None:
        """Forget everything from `size` on."""
        if not self._exists:
            self._stage._reserve(-len(self._memory[size:]))
            del self._memory[size:]
        elif os.fstat(self._descriptor()).st_size > size:
            self._cut(self._descriptor(), size)

    def punch_hole(self, offset: int, length: int) -> None:
        """Let a range read as zeros, and take no disk space if that is possible."""
        if not self.give_back(offset, length):
            for start, end in self.data_in(offset, offset + length):
                while start < end:
                    start += self._put(start, bytes(min(end - start, MIB)))

    def give_back(self, offset: int, length: int) -> bool:
        """Give the disk space of a range back; it reads as zeros then.

        Returns False, and changes nothing, on a file system that has no holes. Raises OSError of the local disk.
        """
        if not self._exists:
            end = min(offset + length, len(self._memory))
            if end == len(self._memory):
                self.truncate(offset)
            elif offset < end:
                self._memory[offset:end] = bytes(end - offset)
        elif _fallocate(self._descriptor(), _PUNCH_HOLE_KEEP_SIZE, offset, length) != 0:
            code = ctypes.get_errno()
            if code in _UNSUPPORTED:
                self._stage._tell_of_holes()
                return False
            raise OSError(code, f"cannot punch a hole into a stage file: {os.strerror(code)}")
        else:
            end = offset + length
            self._blocks.remove(offset + -offset % BLOCK_BYTES, end - end % BLOCK_BYTES)
        return True

    def move_to(self, where: Path, size: int) -> None:
        """Make the file, `size` bytes long, somebody else's; here it is empty then."""
        descriptor = self._descriptor()
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)
        shutil.move(self._stage._path(self._number), where)
        self.discard()

    def take_over(self, path: Path) -> None:
        """Make a file of the same disk this one, which is empty until then. Raises OSError (ENOENT: it is gone)."""
        path.rename(self._stage._path(self._number))
        self._exists = True
        for data in self.data_in(0, os.fstat(self._descriptor()).st_size):
            self._note_data(*data)

    def cut(self, size: int, at_most: int) -> bytes:
        """Cut the file and return what was beyond. Raises ValueError if that is nothing, or more than `at_most`."""
        descriptor = self._descriptor()
        length = os.fstat(descriptor).st_size - size
        if not 0 < length <= at_most:
            raise ValueError(f"it has {length} bytes beyond the {size} of the object")
        beyond = _read(descriptor, size, length)
        self._cut(descriptor, size)
        return beyond

    def leave_at(self, path: Path, size: int, trailer: bytes) -> None:
        """Put `trailer` behind the first `size` bytes and make both the file `path` of the same disk; empty then."""
        descriptor = self._descriptor()
        os.ftruncate(descriptor, size)
        if os.pwrite(descriptor, trailer, size) != len(trailer):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._stage._path(self._number).rename(path)
        self.discard()

    def discard(self) -> None:
        """Forget everything; a later write begins anew."""
        self._drop_memory()
        if self._exists:
            self._exists = False
            self._blocks = ExtentSet()
            self._stage._remove(self._number)

    def _note_data(self, start: int, end: int) -> None:
        self._blocks.add(start - start % BLOCK_BYTES, end + -end % BLOCK_BYTES)

    def _cut(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)
        self._blocks.truncate(size + -size % BLOCK_BYTES)

    def _grow_memory(self, size: int) -> bool:
        """Return whether `size` bytes can be in memory, filled up with zeros."""
        missing = size - len(self._memory)
        if size > MEMORY_FILE_BYTES or (missing > 0 and not self._stage._reserve(missing)):
            return False
        self._memory.extend(bytes(max(missing, 0)))
        return True

    def _drop_memory(self) -> None:
        self._stage._reserve(-len(self._memory))
        self._memory.clear()

    def _descriptor(self) -> int:
        """Return the file's descriptor; what is in memory is on the disk then. Raises OSError, and nothing is lost."""
        descriptor = self._stage._descriptor(self._number, is_new=not self._exists)
        if not self._exists:
            try:
                if os.pwrite(descriptor, self._memory, 0) != len(self._memory):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                self._stage._remove(self._number)
                raise
            self._exists = True
            self._note_data(0, len(self._memory))
            self._drop_memory()
        return descriptor
