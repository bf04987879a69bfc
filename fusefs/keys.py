"""Names of the tree and keys of the bucket, and how each that cannot be the other is written.

A file's key is its path without the leading slash; a directory's is the same with a slash at the end (an empty
object of that name is its marker). What lies under the reserved prefix `.fusefs/` is ours and has no name in the tree.

Names are bytes for POSIX and keys are Unicode, so a segment of a key (what stands between two slashes) is its name in
UTF-8, and a few of both are escaped:

    %bytes-…  a segment: the name is not UTF-8, or begins like one of these three; `%XX` is a byte of it
    %key-…    a name: the segment cannot be one (it is empty, `.` or `..`, or holds a NUL), or begins like one of these
              three and is no escaped name; `%XX` is a character of it
    %file-…   a name: the object `…` beside the directory `…`, of which a tree can show only one by its name

Every name has a segment, and it is shown under that name again. Every segment has a name, unless that would be longer
than a name can be; two segments never have the same. Names `%key-…` and `%file-…` that stand for keys of others are
there to be read, removed and renamed, and are never given to a new entry.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from backends.base import S3_LIMITS
from fusefs.errors import CrossesReserved, NameTooLong
from fusefs.locations import HOUSEKEEPING

RESERVED_NAME: Final = HOUSEKEEPING.encode()
RESERVED_PREFIX: Final = f"{HOUSEKEEPING}/"

MAX_NAME_LENGTH: Final = 255
"""Bytes in one name: Linux's NAME_MAX."""

_BYTES: Final = "%bytes-"
_KEY: Final = "%key-"
_FILE: Final = "%file-"
_MARKS: Final = (_BYTES, _KEY, _FILE)

_REMEMBERED: Final = 4_096
"""Segments of odd names that are kept: the key of a path is made anew whenever it is needed."""

_ESCAPE: Final = re.compile(rb"%([0-9A-F]{2})")


def check_name(name: bytes) -> None:
    """Raise `NameTooLong` for more bytes than a name can have."""
    if len(name) > MAX_NAME_LENGTH:
        raise NameTooLong(f"a name of {len(name)} bytes is longer than {MAX_NAME_LENGTH}")


def join(directory_key: str, name: bytes, *, max_length: int = S3_LIMITS.max_key_length) -> str:
    """Return the key of a new entry `name` of a directory whose key is `directory_key` ('' for the root).

    `max_length` is what the store takes, in bytes; it is less where the mount is a prefix of a bucket.

    Raises `NameTooLong` as `check_name` and for a path that exceeds a key, and `CrossesReserved` for the reserved
    name at the root and for names that stand for keys which cannot be names.
    """
    check_name(name)
    if name == RESERVED_NAME and not directory_key:
        raise CrossesReserved(f"{RESERVED_NAME.decode()!r} is reserved for the file system's own objects")
    segment = segment_of(name)
    if stands_for_key(name):
        raise CrossesReserved(f"{name!r} stands for the key segment {segment!r}, which no new entry can have")
    key = directory_key + segment
    if len(key.encode()) >= max_length:  # one byte is kept for the slash of a directory's marker
        raise NameTooLong(f"the path of {name!r} makes a key of more than {max_length} bytes")
    return key


def stands_for_key(name: bytes) -> bool:
    """Return whether the name is that of a key of others, and not one that somebody has given to a file."""
    return name.startswith((_KEY.encode(), _FILE.encode())) and segment_of(name) != _quoted_bytes(name)


def segment_of(name: bytes) -> str:
    """Return the segment that a name has in a key."""
    if not name.startswith(b"%"):
        try:
            return name.decode()
        except UnicodeDecodeError:
            pass  # no key can have these bytes: they are escaped
    return _escaped_segment_of(name)


@lru_cache(_REMEMBERED)
def _escaped_segment_of(name: bytes) -> str:
    if name.startswith(_FILE.encode()):
        segment = _segment_of_file_beside(name[len(_FILE) :])
        if segment is not None:
            return segment
    if name.startswith(_KEY.encode()):
        segment = _unquoted(name[len(_KEY) :]).decode(errors="replace")
        if name_of(segment) == name:
            return segment
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return _quoted_bytes(name)
    return _quoted_bytes(name) if text.startswith(_MARKS) else text


def longest_segment(name_length: int) -> int:
    """Return how many bytes the segment of a name of so many can have."""
    return len(_BYTES) + 3 * name_length


def name_of(segment: str) -> bytes | None:
    """Return the name that a segment of a key has in the tree, or None if it would be too long."""
    if segment.startswith(_BYTES):
        name = _unquoted(segment[len(_BYTES) :].encode())
        if _is_name(name) and segment_of(name) == segment:
            return name
    elif not segment.startswith(_MARKS) and _is_name(name := segment.encode()):
        return name
    name = _quoted_segment(segment)
    return name if len(name) <= MAX_NAME_LENGTH else None


def name_of_file_beside(segment: str) -> bytes | None:
    """Return the name of an object beside a directory of the same name, or None if it would be too long."""
    name = name_of(segment)
    if name is None or name.startswith(_FILE.encode()) or len(_FILE) + len(name) > MAX_NAME_LENGTH:
        return None
    return _FILE.encode() + name


def _segment_of_file_beside(name: bytes) -> str | None:
    if name.startswith(_FILE.encode()):
        return None
    segment = segment_of(name)
    return segment if name_of(segment) == name else None


def _is_name(name: bytes) -> bool:
    is_plain = b"/" not in name and b"\0" not in name
    return is_plain and name not in (b"", b".", b"..") and len(name) <= MAX_NAME_LENGTH


def _quoted_bytes(name: bytes) -> str:
    text = name.replace(b"%", b"%25").decode(errors="surrogateescape")
    return _BYTES + "".join(f"%{ord(at) - 0xDC00:02X}" if "\udc80" <= at <= "\udcff" else at for at in text)


def _quoted_segment(segment: str) -> bytes:
    text = segment.replace("%", "%25").replace("\0", "%00")
    if segment in {".", ".."}:
        text = text.replace(".", "%2E")
    return (_KEY + text).encode()


def _unquoted(text: bytes) -> bytes:
    return _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), text)
