"""Local sparse files that hold the bytes of open and unpublished inodes.

A stage file has no name that means anything and no life beyond its mount: what must survive is in the bucket. It
is opened when it is first touched and closed again when too many others are, so that ten thousand dirty files need
only a few hundred descriptors.

Reads and writes are made on the caller's thread. They go to the page cache of a local disk, take less time than
handing them to another thread would, and being synchronous they are atomic to every other task.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path
from typing import Final

from cachetools import LRUCache

from backends.base import Data

MAX_OPEN_FILES: Final = 512
"""Descriptors kept open at once; well below the usual soft limit of 1,024."""

_PUNCH_HOLE_KEEP_SIZE: Final = 0x02 | 0x01
"""FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE of fallocate(2), which Python's os module lacks."""

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class _Descriptors(LRUCache[int, int]):
    """Open descriptors by stage number; the one that was not used for longest is closed first."""

    def popitem(self) -> tuple[int, int]:
        number, descriptor = super().popitem()
        os.close(descriptor)
        return number, descriptor


class Stage:
    """The directory of stage files of one mount, and the count of bytes they hold."""

    def __init__(self, directory: Path, *, max_open_files: int = MAX_OPEN_FILES) -> None:
        self._directory = directory
        self._open = _Descriptors(max_open_files)
        self._next_number = 0
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def new_file(self) -> StageFile:
        """Return an empty stage file; nothing is made on disk until something is written to it."""
        self._next_number += 1
        return StageFile(self, self._next_number)

    def close(self) -> None:
        """Close every descriptor; the files stay for whoever removes the directory."""
        while self._open:
            self._open.popitem()

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:x}"

    def _descriptor(self, number: int) -> int:
        descriptor = self._open.get(number)
        if descriptor is None:
            descriptor = os.open(self._path(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._open[number] = descriptor
        return descriptor

    def _remove(self, number: int) -> None:
        descriptor = self._open.pop(number, None)
        if descriptor is not None:
            os.close(descriptor)
        self._path(number).unlink(missing_ok=True)


class StageFile:
    """One sparse file. What was never written reads as zeros, up to any length."""

    def __init__(self, stage: Stage, number: int) -> None:
        self._stage = stage
        self._number = number
        self._exists = False

    def write(self, offset: int, data: Data) -> int:
        """Write `data` at `offset`, and return how many bytes of it: fewer where the disk is full in the middle.

        Raises OSError (ENOSPC, EIO) of the local disk, with nothing written.
        """
        self._exists = True
        return os.pwrite(self._stage._descriptor(self._number), data, offset)

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`."""
        data = os.pread(self._stage._descriptor(self._number), length, offset) if self._exists else b""
        return data if len(data) == length else data + bytes(length - len(data))

    def data_in(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the ranges of `start` to `end` that are not holes; what lies between them reads as zeros."""
        if not self._exists:
            return []
        descriptor = self._stage._descriptor(self._number)
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
        if self._exists and os.fstat(self._stage._descriptor(self._number)).st_size > size:
            os.ftruncate(self._stage._descriptor(self._number), size)

    def punch_hole(self, offset: int, length: int) -> None:
        """Give the disk space of a range back; it reads as zeros then."""
        if not self._exists:
            return
        descriptor = self._stage._descriptor(self._number)
        if _fallocate(descriptor, _PUNCH_HOLE_KEEP_SIZE, offset, length) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"cannot punch a hole into a stage file: {os.strerror(code)}")

    def move_to(self, where: Path, size: int) -> None:
        """Make the file, `size` bytes long, somebody else's; here it is empty then."""
        descriptor = self._stage._descriptor(self._number)
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)
        shutil.move(self._stage._path(self._number), where)
        self.discard()

    def take_over(self, path: Path) -> None:
        """Make a file of the same disk this one, which is empty until then. Raises OSError (ENOENT: it is gone)."""
        path.rename(self._stage._path(self._number))
        self._exists = True

    def cut(self, size: int, at_most: int) -> bytes:
        """Cut the file and return what was beyond. Raises ValueError if that is nothing, or more than `at_most`."""
        descriptor = self._stage._descriptor(self._number)
        length = os.fstat(descriptor).st_size - size
        if not 0 < length <= at_most:
            raise ValueError(f"it has {length} bytes beyond the {size} of the object")
        beyond = os.pread(descriptor, length, size)
        os.ftruncate(descriptor, size)
        return beyond

    def leave_at(self, path: Path, size: int, trailer: bytes) -> None:
        """Put `trailer` behind the first `size` bytes and make both the file `path` of the same disk; empty then."""
        descriptor = self._stage._descriptor(self._number)
        os.ftruncate(descriptor, size)
        if os.pwrite(descriptor, trailer, size) != len(trailer):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._stage._path(self._number).rename(path)
        self.discard()

    def discard(self) -> None:
        """Remove the file from the disk; a later write makes a new one."""
        if self._exists:
            self._exists = False
            self._stage._remove(self._number)
