"""What setattr(2) and its family, and O_TRUNC, make of attributes: times, owner, mode, set-ID bits. All is pure."""

from __future__ import annotations

import stat
from dataclasses import dataclass, replace
from typing import Any

from fusefs.attributes import Attributes, nearest_time


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeChanges:
    """What setattr(2)'s family asks for; None leaves a value as it is. Times are nanoseconds."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    #: Only of a kernel that keeps times: what it has shown already.
    ctime_ns: int | None = None


def with_times(attributes: Attributes, changes: AttributeChanges, now_ns: int) -> Attributes | None:
    """Return the attributes with the times that are to be set; None where none is.

    ctime moves as well, and alone where nothing is to be set (chown(2) to nobody).
    """
    given: dict[str, Any] = {
        name: nearest_time(value)
        for name in ("atime_ns", "mtime_ns", "ctime_ns")
        if (value := getattr(changes, name)) is not None
    }
    if given or changes == AttributeChanges():
        return replace(attributes.changed(now_ns), **given)
    return None


def with_owner_and_mode(
    attributes: Attributes, changes: AttributeChanges, now_ns: int, *, kernel_keeps_times: bool
) -> Attributes | None:
    """Return the attributes with owner, group and permissions that are to be set; None where none is. ctime moves."""
    if changes.mode is None and changes.uid is None and changes.gid is None:
        return None
    if changes.size is None or not kernel_keeps_times:
        attributes = attributes.changed(now_ns)  # else that was done where the kernel has done it
    if changes.mode is not None:
        attributes = replace(attributes, mode=attributes.kind | stat.S_IMODE(changes.mode))
    if changes.uid is not None:
        attributes = replace(attributes, uid=changes.uid)
    if changes.gid is not None:
        attributes = replace(attributes, gid=changes.gid)
    return attributes


def without_set_id_bits(attributes: Attributes, writer_uid: int) -> Attributes:
    """Return the attributes without what would let a program that somebody else writes run as its owner.

    For every change but O_TRUNC the kernel asks for it by itself.
    """
    mode = attributes.mode
    if writer_uid != 0 and mode & stat.S_ISUID:
        mode &= ~stat.S_ISUID
    if writer_uid != 0 and mode & stat.S_ISGID and mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return replace(attributes, mode=mode)
