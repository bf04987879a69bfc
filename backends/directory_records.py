"""What the directory store knows of a file beyond its bytes, kept in one extended attribute of the file.

The attribute belongs to the inode. It is set before the file gets its final name, so one rename brings bytes, ETag
and metadata together, and there is no moment, and no crash, after which they contradict each other.

The record repeats the file's size and mtime. Where they differ, somebody has changed the file in place with
another program: the metadata still hold, and the ETag is made from the file's inode number, size and mtime, as it
is for a file that was copied in by hand and has no record. Such an ETag costs no reading of the content, and
changes with it.
"""

from __future__ import annotations

import errno
import os
import zlib
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from backends.base import NO_METADATA, Metadata
from backends.errors import InvalidMetadata, NotSupported, StoreCorrupt

_OBJECT_ATTRIBUTE: Final = "user.fusefs.object"
_SEGMENT_ATTRIBUTE: Final = "user.fusefs.segment"
_FORMAT: Final = b"1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One state of a file of the store."""

    etag: str
    size: int
    mtime_ns: int
    metadata: Metadata


def encode(version: Version) -> bytes:
    """Format: a line with the format's number and the CRC-32 of all that follows; a line with ETag, size and mtime;
    for each item a line with the name and the value's length in bytes, then the value and a line feed.

    It is text that `getfattr` shows well, and does not grow with what it holds: file systems give it about 4 KiB.
    """
    lines = [f"{version.etag} {version.size} {version.mtime_ns}\n".encode()]
    for name, value in version.metadata.items():
        encoded = value.encode()
        lines.append(f"{name} {len(encoded)}\n".encode() + encoded + b"\n")
    body = b"".join(lines)
    return b"%s %08x\n" % (_FORMAT, zlib.crc32(body)) + body


def decode(record: bytes) -> Version:
    """The inverse of `encode`. Raises ValueError for anything else."""
    head, _, body = record.partition(b"\n")
    if head != b"%s %08x" % (_FORMAT, zlib.crc32(body)):
        raise ValueError("wrong format or checksum")
    line, _, rest = body.partition(b"\n")
    etag, size, mtime_ns = line.decode().split(" ")
    metadata: dict[str, str] = {}
    while rest:
        line, _, rest = rest.partition(b"\n")
        name, length = line.decode().split(" ")
        metadata[name] = rest[: int(length)].decode()
        rest = rest[int(length) + 1 :]
    return Version(etag=etag, size=int(size), mtime_ns=int(mtime_ns), metadata=MappingProxyType(metadata))


def read_version(descriptor: int, path: str) -> Version:
    """Return what is known of an open file. Raises `StoreCorrupt`, naming `path`, for a damaged record."""
    record = _get_attribute(descriptor, _OBJECT_ATTRIBUTE)
    status = os.fstat(descriptor)
    if record is None:
        recorded = None
    else:
        try:
            recorded = decode(record)
        except ValueError as error:
            raise StoreCorrupt(f"the attribute {_OBJECT_ATTRIBUTE} of {path} is damaged: {error}") from error
    if recorded and (recorded.size, recorded.mtime_ns) == (status.st_size, status.st_mtime_ns):
        return recorded
    return unrecorded_version(status, recorded.metadata if recorded else NO_METADATA)


def unrecorded_version(status: os.stat_result, metadata: Metadata = NO_METADATA) -> Version:
    """Return what is known of a file without a record that holds, or whose record may not be read."""
    return Version(
        etag=f"file-{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}",
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        metadata=metadata,
    )


def write_version(descriptor: int, etag: str, metadata: Metadata, now_ns: int) -> Version:
    """Record ETag and metadata of a file whose bytes are complete, and set its mtime to `now_ns`.

    Raises `InvalidMetadata` if the file system has no room for them, `NotSupported` if it keeps no attributes.
    """
    os.utime(descriptor, ns=(now_ns, now_ns))
    # Read back: not every file system keeps nanoseconds.
    status = os.fstat(descriptor)
    version = Version(etag=etag, size=status.st_size, mtime_ns=status.st_mtime_ns, metadata=metadata)
    _set_attribute(descriptor, _OBJECT_ATTRIBUTE, encode(version))
    return version


def read_segment(path: str) -> str:
    """Return the segment of a file or directory whose name is digested. Raises `StoreCorrupt` if it is lost."""
    try:
        return os.getxattr(path, _SEGMENT_ATTRIBUTE, follow_symlinks=False).decode()
    except UnicodeDecodeError as error:
        raise StoreCorrupt(f"the attribute {_SEGMENT_ATTRIBUTE} of {path} is damaged") from error
    except OSError as error:
        if error.errno in {errno.ENODATA, errno.ENOTSUP}:
            raise StoreCorrupt(
                f"{path} has lost its attribute {_SEGMENT_ATTRIBUTE}, which holds its name"
            ) from error
        raise


def write_segment(file: int | str, segment: str) -> None:
    """Keep the segment of a file or directory whose name is digested."""
    _set_attribute(file, _SEGMENT_ATTRIBUTE, segment.encode())


def _get_attribute(descriptor: int, name: str) -> bytes | None:
    try:
        return os.getxattr(descriptor, name)
    except OSError as error:
        if error.errno in {errno.ENODATA, errno.ENOTSUP}:
            return None
        raise


def _set_attribute(file: int | str, name: str, value: bytes) -> None:
    try:
        os.setxattr(file, name, value)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            raise NotSupported(
                "the file system keeps no extended attributes (user.*), which a directory store needs"
            ) from error
        if error.errno in {errno.E2BIG, errno.ERANGE} or (error.errno == errno.ENOSPC and len(value) > 1_024):
            raise InvalidMetadata(
                f"the file system has no room for {len(value)} bytes of attributes"
            ) from error
        raise
