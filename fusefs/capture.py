"""What the log is told of an inode: its state, and of its bytes those that the log has not been given yet.

Capturing reads and changes nothing; `note_captured` says that the log has it. Between the two there is no await, so
that all inodes of one batch are as they were at one moment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fusefs import extended_attributes
from fusefs.attributes import to_metadata
from fusefs.content import Content
from fusefs.extents import Extent, ExtentSet
from fusefs.inodes import Alias, Directory, File, Inode, Symlink
from fusefs.link_lists import link_metadata
from fusefs.log_records import ContentRecord, InodeRecord, UploadReference, Written


@dataclass(frozen=True, slots=True)
class Capture:
    """A record of an inode, and which of its unlogged bytes are in it."""

    inode: Inode
    record: InodeRecord
    covered: tuple[Extent, ...] = ()
    size_bytes: int = 0


def bytes_to_carry(inode: Inode) -> int:
    """Return how many bytes of an inode a record would have to carry, at most: holes are told and not carried."""
    if not isinstance(inode, File) or not inode.linked:
        return 0
    carried = _to_carry(inode.content)
    return sum(inode.content.staged_length(*extent) for extent in carried)


def is_behind(inode: Inode) -> bool:
    """Return whether the log lacks anything of an inode's bytes or size."""
    return isinstance(inode, File) and inode.linked and _is_behind(inode.content)


def has_ended_upload(inode: Inode) -> bool:
    """Return whether the log refers to an upload of an inode that is under way no more."""
    if not isinstance(inode, File) or not inode.linked:
        return False
    return inode.content.is_referred and inode.content.upload is None


def capture(inode: Inode, *, room: int) -> Capture:
    """Return a record of an inode with at most `room` of its unlogged bytes.

    Raises OSError of the local disk, which names the file.
    """
    content: ContentRecord | None = None
    covered: list[Extent] = []
    if isinstance(inode, File) and _has_content_to_tell(inode):
        try:
            content, covered = _capture_content(inode.content, room)
        except OSError as error:
            raise OSError(error.errno, f"bytes of {inode.path_key!r} cannot be read: {error}") from error
    record = InodeRecord(
        log_id=inode.log_id,
        number=inode.number,
        path=tuple(inode.path) if inode.linked else None,
        metadata=_metadata(inode),
        version=inode.version,
        target=inode.target if isinstance(inode, Symlink) else None,
        content=content,
        link=inode.of.log_id if isinstance(inode, Alias) else None,
        source=inode.source if isinstance(inode, Directory) else None,
    )
    size = sum(len(written.data) for written in content.written) if content else 0
    return Capture(inode, record, tuple(covered), size)


def note_captured(captured: Capture) -> None:
    """Say that the log has what was captured."""
    inode = captured.inode
    if not isinstance(inode, File) or captured.record.content is None:
        return
    content = inode.content
    content.unlogged.remove_all(captured.covered)
    content.cut = None
    content.logged_size = captured.record.content.size
    content.is_referred = captured.record.content.upload is not None
    if content.upload is not None and content.upload.parts:
        content.upload.logged.update(content.upload.parts)
        content.upload.told_under = inode.path_key


def _metadata(inode: Inode) -> dict[str, str]:
    """Return what an object's metadata would say; what it would only refer to is not in the bucket yet."""
    attributes = inode.subject.attributes
    now = extended_attributes.object_key(attributes.xattrs)
    left = extended_attributes.left_metadata(key for key in inode.stored_xattrs if key != now)
    others = link_metadata(inode) | left
    if extended_attributes.is_reference(attributes.xattrs):
        return to_metadata(attributes) | others
    text = {"xattr": attributes.xattrs} if attributes.xattrs else {}
    return to_metadata(replace(attributes, xattrs="")) | text | others


def _is_behind(content: Content) -> bool:
    return bool(content.unlogged) or content.cut is not None or content.size != content.logged_size


def _has_content_to_tell(file: File) -> bool:
    return is_behind(file) or _is_uploaded_elsewhere(file) or has_ended_upload(file)


def _is_uploaded_elsewhere(file: File) -> bool:
    """Whether the object will appear under a name that the file has no more: nothing else may tell which that is."""
    upload = file.content.upload
    return file.linked and upload is not None and upload.key != file.path_key


def _capture_content(content: Content, room: int) -> tuple[ContentRecord, list[Extent]]:
    upload = content.upload
    referred = _referable(content)
    written, zeros = _read(content, _to_carry(content), room)
    record = ContentRecord(
        size=content.size,
        cut=content.cut,
        written=tuple(written),
        zeros=tuple(zeros),
        referred=tuple(referred),
        upload=UploadReference(
            key=upload.key,
            upload_id=upload.upload_id,
            parts=tuple(part for _, part in sorted(upload.parts.items())),
        )
        if upload and upload.parts
        else None,
    )
    ranges = [Extent(start, start + len(data)) for start, data in written]
    return record, [*referred, *ranges, *zeros]


def _to_carry(content: Content) -> ExtentSet:
    """Return the unlogged ranges that no part holds, to be read only."""
    referable = _referable(content)
    if not referable:
        return content.unlogged
    carried = content.unlogged.copy()
    carried.remove_all(referable)
    return carried


def _referable(content: Content) -> list[Extent]:
    """Return the unlogged ranges that parts in the bucket hold as they are."""
    if content.upload is None:
        return []
    return [
        extent
        for part in content.upload.parts.values()
        if not content.unsent.intersect(part.start, part.end)
        for extent in content.unlogged.intersect(part.start, part.end)
    ]


def _read(content: Content, wanted: ExtentSet, room: int) -> tuple[list[Written], list[Extent]]:
    """Return the bytes of `wanted`, from the front, as many as there is room for; zeros take none."""
    written: list[Written] = []
    zeros: list[Extent] = []
    for extent in wanted:
        for piece, data in content.staged(*extent):
            if data is None:
                zeros.append(piece)
                continue
            if len(data) > room:
                return written, zeros
            room -= len(data)
            written.append(Written(piece.start, data))
    return written, zeros
