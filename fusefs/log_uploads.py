"""Uploads that the log refers to and that nobody has completed: objects are made of them.

An upload can become an object under one key only. What is under that key already is of one of four kinds. An older
object of the same file is replaced, and what it has behind the parts is carried over. One that belongs to nobody any
more is replaced. One of another inode, which has left that name and whose object had not followed yet, is moved out
of the way, to where the mount looks for it. And one that somebody else has put there is kept under
`.fusefs/conflicts/`; where the file has another name by now, they get it back. Each is there as a copy before it is
replaced, so a recovery may end at any moment.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from backends.base import (
    CREATE_ONLY,
    OVERWRITE,
    IfMatch,
    ObjectInfo,
    ObjectStorage,
    Part,
    PutMode,
)
from backends.errors import InvalidPart, NotFound, PreconditionFailed, UploadNotFound
from fusefs.errors import BatchDamaged, LogDamaged
from fusefs.extents import ExtentSet
from fusefs.journal_format import batch_key
from fusefs.log_objects import OwnObject, detour_key, key_of, marked, version_of
from fusefs.log_records import NOWHERE, StoredPart, UploadReference
from fusefs.object_copy import FETCHED_PART, copy_object, copy_part, longest_part
from fusefs.object_writer import conflict_key
from fusefs.replay import Replayed, Sources
from fusefs.versions import Version, read_version

_log = logging.getLogger(__name__)


class LogUploads:
    """The uploads of all inodes that a log tells of, whose objects are `found`, the newest of each first."""

    def __init__(
        self,
        storage: ObjectStorage,
        found: dict[Replayed, list[OwnObject]],
        leftovers: Iterable[Version],
    ) -> None:
        self._storage = storage
        self._found = found
        self._leftovers = frozenset(leftovers)

    async def complete(self, replayed: Replayed) -> None:
        """Make an object of what the log refers to, if it does, and note it as the inode's newest.

        Raises `BatchDamaged` where parts are not there, and what the store raises.
        """
        upload = needed_upload(replayed)
        if upload is None:
            return
        if not await self._is_under_way(upload) and await self._has_become_object(replayed, upload):
            return
        found = self._found[replayed]
        replaced = next((each.version for each in found if each.version.key == upload.key), None)
        mode: PutMode
        theirs: ObjectInfo | None = None
        if replaced is not None:
            mode = IfMatch(replaced.etag)
        else:
            mode, theirs = await self._make_way(upload.key, replayed)
        base = found[0].version if found else None
        completed = await self._complete(replayed, upload, base, mode)
        if theirs is not None and replayed.last.path is not None and key_of(replayed.last.path) != upload.key:
            own = await self._give_back(completed, theirs, replayed)
        else:
            own = [completed]
        others = [each for each in self._found[replayed] if each.version.key != upload.key]
        self._found[replayed] = own + others

    async def find_lost(self, replayed: Replayed) -> str | None:
        """Return what is to be said of an upload that somebody else has aborted; None if there is none."""
        upload = needed_upload(replayed)
        if upload is None or await self._is_under_way(upload):
            return None
        return None if await self._has_become_object(replayed, upload) else _what_is_lost(replayed, upload)

    async def _is_under_way(self, upload: UploadReference) -> bool:
        begun = await self._storage.list_multipart_uploads(upload.key)
        return any(each.upload_id == upload.upload_id for each in begun)

    async def _has_become_object(self, replayed: Replayed, upload: UploadReference) -> bool:
        """Return whether an upload that is gone was completed; its object is the inode's newest from then on.

        That is one which was not there before the upload, or looks like one that was, where a file was written again
        as it had been: of that it does not matter which of the two it is.
        """
        found = self._found[replayed]
        for each in found:
            is_new = each.version not in replayed.before_upload
            if is_new or await self._has_bytes_of(upload, each.version):
                self._found[replayed] = [each, *(other for other in found if other is not each)]
                return True
        return False

    async def _has_bytes_of(self, upload: UploadReference, version: Version) -> bool:
        """Return whether an object under the key of an upload has the bytes of its parts, whose ETags tell them."""
        if version.key != upload.key or version.size < upload.parts[-1].end:
            return False
        for part in upload.parts:
            digest = hashlib.md5(usedforsecurity=False)
            for start, end in _pieces(part.start, part.end, FETCHED_PART):
                stored = await self._storage.get_range(version.key, start, end - start, if_match=version.etag)
                digest.update(stored.body)
            if digest.hexdigest() != part.etag:
                return False
        return True

    async def _complete(
        self, replayed: Replayed, upload: UploadReference, base: Version | None, mode: PutMode
    ) -> OwnObject:
        resumed = self._storage.resume_multipart(upload.key, upload.upload_id)
        sources = replayed.bytes_since(NOWHERE)
        parts: list[Part] = []
        end = 0
        try:
            for part in upload.parts:
                # Parts that were being replaced, or were still on their way.
                for number, start, stop in _between(parts, end, part):
                    data = await self._missing_part(replayed, sources, base, start, stop)
                    parts.append(await resumed.upload_part(number, data))
                parts.append(Part(number=part.number, etag=part.etag, size=part.end - part.start))
                end = part.end
            whole = _end_of_stored(replayed, sources, base)
            for start, stop in _pieces(end, whole, longest_part(self._storage, whole)):
                assert base is not None
                number = parts[-1].number + 1
                parts.append(await copy_part(self._storage, resumed, number, base, start, stop))
                end = stop
            etag = await resumed.complete(parts, mode=mode)
        except (UploadNotFound, InvalidPart) as error:
            since = replayed.upload_since or NOWHERE
            raise BatchDamaged(
                batch_key(since), since, f"{_what_is_lost(replayed, upload)} ({error})"
            ) from error
        return OwnObject(Version(upload.key, etag, end), NOWHERE)

    # What is in the way

    async def _make_way(self, key: str, replayed: Replayed) -> tuple[PutMode, ObjectInfo | None]:
        """See to it that what is under the key can be replaced.

        Returns the condition for that, and where somebody else's is kept if it is theirs.
        """
        try:
            info = await self._storage.head(key)
        except NotFound:
            return CREATE_ONLY, None
        theirs = None
        owner = self._owner_of(version_of(info))
        if owner is not None:
            await self._move_aside(owner, info)
        elif version_of(info) not in self._leftovers:
            theirs = await self._keep_theirs(info, replayed)
        return IfMatch(info.etag), theirs

    def _owner_of(self, version: Version) -> Replayed | None:
        owners = (
            replayed
            for replayed, found in self._found.items()
            if any(each.version == version for each in found)
        )
        return next(owners, None)

    async def _move_aside(self, owner: Replayed, info: ObjectInfo) -> None:
        """Let the object wait elsewhere, if there is an inode that needs it."""
        version = version_of(info)
        newest, *older = found = self._found[owner]
        if newest.version != version or owner.last.path is None:
            self._found[owner] = [each for each in found if each.version != version]
            return
        metadata = marked(owner, info.metadata or {})
        moved = await copy_object(
            self._storage, version, detour_key(owner), mode=OVERWRITE, metadata=metadata
        )
        self._found[owner] = [OwnObject(moved, newest.complete_to), *older]

    async def _keep_theirs(self, info: ObjectInfo, replayed: Replayed) -> ObjectInfo:
        kept = conflict_key(info.key, f"{replayed.last.log_id}-{info.etag}", self._storage.limits)
        with suppress(PreconditionFailed):  # a recovery that was killed has copied it
            await copy_object(
                self._storage, version_of(info), kept, mode=CREATE_ONLY, metadata=info.metadata or {}
            )
        _log.error(
            "%r was changed by somebody else before its upload was completed; theirs is kept as %r",
            info.key,
            kept,
        )
        return await self._storage.head(kept)

    async def _give_back(
        self, completed: OwnObject, theirs: ObjectInfo, replayed: Replayed
    ) -> list[OwnObject]:
        """Let somebody else have their object again under a name that the file had only when its upload began.

        Ours waits elsewhere; returns what is ours then, the newest first. If a recovery ends before that, theirs stays
        where it is kept.
        """
        version = completed.version
        metadata = (await self._storage.head(version.key)).metadata or {}
        moved = await copy_object(
            self._storage, version, detour_key(replayed), mode=OVERWRITE, metadata=marked(replayed, metadata)
        )
        try:
            await copy_object(
                self._storage,
                version_of(theirs),
                version.key,
                mode=IfMatch(version.etag),
                metadata=theirs.metadata or {},
            )
        except (NotFound, PreconditionFailed):  # somebody has changed one of the two since then
            return [OwnObject(moved, completed.complete_to), completed]
        with suppress(NotFound, PreconditionFailed):
            await self._storage.delete(theirs.key, if_match=theirs.etag)
        _log.warning("%r is theirs again: the file is %r by now", version.key, replayed.last.path)
        return [OwnObject(moved, completed.complete_to)]

    # Bytes that are in no part

    async def _missing_part(
        self, replayed: Replayed, sources: Sources, base: Version | None, start: int, end: int
    ) -> bytes:
        """Return bytes that the log has, and between them those that the object had before the upload."""
        data = bytearray()
        if base is not None and start < min(end, base.size) and not sources.explicit.covers(start, end):
            data += await read_version(self._storage, base, start, min(end, base.size))
        of_base = ExtentSet([(start, start + len(data))])
        data += bytes(end - start - len(data))
        for gap in sources.explicit.gaps(start, end):
            if not (of_base.covers(*gap) and sources.stored.covers(*gap)):
                raise LogDamaged(
                    f"bytes {gap.start} to {gap.end} of {replayed.last.path!r} are neither in the log nor in a part"
                )
        for extent in sources.explicit.intersect(start, end):
            assert replayed.file is not None
            data[extent.start - start : extent.end - start] = replayed.file.read(extent.start, extent.length)
        return bytes(data)


def needed_upload(replayed: Replayed) -> UploadReference | None:
    """Return the upload of the last record, if its parts may have bytes that the log itself does not have."""
    upload = replayed.upload
    if upload is None or not upload.parts or replayed.size is None or replayed.last.path is None:
        return None
    explicit, stored = replayed.bytes_since(NOWHERE)
    stored.truncate(min(replayed.size, upload.parts[-1].end))
    for extent in explicit:
        stored.remove(*extent)
    return upload if stored else None


def _what_is_lost(replayed: Replayed, upload: UploadReference) -> str:
    """Return what is to be said of an upload that is gone, and was not completed."""
    return (
        f"bytes of {replayed.last.path!r} were in upload {upload.upload_id} of {upload.key!r}, which is gone"
    )


def _end_of_stored(replayed: Replayed, sources: Sources, base: Version | None) -> int:
    """Return where that ends which nothing but the object in the bucket has."""
    if base is None or replayed.size is None:
        return 0
    stored = sources.stored.copy()
    stored.truncate(min(base.size, replayed.size))
    for extent in sources.explicit:
        stored.remove(*extent)
    return stored.end


def _between(parts: Sequence[Part], end: int, following: StoredPart) -> Iterator[tuple[int, int, int]]:
    """Yield what is missing between the last of some parts, which ends at `end`, and a following one.

    It is as many parts as there were, so that each is as small as a part is.
    """
    first = parts[-1].number + 1 if parts else 1
    count = following.number - first
    for number in range(first, following.number):
        length = -(-(following.start - end) // count)
        if length > 0:
            yield number, end, end + length
        end, count = end + length, count - 1
    if end < following.start:
        raise LogDamaged(f"part {following.number} of an upload follows none that ends before it")


def _pieces(start: int, end: int, longest: int) -> Iterator[tuple[int, int]]:
    while start < end:
        stop = min(start + longest, end)
        yield start, stop
        start = stop
