"""Looks through a bucket, changing nothing, for what a mount does not show as it is and for what mounts have left.

One listing of everything, in bounded memory; attributes are looked at only when asked for, with a HEAD for each object.
Of a log in the bucket is looked at what a mount decides by which batches count; `fusefs recover` reads it all.
What a mount that is running now has under way (an upload, an unlinked file that is open) is found like what a dead
one has left: the bucket does not tell them apart.
"""

from __future__ import annotations

import enum
import re
import stat
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from backends.base import Metadata, ObjectInfo, ObjectStorage, iterate_pages
from backends.errors import NotFound
from fusefs import extended_attributes
from fusefs.attributes import kind_of, unreadable
from fusefs.errors import BatchDamaged, LeaseDamaged, LogDamaged
from fusefs.journal_format import position_of
from fusefs.keys import RESERVED_PREFIX, name_of, name_of_file_beside, stands_for_key
from fusefs.lease_acquisition import first_untold
from fusefs.lease_record import LeaseRecord
from fusefs.link_lists import LINK_KEY, LISTS_PREFIX, NUMBER_DIGITS, list_of
from fusefs.listed import MAX_SYMLINK_SIZE
from fusefs.log_reader import LOOKS, LogReader
from fusefs.log_repair import DAMAGED_PREFIX
from fusefs.object_writer import CONFLICTS_PREFIX
from fusefs.old_logs import LogPart, survey_logs
from fusefs.placement import DETOURS_PREFIX, ORPHANS_PREFIX, ROOT_MARKER
from fusefs.stored_lease import DISK_KEY, LEASE_KEY, FoundLease, look
from fusefs.tree_index import CRASH_KEY, INDEX_PREFIX, TIME_KEY
from fusefs.upload_notes import NOTES_PREFIX, TRIALS_PREFIX


class Kind(enum.Enum):
    """What a finding is; the value begins its line."""

    ESCAPED = "escaped"
    HIDDEN = "hidden"
    CONFLICT = "conflict"
    LEFTOVER = "leftover"
    FOREIGN = "foreign"
    UPLOAD = "upload"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing, the key that it is about, and what is to be known of it."""

    kind: Kind
    key: str
    reason: str

    def __str__(self) -> str:
        """Return one line, whatever is in the key."""
        return f"{self.kind.value} {self.key!r}: {self.reason}"


_LEFT_BY_MOUNTS: Final = {
    CONFLICTS_PREFIX: (
        Kind.CONFLICT,
        "ours, of a file that somebody else had changed; nothing reads it any more",
    ),
    ORPHANS_PREFIX: (
        Kind.LEFTOVER,
        "a file that was removed while it was open; needed until its mount has ended",
    ),
    DETOURS_PREFIX: (Kind.LEFTOVER, "a file on its way to another name; its mount did not finish"),
    TRIALS_PREFIX: (Kind.LEFTOVER, "a trial object of a mount that was beginning"),
    NOTES_PREFIX: (Kind.LEFTOVER, "says which uploads a mount has under way; needed until they have ended"),
    DAMAGED_PREFIX: (Kind.LEFTOVER, "set aside by `fusefs recover`; nothing reads it any more"),
}

_OF_FILES: Final = (ROOT_MARKER, CONFLICTS_PREFIX, ORPHANS_PREFIX, DETOURS_PREFIX)
"""What has attributes there."""

_IN_ITS_PLACE: Final = re.compile(
    "|".join(
        [
            *map(re.escape, (ROOT_MARKER, LEASE_KEY, DISK_KEY, CRASH_KEY, TIME_KEY)),
            re.escape(INDEX_PREFIX) + "[0-9a-f]{2}",
            re.escape(LISTS_PREFIX) + f"[0-9a-f]{{16,{NUMBER_DIGITS}}}",
            re.escape(extended_attributes.OBJECTS_PREFIX) + "([0-9a-f]{32}|[0-9a-f]{64})",
        ]
    )
)
"""What mounts keep under `.fusefs/`, but for the log."""


async def findings(storage: ObjectStorage, *, attributes: bool = False) -> AsyncIterator[Finding]:
    """Yield what there is to say, in the order of keys; of the log and of unfinished uploads at the end."""
    inspector = _Inspector()
    xattrs = _Xattrs()
    async for page in iterate_pages(storage):
        for info in page.objects:
            for finding in inspector.look_at(info):
                yield finding
            if attributes:
                for finding in await _look_at_attributes(storage, info, xattrs):
                    yield finding
    for finding in xattrs.findings() if attributes else ():
        yield finding
    damage = await _damage_of_log(storage) if inspector.has_terms else None
    if damage is not None:
        yield damage
    for upload in await storage.list_multipart_uploads():
        seconds = upload.initiated_ns // 1_000_000_000
        begun = f"begun {datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC" if seconds else "begun"
        yield Finding(
            Kind.UPLOAD,
            upload.key,
            f"{begun} and not completed: {upload.upload_id}",
        )


class _Inspector:
    """What keys and sizes tell, one after the other in their order."""

    def __init__(self) -> None:
        #: Objects whose keys are beginnings of the last one; those that are directories' names come before it.
        self._beginnings: list[str] = []
        #: Whether there is anything of a mount that is, or was, the only writer.
        self.has_terms = False

    def look_at(self, info: ObjectInfo) -> Iterator[Finding]:
        self.has_terms |= info.key == LEASE_KEY or position_of(info.key) is not None
        if info.key.startswith(RESERVED_PREFIX):
            finding = _look_at_reserved(info.key)
            if finding is not None:
                yield finding
            return
        yield from self._look_at_place(info.key)
        yield from _look_at_names(info.key)
        if info.key.endswith("/") and info.size:
            yield Finding(
                Kind.HIDDEN,
                info.key,
                f"a directory's marker has no content here, and this has {info.size} bytes",
            )

    def _look_at_place(self, key: str) -> Iterator[Finding]:
        while self._beginnings and not key.startswith(self._beginnings[-1]):
            self._beginnings.pop()
        while self._beginnings and key.startswith(f"{self._beginnings[-1]}/"):
            yield _beside_directory(self._beginnings.pop())
        if not key.endswith("/"):
            self._beginnings.append(key)


def _look_at_reserved(key: str) -> Finding | None:
    for prefix, (kind, reason) in _LEFT_BY_MOUNTS.items():
        if key.startswith(prefix):
            return Finding(kind, key, reason)
    if position_of(key) is not None or _IN_ITS_PLACE.fullmatch(key):
        return None
    return Finding(
        Kind.FOREIGN, key, "not of fusefs, which alone keeps things there; it is not shown, and stays"
    )


def _beside_directory(key: str) -> Finding:
    *above, segment = key.split("/")
    names = [*map(name_of, above), name_of_file_beside(segment)]
    path = b"/".join(name for name in names if name is not None).decode(errors="backslashreplace")
    if None in names:
        return Finding(Kind.HIDDEN, key, "there is a directory of the same name")
    return Finding(Kind.ESCAPED, key, f"there is a directory of the same name, and it is shown as {path!r}")


def _look_at_names(key: str) -> Iterator[Finding]:
    segments = key.removesuffix("/").split("/")
    names = [name for segment in segments if (name := name_of(segment)) is not None]
    if len(names) < len(segments):
        longest = max(len(segment.encode()) for segment in segments)
        yield Finding(Kind.HIDDEN, key, f"{longest} bytes between two slashes are too long for a name")
    elif any(map(stands_for_key, names)):
        path = b"/".join(names).decode(errors="backslashreplace")
        yield Finding(Kind.ESCAPED, key, f"it cannot be a path, and is shown as {path!r}")


async def _damage_of_log(storage: ObjectStorage) -> Finding | None:
    """Return what keeps a mount from the log, if all of that is in the bucket; one may write and end it meanwhile."""
    for _ in range(LOOKS):
        try:
            before = await look(storage)
            part = _part_in_bucket(storage, before.record if before is not None else None)
            damage = await _damage_of(part) if part is not None else None
            if damage is None or _is_same_term(before, await look(storage)):
                return damage
        except LeaseDamaged as error:
            return Finding(Kind.DAMAGED, LEASE_KEY, str(error))
        except LogDamaged:  # no batch of it is: those that are listed are gone when they are to be read
            continue
    return None  # it changes as quickly as we look: a mount is at it, and has read what it needs


async def _damage_of(part: LogPart) -> Finding | None:
    try:
        await survey_logs([part])
    except BatchDamaged as error:
        return Finding(
            Kind.DAMAGED, error.key, f"{error.why}; `fusefs recover` tells what can be saved of the log"
        )
    return None


def _part_in_bucket(storage: ObjectStorage, told: LeaseRecord | None) -> LogPart | None:
    """Return which part of the log is in the bucket, None if one elsewhere may say what of that is needed."""
    if told is None:
        return LogPart(LogReader(storage))
    if any(log.place for log in told.logs):
        return None
    return next(
        (LogPart(LogReader(storage), log.since_epoch, log.end) for log in told.logs),
        LogPart(LogReader(storage), first_untold(told, 0)),
    )


def _is_same_term(before: FoundLease | None, after: FoundLease | None) -> bool:
    """Return whether nobody has begun or ended a term between."""
    if before is None or after is None:
        return before is after
    return before.etag == after.etag or (
        before.record.epoch == after.record.epoch and not after.record.released
    )


class _Xattrs:
    """Objects that hold extended attributes, and objects that refer to them."""

    def __init__(self) -> None:
        self.kept: set[str] = set()
        self.referring: dict[str, str] = {}

    def findings(self) -> Iterator[Finding]:
        for key in sorted(self.kept - self.referring.keys()):
            yield Finding(Kind.LEFTOVER, key, "extended attributes that no object refers to")
        for key in sorted(self.referring.keys() - self.kept):
            yield Finding(
                Kind.DAMAGED, self.referring[key], f"its extended attributes are not there: {key!r}"
            )


async def _look_at_attributes(storage: ObjectStorage, info: ObjectInfo, xattrs: _Xattrs) -> list[Finding]:
    if info.key.startswith(extended_attributes.OBJECTS_PREFIX):
        xattrs.kept.add(info.key)
    if info.key.startswith(RESERVED_PREFIX) and not info.key.startswith(_OF_FILES):
        return []
    try:
        metadata = (await storage.head(info.key)).metadata or {}
    except NotFound:
        return []  # it is gone by now
    xattrs_key = extended_attributes.object_key(extended_attributes.from_metadata(metadata))
    if xattrs_key is not None:
        xattrs.referring[xattrs_key] = info.key
    return [
        *(Finding(Kind.DAMAGED, info.key, reason) for reason in _damages(info, metadata)),
        *_hidden_content(info, metadata),
    ]


def _damages(info: ObjectInfo, metadata: Metadata) -> Iterator[str]:
    kind = kind_of(metadata)
    for name in unreadable(metadata):
        yield f"the metadata {name!r} cannot be read: {metadata[name]!r}"
    if LINK_KEY in metadata and list_of(metadata) is None:
        yield f"the metadata {LINK_KEY!r} names no list of names: {metadata[LINK_KEY]!r}"
    if kind == stat.S_IFLNK and info.size > MAX_SYMLINK_SIZE:
        yield f"a symbolic link's target of {info.size} bytes is too long, and shown as a file"
    if kind == stat.S_IFDIR and not info.key.endswith("/") and not info.key.startswith(RESERVED_PREFIX):
        yield "a directory's key ends with a slash, and this is shown as a file"


def _hidden_content(info: ObjectInfo, metadata: Metadata) -> Iterator[Finding]:
    is_shown = kind_of(metadata) not in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
    if info.size and not is_shown and not info.key.endswith("/"):
        reason = f"a fifo, socket or device has no content here, and this has {info.size} bytes"
        yield Finding(Kind.HIDDEN, info.key, reason)
