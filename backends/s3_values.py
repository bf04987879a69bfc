"""How keys, user metadata, ETags, times and checksums look in S3's requests and answers.

User metadata travels in HTTP headers: ASCII, no control characters, and servers drop empty values and strip spaces
at the ends. A value that would not survive is sent as a data URL, `data:;base64,` and the base64 of its UTF-8; so is
one that begins like that already, which makes it reversible. All others, s3fs's among them, are sent as they are.
RFC 2047 words would be the other choice; but S3 decodes those on arrival and encodes only what is not ASCII on return.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import re
from datetime import UTC, datetime, timedelta
from typing import Final

from zlib_ng import zlib_ng

from backends.base import Data, Metadata
from backends.rules import check_metadata

_ENCODED: Final = "data:;base64,"
#: Survives every server as it is: visible ASCII with single spaces between.
_PLAIN_VALUE: Final = re.compile(r"[!-~]+(?: [!-~]+)*")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Checksum(enum.Enum):
    """What is sent with a body so that the store can tell whether it arrived whole."""

    CRC32 = "crc32"
    MD5 = "md5"
    NONE = "none"

    def arguments(self, data: bytes | bytearray) -> dict[str, str]:
        """Return the request's arguments that carry the checksum of `data`."""
        if self is Checksum.CRC32:
            return {"ChecksumCRC32": _base64(zlib_ng.crc32(data).to_bytes(4, "big"))}
        if self is Checksum.MD5:
            return {"ContentMD5": content_md5(data)}
        return {}


def content_md5(data: Data) -> str:
    return _base64(hashlib.md5(data, usedforsecurity=False).digest())


def encode_metadata(metadata: Metadata) -> dict[str, str]:
    """Return user metadata as S3's headers carry it. Raises `InvalidMetadata`, also if encoding makes it too long."""
    check_metadata(metadata)
    encoded = {name: _encode_value(value) for name, value in metadata.items()}
    check_metadata(encoded)
    return encoded


def decode_metadata(metadata: Metadata) -> dict[str, str]:
    """Return user metadata as it was given to `encode_metadata`; what others wrote comes back as it is."""
    return {name.lower(): _decode_value(value) for name, value in metadata.items()}


def unquote_etag(etag: str) -> str:
    """Return an ETag without quotes, and as it was before a proxy that packs bodies has made it a weak one."""
    return etag.removeprefix("W/").strip('"')


def quote_etag(etag: str) -> str:
    return f'"{etag}"'


def nanoseconds(moment: datetime) -> int:
    """Return a time of an answer as nanoseconds since the epoch."""
    return (moment - _EPOCH) // _MICROSECOND * 1_000


def _encode_value(value: str) -> str:
    if _PLAIN_VALUE.fullmatch(value) and not value.startswith((_ENCODED, "=?")):
        return value
    return _ENCODED + _base64(value.encode())


def _decode_value(value: str) -> str:
    if not value.startswith(_ENCODED):
        return value
    try:
        return base64.b64decode(value.removeprefix(_ENCODED), validate=True).decode()
    except ValueError:
        return value


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
