"""A pack that this process appends to, on the disk; blocking.

Zeros are written ahead of the records, so that a record changes bytes that the file has already: bringing these to the
disk takes one write and no commit of the file system's own journal, which is most of what a small file costs.

Records may be written while others are on their way to the disk, and one sync does for all that were there when it
began. After one that has failed, nobody knows what the kernel has kept: nothing is appended any more, and what had
not been confirmed counts as not there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from typing import Final

from backends.base import MIB, Data
from backends.directory_files import Descriptor
from backends.pack_format import PackedObject, decode, encode, record_length

_AHEAD_BYTES: Final = MIB
"""How far zeros are written ahead, at most."""

_PIECE_BYTES: Final = 1 << 16


class OwnPack:
    """A new pack, open. Who calls anything but `sync` holds the lock of all packs."""

    def __init__(self, path: str, *, room: int) -> None:
        """Create the file, which gets records to about `room` bytes. Raises OSError, if it is there already, too."""
        self._path: Final = path
        self._room: Final = room
        self._file: Final = Descriptor(
            os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        )
        self._number: Final = os.fstat(self._file.number).st_ino
        #: Where the next record begins.
        self._end = 0
        #: Up to where the file has bytes.
        self._filled = 0
        #: Guards what follows.
        self._syncing: Final = threading.Lock()
        #: Up to where all is on the disk.
        self._safe = 0
        #: The errno of a sync, or that the file is closed.
        self._failure: int | None = None

    @property
    def is_removed(self) -> bool:
        """Whether another process has removed it, or it is elsewhere: no reader finds what is appended then."""
        try:
            return os.stat(self._path).st_ino != self._number
        except (FileNotFoundError, NotADirectoryError):
            return True

    def takes(self, key: str, data: Data) -> bool:
        """Return whether there is room for an object."""
        return self._failure is None and self._end + record_length(key, data) <= self._room

    def append(self, key: str, data: Data, time_ns: int) -> PackedObject:
        """Write an object behind the others; `sync` confirms it. Raises OSError, and then it is not there."""
        record = encode(key, data, offset=self._end, safe=self._safe, time_ns=time_ns)
        end = self._end + len(record)
        if end > self._filled:
            self._fill(max(end, min(self._filled + _AHEAD_BYTES, self._room)))
        try:
            _write(self._file.number, record, self._end)
        except OSError:
            self._cut()
            raise
        written = decode(record, self._end)
        assert written is not None
        self._end = end
        self._filled = max(self._filled, end)
        return written

    def _fill(self, end: int) -> None:
        """Write zeros up to `end`; where there is no room for these, there may be some for a record."""
        try:
            _write(self._file.number, bytes(end - self._filled), self._filled)
        except OSError:
            self._cut()
        else:
            self._filled = end

    def _cut(self) -> None:
        """Give back what a failed write has taken."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._file.number, self._filled)

    def sync(self, written: PackedObject) -> None:
        """Return when an object is on the disk. Raises OSError, and then it counts as not there."""
        with self._syncing:
            if self._safe >= written.end:
                return
            if self._failure is not None:
                raise OSError(self._failure, os.strerror(self._failure), self._path)
            reached = self._end
            try:
                os.fdatasync(self._file.number)
            except OSError as error:
                self._failure = error.errno
                raise
            self._safe = reached

    def close(self) -> None:
        """Close the file, without the zeros at its end."""
        with self._syncing:
            self._filled = self._end
            self._cut()
            self._file.close()
            self._failure = errno.EBADF


def _write(descriptor: int, data: bytes, offset: int) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.pwrite(descriptor, view[done : done + _PIECE_BYTES], offset + done)
