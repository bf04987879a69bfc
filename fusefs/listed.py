"""What is known of an entry that nobody has looked at: what the listing said, and what an earlier mount remembered.

A directory may have a million of them, so each is one short string of bytes with a fixed layout and not an object with
fields: size, time and ETag of the object, and where they are known the inode number, the attributes (extended ones
included) and the target of a symbolic link.
"""

from __future__ import annotations

import stat
import struct
from typing import Final, NamedTuple, TypeVar

from backends.base import ObjectInfo
from fusefs import extended_attributes
from fusefs.attributes import Attributes

MAX_SYMLINK_SIZE: Final = 4_095
"""Linux's PATH_MAX without the zero at its end: a longer object that calls itself a symlink is none."""

_HEAD: Final = struct.Struct("<QqH")
_REMEMBERED: Final = struct.Struct("<QIIIIqqq")

_NUMBER_AND_MODE: Final = struct.Struct("<QI")
"""What `_REMEMBERED` begins with."""

_LENGTH: Final = struct.Struct("<H")
"""Of a link's target; what comes after it are extended attributes, or the reference to them."""

_Entry = TypeVar("_Entry", bound="ListedEntry")


class Remembered(NamedTuple):
    """What an inode was when it was last seen."""

    number: int
    attributes: Attributes
    #: Of a symbolic link.
    target: bytes = b""


def nothing_but(number: int) -> Remembered:
    """Return what is remembered where it is no more than the number."""
    return Remembered(number, Attributes(mode=0, uid=0, gid=0, atime_ns=0, mtime_ns=0, ctime_ns=0))


class ListedEntry(bytes):
    """The layout; two entries are equal if everything that is known of them is."""

    __slots__ = ()

    @classmethod
    def pack(
        cls: type[_Entry],
        *,
        size: int,
        stored_at_ns: int,
        etag: str,
        remembered: Remembered | None = None,
    ) -> _Entry:
        """Raises `struct.error` where a value is beyond what the layout holds: a time after the year 2262."""
        packed_etag = etag.encode()
        head = _HEAD.pack(size, stored_at_ns, len(packed_etag)) + packed_etag
        return cls(head if remembered is None else head + _pack_remembered(remembered))

    @property
    def size(self) -> int:
        """The object's size in bytes."""
        size: int = _HEAD.unpack_from(self)[0]
        return size

    @property
    def stored_at_ns(self) -> int:
        """When the store received the object, by its own clock; of a directory, `Directory.stored_at_ns`."""
        stored_at_ns: int = _HEAD.unpack_from(self)[1]
        return stored_at_ns

    @property
    def etag(self) -> str:
        return self[_HEAD.size : self._head_end].decode()

    @property
    def number(self) -> int | None:
        """The inode number that an earlier mount gave it; None if that is not known."""
        start = self._head_end
        if len(self) == start:
            return None
        number: int = _REMEMBERED.unpack_from(self, start)[0]
        return number

    @property
    def mode(self) -> int:
        """The mode that is remembered; 0 where nothing is but the number."""
        start = self._head_end
        if len(self) == start:
            return 0
        mode: int = _NUMBER_AND_MODE.unpack_from(self, start)[1]
        return mode

    @property
    def remembered(self) -> Remembered | None:
        """What is known beyond the listing; None if nothing is but the number."""
        if not self.mode:
            return None
        start = self._head_end
        number, mode, uid, gid, rdev, atime_ns, mtime_ns, ctime_ns = _REMEMBERED.unpack_from(self, start)
        target, xattrs = _unpack_tail(self[start + _REMEMBERED.size :])
        attributes = Attributes(
            mode=mode,
            uid=uid,
            gid=gid,
            rdev=rdev,
            atime_ns=atime_ns,
            mtime_ns=mtime_ns,
            ctime_ns=ctime_ns,
            xattrs=xattrs,
        )
        return Remembered(number, attributes, target)

    def with_memory_of(self: _Entry, other: ListedEntry) -> _Entry:
        """Return this entry, of which nothing is remembered, with what `other` remembers."""
        return type(self)(self + other[other._head_end :])

    def with_number_of(self: _Entry, other: ListedEntry) -> _Entry:
        """Return this entry, of which nothing is remembered, with the number of `other` and no more."""
        number = other.number
        return self if number is None else type(self)(self + _pack_remembered(nothing_but(number)))

    def checked(self) -> tuple[int | None, int]:
        """Return number and mode, if it is an entry. Raises `struct.error` and `UnicodeDecodeError`."""
        start = self._head_end
        self[_HEAD.size : start].decode()
        if len(self) == start:
            return None, 0
        number, mode, *_ = _REMEMBERED.unpack_from(self, start)
        if mode:
            _unpack_tail(self[start + _REMEMBERED.size :])
        return number, mode

    @property
    def _head_end(self) -> int:
        length: int = _HEAD.unpack_from(self)[2]
        return _HEAD.size + length


class ListedObject(ListedEntry):
    """An object: a file, a symbolic link or something special."""

    __slots__ = ()

    @classmethod
    def of(cls, info: ObjectInfo) -> ListedObject:
        return cls.pack(size=info.size, stored_at_ns=info.last_modified_ns, etag=info.etag)


class ListedDirectory(ListedEntry):
    """A common prefix. There may be a marker with attributes, which the listing of the parent does not tell."""

    __slots__ = ()

    @property
    def is_doubtful(self) -> bool:
        """Whether the marker may have other attributes than those that are remembered. `size` is 1 then, and 0 else."""
        return self.size != 0


UNKNOWN_DIRECTORY: Final = ListedDirectory.pack(size=0, stored_at_ns=0, etag="")
"""A common prefix of which nothing else is known."""


def outline_of(entry: ListedEntry) -> tuple[int | None, int]:
    """Return the inode number, if it is known, and the type bits of the mode that the entry must have.

    The latter are 0 where its metadata would have to be read. It is one call, for a hundred thousand entries.
    """
    size, _, etag_length = _HEAD.unpack_from(entry)
    start = _HEAD.size + etag_length
    number, mode = _NUMBER_AND_MODE.unpack_from(entry, start) if len(entry) != start else (None, 0)
    if isinstance(entry, ListedDirectory):
        return number, stat.S_IFDIR
    if mode:
        return number, stat.S_IFMT(mode)
    return number, stat.S_IFREG if size > MAX_SYMLINK_SIZE else 0


def _pack_remembered(remembered: Remembered) -> bytes:
    number, attributes, target = remembered
    packed = _REMEMBERED.pack(
        number,
        attributes.mode,
        attributes.uid,
        attributes.gid,
        attributes.rdev,
        attributes.atime_ns,
        attributes.mtime_ns,
        attributes.ctime_ns,
    )
    xattrs = extended_attributes.from_metadata(extended_attributes.to_metadata(attributes.xattrs))
    return packed + _LENGTH.pack(len(target)) + target + xattrs.encode()


def _unpack_tail(tail: bytes) -> tuple[bytes, str]:
    (length,) = _LENGTH.unpack_from(tail)
    end = _LENGTH.size + length
    return tail[_LENGTH.size : end], tail[end:].decode()
