"""File work of the directory store: blocking, durable, and with errors of the seam. Runs in worker threads."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import weakref
from collections.abc import Iterator
from typing import Final

from backends.base import Data
from backends.errors import (
    AccessDenied,
    BucketNotFound,
    EntityTooLarge,
    InvalidKey,
    QuotaExceeded,
    StorageError,
    Unavailable,
)

_BLOCK_BYTES: Final = 1 << 20

#: What a failed system call means to the layers above. ENOENT is not here: it depends on what was looked for.
_CLASSES: Final[dict[int, type[StorageError]]] = {
    errno.EACCES: AccessDenied,
    errno.EPERM: AccessDenied,
    errno.EROFS: AccessDenied,
    errno.ENOSPC: QuotaExceeded,
    errno.EDQUOT: QuotaExceeded,
    errno.EFBIG: EntityTooLarge,
    errno.ENAMETOOLONG: InvalidKey,
    errno.EMFILE: Unavailable,
    errno.ENFILE: Unavailable,
    errno.ENOMEM: Unavailable,
    errno.EAGAIN: Unavailable,
    errno.ESTALE: Unavailable,
    errno.ETIMEDOUT: Unavailable,
}


class Descriptor:
    """An open file: closed by `close`, and at the latest when nobody has this any more."""

    def __init__(self, number: int) -> None:
        self.number: Final = number
        self._close: Final = weakref.finalize(self, os.close, number)

    def close(self) -> None:
        """Close the file, unless it is closed. Raises OSError."""
        self._close()


def translate(error: OSError, root: str) -> StorageError:
    """Return the exception of the seam for a failed system call of the store kept in `root`."""
    if error.errno in {errno.ENOENT, errno.ENOTDIR} and not os.path.isdir(root):
        return missing_root(root)
    kind = _CLASSES.get(error.errno or 0, StorageError)
    return kind(f"the directory store in {root}: {error}")


def missing_root(root: str) -> BucketNotFound:
    """The failure of every call when the directory is not there, or is no directory."""
    return BucketNotFound(f"there is no directory {root} to keep objects in; create it, or name another one")


def open_regular(path: str, access: int = os.O_RDONLY) -> int | None:
    """Open a regular file for reading; None if there is none. Links are not followed, pipes not waited for.

    With O_PATH for `access` only fstat(2) can be asked of it, and it need not be readable.
    """
    flags = access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}:
            return None
        raise
    if is_regular(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def is_regular(descriptor: int) -> bool:
    """Whether an open descriptor is that of a regular file."""
    return os.fstat(descriptor).st_mode & 0o170000 == 0o100000


@contextlib.contextmanager
def closing(descriptor: int) -> Iterator[int]:
    """Close `descriptor` at the end."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    with closing(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as descriptor:
        os.fsync(descriptor)


def read_range(descriptor: int, start: int, end: int) -> bytes:
    """Read bytes `start` to `end` of a file that is not shorter."""
    pieces: list[bytes] = []
    while start < end:
        piece = os.pread(descriptor, end - start, start)
        if not piece:
            break
        pieces.append(piece)
        start += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def write_all(descriptor: int, data: Data) -> str:
    """Append `data` and return its MD5 in hex."""
    with memoryview(data).cast("B") as view:
        digest = hashlib.md5(view, usedforsecurity=False)
        done = 0
        while done < len(view):
            # Not all at once: a page cache would take huge pages for it, which some machines have to fetch first.
            done += os.write(descriptor, view[done : done + _BLOCK_BYTES])
    return digest.hexdigest()


def append_hashed(source: int, target: int, start: int, length: int) -> str:
    """Append bytes of one file to another and return their MD5 in hex; one block is in memory at a time.

    Raises `StorageError` when the source has become shorter meanwhile.
    """
    digest = hashlib.md5(usedforsecurity=False)
    end = start + length
    while start < end:
        block = os.pread(source, min(_BLOCK_BYTES, end - start), start)
        if not block:
            raise _shortened(end - start)
        digest.update(block)
        written = 0
        while written < len(block):
            written += os.write(target, block[written:])
        start += len(block)
    return digest.hexdigest()


def append(source: int, target: int, length: int) -> None:
    """Append the first `length` bytes of one file to another, inside the kernel.

    Raises `StorageError` when the source has become shorter meanwhile.
    """
    start = 0
    while start < length:
        count = os.sendfile(target, source, start, length - start)
        if count == 0:
            raise _shortened(length - start)
        start += count


def _shortened(lacking: int) -> StorageError:
    return StorageError(f"a file of the store was shortened while it was copied: {lacking} bytes are missing")
