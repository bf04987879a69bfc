"""Uploads that mounts have left that are gone: found by their notes (`fusefs.upload_notes`), aborted, forgotten.

    find      what the notes of others name, before this mount begins an upload of its own
    abort     once the logs of earlier terms have been recovered, which may need some of them

A mount is known to be gone if this one has taken the lease from it, or if its process has left the cache directory
without a lock. Others are watched: a note that has stayed the same for `WATCHED_SECONDS`, on the clock of this mount,
has nobody. Should that be wrong, because a mount was stopped for so long, it begins its upload anew. What keeps a log
may refer to uploads in it, so a mount without one ends only those of shared mounts.

What a mount tries at its very beginning (`probe`) is not noted. It takes seconds, so what is there for longer is
nobody's (`clear_trials`).

An upload without an id in its note is one that began, perhaps, just before the mount died. It is looked for under its
very key, among those that no other note can mean and that began after it was noted, by the clock of the store: the
store's time of the note, and the note's own word how long before that it was. Where there are several, each is left:
one of them is somebody else's.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from backends.base import ObjectInfo, ObjectStorage, UploadInfo, iterate_pages
from backends.errors import NotFound, PreconditionFailed, StorageError, UploadNotFound, is_outage
from fusefs.upload_notes import BEAT_SECONDS, NOTES_PREFIX, TRIALS_PREFIX, NotedUpload, UploadNote, Writer

_log = logging.getLogger(__name__)

WATCHED_SECONDS: Final = 3 * BEAT_SECONDS
"""So that one beat may be lost."""

TRIAL_SECONDS: Final = 120.0
"""Many times what a trial takes, with its patience for a store that does not answer."""

BEGUN_AFTER_SECONDS: Final = 600.0
"""How long after it was noted an upload may have begun: an outage lies in between at most."""

CLOCK_SECONDS: Final = 2.0
"""Stores round their times to seconds."""


@dataclass(frozen=True, slots=True)
class _Found:
    info: ObjectInfo
    note: UploadNote

    @property
    def mount_id(self) -> str:
        return self.info.key.removeprefix(NOTES_PREFIX)


@dataclass(frozen=True, slots=True)
class Orphans:
    """What one note names, and whether its mount is gone for sure."""

    note_key: str
    note_etag: str
    is_watched: bool
    #: Keys and ids.
    uploads: list[tuple[str, str]] = field(default_factory=list)


async def find_orphans(
    storage: ObjectStorage, writer: Writer, *, known_dead: Collection[str]
) -> list[Orphans]:
    """Return what other mounts have noted that this one may end, now or later; `writer` is this mount.

    To be called before the mount begins an upload, with the lease in its hands if it has one. Raises nothing that the
    store raises: a mount that cannot find orphans is a mount all the same.
    """
    try:
        found = await _notes(storage)
        orphans = []
        for each in found:
            is_dead = each.mount_id in known_dead or writer is each.note.writer is Writer.OWNER
            if writer is not Writer.SHARED or each.note.writer is Writer.SHARED:
                others = [other.note for other in found if other is not each]
                orphans.append(
                    Orphans(
                        each.info.key, each.info.etag, not is_dead, await _uploads_of(storage, each, others)
                    )
                )
    except StorageError as error:
        _log.warning("uploads that earlier mounts have left are not looked for: %s", error)
        return []
    return orphans


async def _notes(storage: ObjectStorage) -> list[_Found]:
    found: list[_Found] = []
    for info in [info async for page in iterate_pages(storage, NOTES_PREFIX) for info in page.objects]:
        try:
            read = await storage.get_range(info.key, if_match=info.etag)
            found.append(_Found(info, UploadNote.decode(read.data)))
        except (NotFound, PreconditionFailed):
            continue  # its mount lives, and is quicker
        except ValueError as error:
            _log.warning("the notes of uploads in %r cannot be read: %s", info.key, error)
    return found


async def _uploads_of(
    storage: ObjectStorage, found: _Found, others: Iterable[UploadNote]
) -> list[tuple[str, str]]:
    elsewhere = [noted for note in others for noted in note.uploads]
    named = {noted.upload_id for noted in (*found.note.uploads, *elsewhere)}
    uploads: list[tuple[str, str]] = []
    for noted in found.note.uploads:
        if noted.upload_id is not None:
            uploads.append((noted.key, noted.upload_id))
            continue
        candidates = [
            upload
            for upload in await storage.list_multipart_uploads(noted.key)
            if upload.key == noted.key and upload.upload_id not in named and _fits(upload, noted, found.info)
        ]
        if len(candidates) > 1:
            _log.warning("uploads of %r are left: which is an earlier mount's cannot be told", noted.key)
            continue
        uploads += [(upload.key, upload.upload_id) for upload in candidates]
    return list(dict.fromkeys(uploads))


def _fits(upload: UploadInfo, noted: NotedUpload, note: ObjectInfo) -> bool:
    """Return whether an upload can be the one that was about to begin."""
    noted_ns = note.last_modified_ns - round(noted.age_seconds * 1e9)
    after = (upload.initiated_ns - noted_ns) / 1e9
    return -CLOCK_SECONDS <= after <= BEGUN_AFTER_SECONDS


async def abort_orphans(storage: ObjectStorage, orphans: Iterable[Orphans]) -> None:
    """Abort what was found, and remove the notes of it; return when nothing is left to be watched."""
    async with trio.open_nursery() as nursery:
        for each in orphans:
            nursery.start_soon(_settle, storage, each)


async def _settle(storage: ObjectStorage, orphans: Orphans) -> None:
    try:
        if orphans.is_watched:
            await trio.sleep(WATCHED_SECONDS)
            if (await storage.head(orphans.note_key)).etag != orphans.note_etag:
                return  # its mount lives
        await _do_all([partial(_abort, storage, *upload) for upload in orphans.uploads])
        await storage.delete(orphans.note_key, if_match=orphans.note_etag)
    except (NotFound, PreconditionFailed):
        return  # somebody else was quicker
    except StorageError as error:
        _log.warning(
            "uploads that %s names are not aborted; the next mount will try: %s", orphans.note_key, error
        )


async def _do_all(calls: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Make all calls, also where one of them is refused. Raises that, or at once that nobody answers."""
    refusal: StorageError | None = None
    for call in calls:
        try:
            await call()
        except StorageError as error:
            if is_outage(error):  # for as long as one waits, each time
                raise
            refusal = error
    if refusal is not None:
        raise refusal


async def _abort(storage: ObjectStorage, key: str, upload_id: str) -> None:
    try:
        await storage.resume_multipart(key, upload_id).abort()
    except UploadNotFound:
        return
    _log.info("aborted an earlier mount's upload of %r", key)


async def _delete(storage: ObjectStorage, key: str, etag: str) -> None:
    with suppress(NotFound, PreconditionFailed):
        await storage.delete(key, if_match=etag)


async def clear_trials(storage: ObjectStorage) -> None:
    """Remove what is left of trials: a mount has died meanwhile, or the store did not answer. Raises nothing."""
    try:
        uploads, objects = await _trials(storage)
        if not (uploads or objects):
            return
        await trio.sleep(TRIAL_SECONDS)
        uploads_now, objects_now = await _trials(storage)
        aborts = [partial(_abort, storage, *upload) for upload in uploads & uploads_now]
        await _do_all([*aborts, *(partial(_delete, storage, *each) for each in objects & objects_now)])
    except StorageError as error:
        _log.info("what is left of trials stays: %s", error)


async def _trials(storage: ObjectStorage) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Return the uploads, by key and id, and the objects, by key and ETag."""
    uploads = {(each.key, each.upload_id) for each in await storage.list_multipart_uploads(TRIALS_PREFIX)}
    pages = iterate_pages(storage, TRIALS_PREFIX)
    return uploads, {(each.key, each.etag) async for page in pages for each in page.objects}
