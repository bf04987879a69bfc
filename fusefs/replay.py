"""What the batches of a log add up to: for each inode its last state, and what has become of its bytes.

Pure but for the stage, where bytes are laid as they are read, so that a log of any size takes bounded memory. Bytes
of a file come from three places: from the log (`explicit`), from the version in the bucket, or from the parts of an
upload that nobody has completed. Which version the bucket has is not known while the log is read, nor which of the
records it is complete for. So the ranges of every record are kept, and `bytes_since` adds up those that are newer.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

from fusefs import extended_attributes
from fusefs.extents import Extent, ExtentSet
from fusefs.link_lists import list_of
from fusefs.log_records import (
    Batch,
    ContentRecord,
    InodeRecord,
    InUseRecord,
    LeftoverRecord,
    Position,
    UploadReference,
)
from fusefs.stage import StageFile
from fusefs.versions import Version

NewFile: TypeAlias = Callable[[], StageFile] | None
"""Where the bytes of one more file go; None is nowhere, for who wants to know only what there is of them."""

MakeRoom: TypeAlias = Callable[[], bool] | None
"""Asked where the disk is full; returns whether there may be some room now."""


class Sources(NamedTuple):
    """Where the bytes of a file are: in the log, or else in the version in the bucket."""

    explicit: ExtentSet
    stored: ExtentSet


@dataclass(frozen=True, slots=True)
class _Change:
    """What one record says of a file's bytes, without the bytes."""

    position: Position
    cut: int | None
    referred: tuple[Extent, ...]
    written: tuple[Extent, ...]
    has_upload: bool


@dataclass(eq=False, slots=True)
class Replayed:
    """An inode of the log."""

    #: The last that was said of it, but for its content: the bytes in there would keep their whole batch in memory.
    last: InodeRecord
    #: Every path that it had.
    paths: dict[tuple[bytes, ...], None] = field(default_factory=dict)
    #: Every version that the bucket had of it, the last one at the end; with the last batch that names each.
    versions: dict[Version, Position] = field(default_factory=dict)
    #: The last that was said of its size, bytes and upload; None if it is nothing but attributes and names.
    size: int | None = None
    upload: UploadReference | None = None
    #: Where objects of it are, or will be, that were uploaded: it may have had other names by then.
    upload_keys: set[str] = field(default_factory=set)
    #: Since when the log refers to that upload.
    upload_since: Position | None = None
    #: The versions that there were when the log last referred to an upload: that has become none of them.
    before_upload: frozenset[Version] = frozenset()
    file: StageFile | None = None
    #: The lists of names that it had when there were several, and the one of which the log has told last.
    lists: set[int] = field(default_factory=set)
    last_list: int | None = None
    #: The objects with extended attributes that it had, and nothing else.
    xattrs: dict[str, None] = field(default_factory=dict)
    _changes: list[_Change] = field(default_factory=list)

    def bytes_since(self, complete_to: Position) -> Sources:
        """Return where bytes are, if the version in the bucket is complete up to and with batch `complete_to`.

        `stored` has no end where the version was never cut since.
        """
        explicit, stored = ExtentSet(), ExtentSet([(0, _ENDLESS)])
        for change in self._changes:
            if change.position <= complete_to:
                continue
            if change.cut is not None:
                explicit.truncate(change.cut)
                stored.truncate(change.cut)
            explicit.remove_all(change.referred)
            for extent in change.referred:
                stored.add(*extent)
            for extent in change.written:
                explicit.add(*extent)
        return Sources(explicit, stored)

    def refers_to_upload_after(self, position: Position) -> bool:
        """Return whether a record behind `position` has an upload, which a recovery may have completed."""
        return any(change.has_upload for change in self._changes if change.position > position)

    def apply(self, position: Position, record: InodeRecord) -> None:
        """Take in the next record, but for the bytes."""
        self.last = replace(record, content=None)
        if record.path is not None:
            self.paths.pop(record.path, None)
            self.paths[record.path] = None
        if record.version is not None:
            self.versions.pop(record.version, None)
            self.versions[record.version] = position
        number = list_of(record.metadata)
        if number is not None:
            self.lists.add(number)
            self.last_list = number
        self._note_xattrs(record)
        if record.content is not None:
            self._apply_content(position, record.content)

    def _note_xattrs(self, record: InodeRecord) -> None:
        text = extended_attributes.from_metadata(record.metadata)
        own, now = extended_attributes.own_key(text), extended_attributes.object_key(text)
        self.xattrs |= dict.fromkeys(extended_attributes.left_keys(record.metadata))
        if own is not None:
            self.xattrs[own] = None
        elif now is not None:
            self.xattrs.pop(now, None)  # it has several names by now

    def _apply_content(self, position: Position, content: ContentRecord) -> None:
        self.size = content.size
        if content.upload is not None and (
            self.upload is None or content.upload.upload_id != self.upload.upload_id
        ):
            self.upload_since = position
        self.upload = content.upload
        if content.upload is not None:
            self.before_upload = frozenset(self.versions)
            self.upload_keys.add(content.upload.key)
        ranges = [Extent(start, start + len(data)) for start, data in content.written]
        self._changes.append(
            _Change(
                position, content.cut, content.referred, (*ranges, *content.zeros), content.upload is not None
            )
        )


def _lay(content: ContentRecord, file: StageFile) -> None:
    """Do to a file what a record tells of its bytes; again, if need be. Raises OSError of the local disk."""
    if content.cut is not None:
        file.truncate(content.cut)  # or what was there would come up again when the file grows
    for extent in content.zeros:
        file.punch_hole(extent.start, extent.length)
    for start, data in content.written:
        view = memoryview(data)
        while view:
            written = file.write(start, view)
            start, view = start + written, view[written:]


_ENDLESS = 1 << 62


class Replay:
    """The whole of a log."""

    def __init__(self, new_file: NewFile = None, make_room: MakeRoom = None) -> None:
        self._new_file = new_file
        self._make_room = make_room
        self.inodes: dict[str, Replayed] = {}
        self.leftovers: dict[Version, None] = {}
        #: Objects that are somebody's, and look as one that was another's; each with the last batch that says so.
        self._in_use: dict[Version, Position] = {}

    def apply(self, batch: Batch) -> None:
        """Take in the next batch. Raises OSError of the local disk."""
        for record in batch.records:
            if isinstance(record, LeftoverRecord):
                self.leftovers[record.version] = None
                continue
            if isinstance(record, InUseRecord):
                self.leftovers.pop(record.version, None)
                self._in_use[record.version] = batch.position
                continue
            known = self.inodes.get(record.log_id)
            if known is None:
                known = self.inodes[record.log_id] = Replayed(record)
            known.apply(batch.position, record)
            if record.content is not None and self._new_file is not None:
                if known.file is None:
                    known.file = self._new_file()
                self._lay(record.content, known.file)

    def _lay(self, content: ContentRecord, file: StageFile) -> None:
        while True:
            try:
                _lay(content, file)
                return
            except OSError as error:
                if error.errno != errno.ENOSPC or self._make_room is None or not self._make_room():
                    raise

    def is_in_use(self, version: Version) -> bool:
        """Return whether the log says that an object is somebody's by now who was not the first to have it."""
        return version in self._in_use

    def has(self, replayed: Replayed, version: Version) -> bool:
        """Return whether the bucket had the version of an inode, and nobody has got one since that looks the same."""
        told = replayed.versions.get(version)
        # Whoever has got it is told of in the same batch, or later; who had it before, and has it no more, was before.
        return told is not None and told >= self._in_use.get(version, told)
