"""A pack as bytes: objects one behind the other in a file that was filled with zeros ahead. Pure.

    pack    = (record | zeros)*
    record  = head key data zeros                                each begins at a multiple of 4,096 bytes
    head    = "FUSEFSP1" offset:u64 safe:u64 time-ns:u64 data-length:u64 data-crc:u32 key-length:u16 crc:u32

All integers are big-endian, checksums are zlib's CRC-32. That of the head is of what comes before it and of the key.
Since a record takes whole blocks, and names its offset, no byte of it is written again, and no copy of it, in the
bytes of another one say, passes for it.

`safe` is up to where the pack was on the disk, for certain, when the record was written. What a crash of the machine
may have torn is behind the largest of them: there a record counts only if its bytes have their checksum. Before it
everything was there once. If that has another checksum now it is damaged, and is given out as it is, to a reader that
finds out by itself; a record of which the head is damaged is missing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from zlib_ng import zlib_ng

from backends.base import Data

BLOCK_BYTES: Final = 4_096

_MAGIC: Final = b"FUSEFSP1"
_HEAD: Final = struct.Struct(">8sQQQQIH")
_CHECKSUM: Final = struct.Struct(">I")
_KEY_AT: Final = _HEAD.size + _CHECKSUM.size


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedObject:
    """Where an object is in a pack; sizes and places are in bytes of the file."""

    key: str
    offset: int
    #: Of the data.
    start: int
    size: int
    crc: int
    safe: int
    time_ns: int

    @property
    def end(self) -> int:
        """Where the next record may begin."""
        return aligned(self.start + self.size)


def aligned(length: int) -> int:
    """Return a length as whole blocks."""
    return -(-length // BLOCK_BYTES) * BLOCK_BYTES


def record_length(key: str, data: Data) -> int:
    """Return what the record of an object takes of a pack."""
    return aligned(_KEY_AT + len(key.encode()) + len(data))


def encode(key: str, data: Data, *, offset: int, safe: int, time_ns: int) -> bytes:
    """Return the record of an object, which is to be written at `offset`."""
    name = key.encode()
    head = _HEAD.pack(_MAGIC, offset, safe, time_ns, len(data), zlib_ng.crc32(data), len(name))
    record = b"".join([head, _CHECKSUM.pack(zlib_ng.crc32(name, zlib_ng.crc32(head))), name, data])
    return record.ljust(aligned(len(record)), b"\0")


def decode(block: bytes, offset: int) -> PackedObject | None:
    """Return what the record is of which `block` is the beginning, at `offset`; None if that is none."""
    if len(block) < _KEY_AT or not block.startswith(_MAGIC):
        return None
    _, said_offset, safe, time_ns, size, crc, name_length = _HEAD.unpack_from(block)
    name = block[_KEY_AT : _KEY_AT + name_length]
    (checksum,) = _CHECKSUM.unpack_from(block, _HEAD.size)
    if said_offset != offset or checksum != zlib_ng.crc32(name, zlib_ng.crc32(block[: _HEAD.size])):
        return None
    return PackedObject(
        key=name.decode(),
        offset=offset,
        start=offset + _KEY_AT + name_length,
        size=size,
        crc=crc,
        safe=safe,
        time_ns=time_ns,
    )


def scan(read: Callable[[int, int], bytes], length: int) -> list[PackedObject]:
    """Return what a pack of `length` bytes has, in order; `read(start, end)` returns bytes of it, fewer at its end."""
    found: list[PackedObject] = []
    offset = 0
    while offset < length:
        record = decode(read(offset, offset + BLOCK_BYTES), offset)
        if record is None:
            offset += BLOCK_BYTES
        else:
            found.append(record)
            offset = record.end
    safe = max((record.safe for record in found), default=0)
    return [record for record in found if record.end <= safe or is_whole(record, read)]


def is_whole(record: PackedObject, read: Callable[[int, int], bytes]) -> bool:
    """Return whether the data have the checksum that the record names."""
    data = read(record.start, record.start + record.size)
    return len(data) == record.size and zlib_ng.crc32(data) == record.crc
