"""How the index is written down: objects (shards) of blocks, one block for each directory. Pure; bytes in, bytes out.

    shard    magic, version, flags; blocks; a digest of all that
    block    lengths, not_after_ns, defaults, the directory's prefix, the compressed payload
    payload  for each entry: kind, length of the name, length of the record, name, record (`listed`)

A shard is read whole or not at all: what does not have the digest that it says is `DamagedIndex`, and so is anything
that a program with the right digest should not have written. Nothing else is raised here, whatever the bytes.
"""

from __future__ import annotations

import hashlib
import stat
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from backends.base import MIB
from fusefs.attributes import Defaults
from fusefs.inode_table import NUMBER_BITS
from fusefs.inodes import ROOT_NUMBER
from fusefs.listed import ListedDirectory, ListedEntry, ListedObject

MAGIC: Final = b"fusefs index 1\n"
MAX_PAYLOAD: Final = 256 * MIB
"""Bytes of a block when it is unpacked: two million entries; more is not an index but an attack."""

_FINAL: Final = 1
_DIGEST_SIZE: Final = 16
_BLOCK: Final = struct.Struct("<HIqIIII")
_ENTRY: Final = struct.Struct("<BBH")
_MAX_RECORD: Final = 0xFFFF
_KINDS: Final[dict[int, type[ListedObject] | type[ListedDirectory]]] = {0: ListedObject, 1: ListedDirectory}


class DamagedIndex(ValueError):
    """The bytes are no index, or not all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What was known of the entries of one directory."""

    prefix: str
    #: Entries that were written by the mount itself are believed of objects that are no younger than this, by the
    #: store's clock; 0: than the shard.
    not_after_ns: int
    #: Of the mount: what the attributes of objects without any were taken from.
    defaults: Defaults
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One object of the index."""

    #: Whether the mount wrote nothing to the bucket after this.
    is_final: bool
    blocks: Mapping[str, Block]


def encode_block(prefix: str, defaults: Defaults, entries: Iterable[tuple[bytes, ListedEntry]]) -> Block:
    """Return the block of a directory; entries too long for it are left out."""
    pieces = []
    room = MAX_PAYLOAD
    for name, entry in entries:
        length = _ENTRY.size + len(name) + len(entry)
        if len(entry) <= _MAX_RECORD and length < room:
            kind = int(isinstance(entry, ListedDirectory))
            pieces.append(_ENTRY.pack(kind, len(name), len(entry)) + name + entry)
            room -= length
    payload = zlib.compress(b"".join(pieces), 1)
    return Block(prefix=prefix, not_after_ns=0, defaults=defaults, payload=payload)


def decode_block(block: Block) -> dict[bytes, ListedEntry]:
    """Return the entries by name. Raises `DamagedIndex`."""
    payload = _unpack(block.payload)
    entries: dict[bytes, ListedEntry] = {}
    place = 0
    try:
        while place < len(payload):
            kind, name_length, length = _ENTRY.unpack_from(payload, place)
            place += _ENTRY.size
            name = payload[place : place + name_length]
            place += name_length
            entry = _KINDS[kind](payload[place : place + length])
            place += length
            _check(name, entry)
            entries[name] = entry
    except (struct.error, KeyError, UnicodeDecodeError) as error:
        raise DamagedIndex(f"a block cannot be read: {error!r}") from error
    if place != len(payload):
        raise DamagedIndex("a block ends within an entry")
    return entries


def encode_shard(blocks: Iterable[Block], *, is_final: bool) -> bytes:
    """Return the bytes of an object of the index; `is_final` if its mount changes nothing any more."""
    pieces = [MAGIC, bytes([_FINAL if is_final else 0])]
    for block in blocks:
        prefix = block.prefix.encode()
        defaults = block.defaults
        pieces += [
            _BLOCK.pack(
                len(prefix),
                len(block.payload),
                block.not_after_ns,
                defaults.uid,
                defaults.gid,
                defaults.file_mode,
                defaults.directory_mode,
            ),
            prefix,
            block.payload,
        ]
    content = b"".join(pieces)
    return content + _digest(content)


def decode_shard(data: bytes) -> Shard:
    """Raises `DamagedIndex`."""
    content, digest = data[:-_DIGEST_SIZE], data[-_DIGEST_SIZE:]
    if not content.startswith(MAGIC) or len(content) == len(MAGIC) or digest != _digest(content):
        raise DamagedIndex("it is not as it was written")
    blocks: dict[str, Block] = {}
    place = len(MAGIC) + 1
    try:
        while place < len(content):
            prefix_length, length, not_after_ns, *defaults = _BLOCK.unpack_from(content, place)
            place += _BLOCK.size
            prefix = content[place : place + prefix_length].decode()
            place += prefix_length
            payload = content[place : place + length]
            place += length
            blocks[prefix] = Block(
                prefix=prefix, not_after_ns=not_after_ns, defaults=_defaults(*defaults), payload=payload
            )
    except (struct.error, UnicodeDecodeError) as error:
        raise DamagedIndex(f"a block cannot be read: {error!r}") from error
    if place != len(content):
        raise DamagedIndex("it ends within a block")
    return Shard(is_final=bool(content[len(MAGIC)] & _FINAL), blocks=blocks)


def _defaults(uid: int, gid: int, file_mode: int, directory_mode: int) -> Defaults:
    return Defaults(uid=uid, gid=gid, file_mode=file_mode, directory_mode=directory_mode)


def _unpack(payload: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(payload, MAX_PAYLOAD)
    except zlib.error as error:
        raise DamagedIndex(f"a block cannot be unpacked: {error}") from error
    if not unpacker.eof or unpacker.unused_data:
        raise DamagedIndex("a block is not as long as it should be")
    return unpacked


def _check(name: bytes, entry: ListedEntry) -> None:
    number, mode = entry.checked()
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name or number is None:
        raise DamagedIndex(f"{name!r} is no entry")
    if not ROOT_NUMBER < number < 1 << NUMBER_BITS:
        raise DamagedIndex(f"{name!r} has a number that no inode has")
    if not mode:
        return
    kind = stat.S_IFMT(mode)
    if (kind == stat.S_IFDIR) != isinstance(entry, ListedDirectory):
        raise DamagedIndex(f"{name!r} is a directory or none, and says otherwise")
    remembered = entry.remembered if kind == stat.S_IFLNK else None
    if remembered is not None and len(remembered.target) != entry.size:
        raise DamagedIndex(f"{name!r} has half a target")


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_SIZE).digest()
