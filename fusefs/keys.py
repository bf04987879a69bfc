"""Names of the tree and keys of the bucket, and which of them cannot be each other.

A file's key is its path without the leading slash; a directory's is the same with a slash at the end (an empty
object of that name is its marker). Names are bytes for POSIX and UTF-8 text for S3. What lies under the reserved
prefix `.fusefs/` is ours and has no name in the tree.
"""

from __future__ import annotations

from typing import Final

from backends.base import S3_LIMITS
from fusefs.errors import CrossesReserved, InvalidName, NameTooLong

RESERVED_NAME: Final = b".fusefs"
RESERVED_PREFIX: Final = ".fusefs/"

MAX_NAME_LENGTH: Final = 255
"""Bytes in one name: Linux's NAME_MAX."""


def check_name(name: bytes) -> str:
    """Return `name` as a segment of a key.

    Raises `NameTooLong`, and `InvalidName` for bytes that are not UTF-8, which no key can hold.
    """
    if len(name) > MAX_NAME_LENGTH:
        raise NameTooLong(f"a name of {len(name)} bytes is longer than {MAX_NAME_LENGTH}")
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidName(f"{name!r} is not UTF-8, and S3 keys are") from error


def join(directory_key: str, name: bytes, *, max_length: int = S3_LIMITS.max_key_length) -> str:
    """Return the key of the entry `name` of a directory whose key is `directory_key` ('' for the root).

    `max_length` is what the store takes, in bytes; it is less where the mount is a prefix of a bucket.

    Raises `NameTooLong` and `InvalidName` as `check_name`, `NameTooLong` for a path that exceeds a key, and
    `CrossesReserved` for the reserved name at the root.
    """
    if name == RESERVED_NAME and not directory_key:
        raise CrossesReserved(f"{RESERVED_NAME.decode()!r} is reserved for the file system's own objects")
    key = directory_key + check_name(name)
    if len(key.encode()) >= max_length:  # one byte is kept for the slash of a directory's marker
        raise NameTooLong(f"the path of {name!r} makes a key of more than {max_length} bytes")
    return key


def name_of(segment: str) -> bytes | None:
    """Return the name that a segment of a key has in the tree, or None if it cannot be a name."""
    name = segment.encode()
    if name in (b"", b".", b"..") or b"\0" in name or b"/" in name or len(name) > MAX_NAME_LENGTH:
        return None
    return name
