"""What the log tells: batches of records, as plain data (`fusefs.journal_format` has them as bytes).

Records are redo records of state: an inode as it was when the batch was captured, and of its bytes those that were
written since the batch before. Applying one twice, or to a version of the object that has it already, changes nothing.

The flags: `CONTINUED` is a batch that means something only together with the ones up to the next without it; `SEAL`
ends the log of an epoch, and has no records; `LEASED` says that the writer held the lease of the prefix.

`acknowledged` is the last sequence of which the writer knew, when it made the batch, that it and all before it were in
the store. So a reader tells a batch that somebody has removed from one that never arrived.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from backends.base import Data
from fusefs.extents import Extent
from fusefs.versions import Version

CONTINUED: Final = 1
SEAL: Final = 2
LEASED: Final = 4


class Position(NamedTuple):
    """The place of a batch in the log of a prefix: epochs follow each other, and in each the sequence has no gaps."""

    epoch: int
    sequence: int


NOWHERE: Final = Position(0, 0)
"""Before every batch."""

EVERYWHERE: Final = Position(1 << 64, 0)
"""Behind every batch."""


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part of an upload under way that holds bytes `start` to `end` of the file."""

    number: int
    etag: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadReference:
    """Bytes that are in the bucket already, as parts of an upload that nobody has completed."""

    key: str
    upload_id: str
    parts: tuple[StoredPart, ...]


class Written(NamedTuple):
    """Bytes that were written at `start`."""

    start: int
    data: Data


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentRecord:
    """What has become of a file's bytes since the record before, in this order: cut, referred to, written, sized."""

    size: int
    #: The least size that the file had since then; None if it was never cut.
    cut: int | None = None
    written: tuple[Written, ...] = ()
    #: Ranges that were written and hold nothing but zeros.
    zeros: tuple[Extent, ...] = ()
    #: Ranges that were written and that parts of `upload` hold.
    referred: tuple[Extent, ...] = ()
    #: All parts of the upload under way that are as the file is.
    upload: UploadReference | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InodeRecord:
    """An inode as it is."""

    #: Names the inode in the log and in the metadata of its objects, for as long as the log tells of it.
    log_id: str
    #: What st_ino says.
    number: int
    #: The names on the way to it from the root, which has none; None is no name any more.
    path: tuple[bytes, ...] | None
    #: Attributes in the form in which objects carry them.
    metadata: Mapping[str, str]
    #: What the bucket had of it, wherever it was.
    version: Version | None = None
    #: Of a symbolic link.
    target: bytes | None = None
    #: Of a regular file, if its bytes or size changed.
    content: ContentRecord | None = None
    #: Of a further name of an inode: the log id of that inode, of which the same commit tells.
    link: str | None = None
    #: Of a directory of which not everything is known: the prefix of the keys below which all of that is.
    source: str | None = None


@dataclass(frozen=True, slots=True)
class LeftoverRecord:
    """An object that belongs to nobody any more, and is to be deleted."""

    version: Version


@dataclass(frozen=True, slots=True)
class InUseRecord:
    """An object that belongs to somebody since then; an earlier record may have it as another's, or to be deleted."""

    version: Version


Record: TypeAlias = InodeRecord | LeftoverRecord | InUseRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One object of the log."""

    position: Position
    #: Batches before it are not needed any more.
    cutoff: Position
    #: The last sequence that was in the store, with all before it, when this one was made; 0 if that is not known.
    acknowledged: int = 0
    records: tuple[Record, ...] = ()
    flags: int = 0

    @property
    def is_seal(self) -> bool:
        """Whether it ends the log of its epoch."""
        return bool(self.flags & SEAL)

    @property
    def is_leased(self) -> bool:
        """Whether its writer held the lease, for certain: batches of earlier versions do not say so."""
        return bool(self.flags & LEASED)

    @property
    def is_continued(self) -> bool:
        """Whether it means something only together with the batches that follow."""
        return bool(self.flags & CONTINUED)
