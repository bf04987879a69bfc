"""What stands behind the bytes of a kept file: which version they are of, and the checksums of its blocks.

A kept file is the object's bytes, in their places, with holes for what was not staged, and then at offset `size` this
trailer: a magic line, the CRC-32 of all that follows, a line of JSON, and block number and checksum as pairs of
32-bit numbers. Blocks are those of `fusefs.block_checksums`; their size is in the JSON.

The name is made of the version, so another version of the object is another file, and two mounts that keep the same
one keep the same bytes. Nothing is believed because of the name: the trailer says again what it belongs to.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from backends.base import KIB
from fusefs import block_checksums

_MAGIC: Final = b"fusefs kept 1\n"
_SUM: Final = struct.Struct("<I")
_PAIR: Final = struct.Struct("<II")
_MAX_HEADER: Final = 16 * KIB
"""Bytes of JSON: a key has 1,024, which may be six times as many when they are escaped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptVersion:
    """One version of one object of one store."""

    store: str
    key: str
    etag: str
    size: int

    @property
    def file_name(self) -> str:
        """The name of the file that holds bytes of it."""
        return hashlib.sha256(_header(self)).hexdigest()

    @property
    def max_trailer_size(self) -> int:
        """The size of no trailer is more."""
        blocks = -(-self.size // block_checksums.BLOCK_SIZE)
        return len(_MAGIC) + _SUM.size + _MAX_HEADER + blocks * _PAIR.size


def encode(version: KeptVersion, checksums: Mapping[int, int]) -> bytes:
    """Return the trailer."""
    pairs = b"".join(_PAIR.pack(*pair) for pair in sorted(checksums.items()))
    body = _header(version) + b"\n" + pairs
    return _MAGIC + _SUM.pack(zlib.crc32(body)) + body


def decode(trailer: bytes, version: KeptVersion) -> dict[int, int]:
    """Return the checksums by block. Raises ValueError if the trailer is damaged or belongs to something else."""
    body_start = len(_MAGIC) + _SUM.size
    if not trailer.startswith(_MAGIC) or len(trailer) < body_start:
        raise ValueError("it is no kept file, or was cut")
    body = trailer[body_start:]
    if zlib.crc32(body) != _SUM.unpack(trailer[len(_MAGIC) : body_start])[0]:
        raise ValueError("its list of checksums is damaged")
    header, _, pairs = body.partition(b"\n")
    if header != _header(version):
        raise ValueError("it belongs to another object")
    blocks = block_checksums.whole_blocks(0, version.size, version.size)
    return {number: checksum for number, checksum in _PAIR.iter_unpack(pairs) if number in blocks}


def _header(version: KeptVersion) -> bytes:
    described = {
        "block_size": block_checksums.BLOCK_SIZE,
        "etag": version.etag,
        "key": version.key,
        "size": version.size,
        "store": version.store,
    }
    return json.dumps(described).encode()
