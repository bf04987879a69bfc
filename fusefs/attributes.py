"""POSIX attributes, and how an object's user metadata carries them.

The names are s3fs's, so that both programs read each other's buckets (s3fs-fuse, `src/metaheader.cpp`): `mode`
is the whole st_mode in decimal, type bits included; `uid` and `gid` are decimal; `atime`, `mtime` and `ctime` are
seconds since the epoch, and after a point the nanoseconds to be added to them, also where the seconds are negative
(tv_sec and tv_nsec of a struct timespec). What is missing or cannot be read falls back to the defaults of the mount
and to the time at which the store received the object: a bucket that others filled has none of it.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from fusefs import extended_attributes

_NANOSECONDS: Final = 1_000_000_000

_MAX_ID: Final = 0xFFFF_FFFE
_INTEGERS: Final = {"mode": 0xFFFF, "uid": _MAX_ID, "gid": _MAX_ID, "rdev": 0xFFFF_FFFF}
"""Numbers in metadata, and the largest that each can be."""

_TIMES: Final = ("mtime", "ctime", "atime")

_TIME: Final = re.compile(r"(-?[0-9]{1,12})(?:\.([0-9]{0,32}))?")
"""A time in metadata; twelve digits of seconds are 31,000 years."""

_LAST_TIME_NS: Final = 10**12 * _NANOSECONDS - 1

_FILE_KINDS: Final = frozenset(
    {stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK}
)
"""Types that the kernel takes for anything but a directory; it answers EIO for any other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """What stat(2) tells of an inode, apart from its number, size and links. Times are nanoseconds since the epoch."""

    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    rdev: int = 0
    #: Extended attributes as `extended_attributes` writes them.
    xattrs: str = ""

    @property
    def kind(self) -> int:
        """The type bits of the mode: S_IFREG, S_IFDIR, S_IFLNK, …"""
        return stat.S_IFMT(self.mode)

    def changed(self, now_ns: int, *, contents: bool = False) -> Attributes:
        """Return the attributes after a change at `now_ns`: ctime moves, and with `contents` mtime as well."""
        return replace(self, ctime_ns=now_ns, mtime_ns=now_ns if contents else self.mtime_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """Attributes of objects that carry none: the mount's owner, and permission bits without a type."""

    uid: int
    gid: int
    file_mode: int = 0o644
    directory_mode: int = 0o755


def fresh(*, mode: int, uid: int, gid: int, now_ns: int) -> Attributes:
    """Return the attributes of what is created now; `mode` has its type bits."""
    return Attributes(mode=mode, uid=uid, gid=gid, atime_ns=now_ns, mtime_ns=now_ns, ctime_ns=now_ns)


def nearest_time(nanoseconds: int) -> int:
    """Return the time that metadata can hold and that is nearest: any of 31,000 years to either side of 1970."""
    return min(max(nanoseconds, _NANOSECONDS - 1 - _LAST_TIME_NS), _LAST_TIME_NS)


def to_metadata(attributes: Attributes) -> dict[str, str]:
    """Return the user metadata that carries `attributes`."""
    metadata = {
        "mode": str(attributes.mode),
        "uid": str(attributes.uid),
        "gid": str(attributes.gid),
        "mtime": _format_time(attributes.mtime_ns),
        "ctime": _format_time(attributes.ctime_ns),
        "atime": _format_time(attributes.atime_ns),
    }
    if attributes.rdev:
        metadata["rdev"] = str(attributes.rdev)
    return metadata | extended_attributes.to_metadata(attributes.xattrs)


def from_metadata(
    metadata: Mapping[str, str], *, directory: bool, stored_at_ns: int, defaults: Defaults
) -> Attributes:
    """Return the attributes that an object's user metadata carries, with defaults for what it lacks.

    `directory` tells whether the key is a directory's; the key decides, whatever type the mode names.
    """
    kind, permissions = (
        (stat.S_IFDIR, defaults.directory_mode) if directory else (stat.S_IFREG, defaults.file_mode)
    )
    mode = _integer(metadata, "mode")
    if mode is not None:
        permissions = stat.S_IMODE(mode)
        if not directory and stat.S_IFMT(mode) in _FILE_KINDS:
            kind = stat.S_IFMT(mode)
    mtime_ns = _parse_time(metadata.get("mtime"), stored_at_ns)
    return Attributes(
        mode=kind | permissions,
        uid=_or(_integer(metadata, "uid"), defaults.uid),
        gid=_or(_integer(metadata, "gid"), defaults.gid),
        atime_ns=_parse_time(metadata.get("atime"), mtime_ns),
        mtime_ns=mtime_ns,
        ctime_ns=_parse_time(metadata.get("ctime"), mtime_ns),
        rdev=_or(_integer(metadata, "rdev"), 0),
        xattrs=extended_attributes.from_metadata(metadata),
    )


def kind_of(metadata: Mapping[str, str]) -> int:
    """Return the type bits of the mode that metadata carries; 0 without one."""
    return stat.S_IFMT(_integer(metadata, "mode") or 0)


def unreadable(metadata: Mapping[str, str]) -> list[str]:
    """Return the names of attributes that metadata carries in a form that nobody can read."""
    return [name for name in _INTEGERS if name in metadata and _integer(metadata, name) is None] + [
        name for name in _TIMES if name in metadata and not _TIME.fullmatch(metadata[name])
    ]


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _integer(metadata: Mapping[str, str], name: str) -> int | None:
    text = metadata.get(name)
    if text is None or not text.isascii() or not text.isdecimal() or len(text) > 12:
        return None
    value = int(text)
    return value if value <= _INTEGERS[name] else None


def _format_time(nanoseconds: int) -> str:
    seconds, fraction = divmod(nanoseconds, _NANOSECONDS)
    return f"{seconds}.{fraction:09d}"


def _parse_time(text: str | None, default_ns: int) -> int:
    found = _TIME.fullmatch(text) if text is not None else None
    if found is None:
        return default_ns
    seconds, fraction = found.groups(default="")
    return int(seconds) * _NANOSECONDS + int(f"{fraction:0<9}"[:9])
