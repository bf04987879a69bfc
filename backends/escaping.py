"""File names for the segments of keys: whatever S3 allows in a key, in a directory that a person can look into.

A segment is what stands between two slashes. A common one is its own file name. Otherwise `%` introduces what a
file system or a reader could stumble over:

    %XX      a byte in upper-case hex: control characters, `%` itself, the dots of `.`, `..` and our private directory
    %_       the empty segment (of `a//b`, or at the end of `dir/`)
    …%=      the file of a key that also has keys below it, beside the directory for these (`x` beside `x/y`)
    …%~HASH  a segment over the limit: its beginning and its SHA-256; the segment itself is kept in an extended
             attribute of the file or directory

The mapping is one to one, so a name that `file_name` would not give belongs to no segment.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

PRIVATE_NAME: Final = ".fusefs-store"
BESIDE_SUFFIX: Final = "%="

#: Of a name without suffix; with it a name fits in the 255 bytes of every Linux file system.
_MAX_NAME_BYTES: Final = 255 - len(BESIDE_SUFFIX)
_EMPTY: Final = "%_"
_HEAD_BYTES: Final = 120
_SPECIAL: Final = re.compile(r"[\x00-\x1f\x7f%]")
_HEX: Final = re.compile(r"%([0-9A-F]{2})")
_DIGESTED: Final = re.compile(r".*%~[0-9a-f]{64}", re.DOTALL)


def file_name(segment: str) -> str:
    """Return the name under which a segment is kept; at most 253 bytes, never `.`, `..` or our private name."""
    if not segment:
        return _EMPTY
    name = _SPECIAL.sub(_percent, segment)
    if segment in {".", "..", PRIVATE_NAME}:
        name = name.replace(".", "%2E")
    encoded = name.encode()
    if len(encoded) <= _MAX_NAME_BYTES:
        return name
    head = encoded[:_HEAD_BYTES].decode(errors="ignore")
    return f"{head}%~{hashlib.sha256(segment.encode()).hexdigest()}"


def is_digested(name: str) -> bool:
    """Whether the segment must be looked up, because the name (without suffix) holds only its digest."""
    return _DIGESTED.fullmatch(name) is not None


def segment_of(name: str) -> str | None:
    """Return the segment of a name without suffix that is not digested; None if it is not the name of any."""
    segment = "" if name == _EMPTY else _HEX.sub(_character, name)
    try:
        return segment if file_name(segment) == name else None
    except UnicodeEncodeError:
        return None


def _percent(match: re.Match[str]) -> str:
    return f"%{ord(match.group()):02X}"


def _character(match: re.Match[str]) -> str:
    return chr(int(match.group(1), 16))
