"""Which multipart uploads a mount has under way, in an object `.fusefs/uploads/MOUNT` of its own.

An upload that is neither completed nor aborted costs its owner money for ever, and S3 does not say who began it. So
a mount notes each one before it begins, and those who find the note of a dead mount (`fusefs.upload_orphans`) abort
what it names, and nothing else: uploads of other programs, and of mounts that live, are not touched.

The key is noted before the request that begins an upload, in a PUT that all who begin at that time share; the id
follows in the background, with the next PUT. What has no id yet when its mount dies is found by its key and its time.
As long as anything is noted the object changes every `BEAT_SECONDS`, so that others see that the mount lives.

What an outage has kept a mount from aborting it aborts itself, later: it may live for months.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final

import trio

from backends.base import ObjectStorage
from backends.errors import StorageError
from fusefs.keys import RESERVED_PREFIX

_log = logging.getLogger(__name__)

TRIALS_PREFIX: Final = f"{RESERVED_PREFIX}probe/"
"""Where `probe` of the seam tries what the store can do, an upload included, before there are notes."""

NOTES_PREFIX: Final = f"{RESERVED_PREFIX}uploads/"

BEAT_SECONDS: Final = 300.0
"""A small PUT in this time costs nothing beside the uploads that it is about."""

END_SECONDS: Final = 10.0
"""How long the last word of the notes may hold up the end of a mount."""

FORMAT_VERSION: Final = 1

_MAX_AGE_SECONDS: Final = 1e9
"""Thirty years: what says more, or infinity, is no time."""


class Writer(StrEnum):
    """What the mount is that wrote a note: it says who may end its uploads."""

    #: It has the lease, and a log that may refer to uploads.
    OWNER = "owner"
    #: It has a log and no lease.
    UNLEASED = "unleased"
    SHARED = "shared"


@dataclass(frozen=True, slots=True)
class NotedUpload:
    """An upload that may be there; its id is None as long as it is not known that it has begun."""

    key: str
    upload_id: str | None
    #: Since when it is noted, as of the writing of the note.
    age_seconds: float


@dataclass(frozen=True, slots=True)
class UploadNote:
    """What the object says."""

    writer: Writer
    #: Makes every state of the object another one.
    beat: int
    uploads: tuple[NotedUpload, ...]

    def encode(self) -> bytes:
        return (json.dumps({"version": FORMAT_VERSION, **asdict(self)}) + "\n").encode()

    @classmethod
    def decode(cls, data: bytes) -> UploadNote:
        """Return what `encode` has written. Raises ValueError for anything else."""
        try:
            document = json.loads(data)
            if document["version"] != FORMAT_VERSION:
                raise ValueError(f"its format is {document['version']}")
            return cls(
                writer=Writer(document["writer"]),
                beat=int(document["beat"]),
                uploads=tuple(map(_noted, document["uploads"])),
            )
        except (KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError("it is damaged, or not of fusefs") from error


def _noted(document: dict[str, object]) -> NotedUpload:
    key, upload_id, age = document["key"], document["upload_id"], document["age_seconds"]
    if not isinstance(key, str) or not isinstance(upload_id, str | None) or not isinstance(age, int | float):
        raise TypeError
    if not 0 <= age <= _MAX_AGE_SECONDS:
        raise ValueError(f"an upload of {age} seconds")
    return NotedUpload(key, upload_id, age)


class _Entry:
    """One upload in the notes."""

    def __init__(self, notes: UploadNotes, key: str) -> None:
        self._notes = notes
        self.key = key
        self.upload_id: str | None = None
        self.since = trio.current_time()
        #: Aborts the upload, if that has failed.
        self.abort: Callable[[], Awaitable[None]] | None = None

    def begun(self, upload_id: str) -> None:
        self.upload_id = upload_id
        self._notes.tell()

    def ended(self) -> None:
        self._notes.forget(self)

    def left(self, abort: Callable[[], Awaitable[None]]) -> None:
        self.abort = abort


class UploadNotes:
    """The notes of one mount; made by `open_notes`. `storage` is the mounted prefix."""

    def __init__(self, storage: ObjectStorage, mount_id: str, writer: Writer) -> None:
        self._storage = storage
        self._key = NOTES_PREFIX + mount_id
        self._writer = writer
        #: In the order in which they began.
        self._entries: dict[_Entry, None] = {}
        #: Whoever writes the object has it.
        self._turn = trio.Lock()
        self._changes = 0
        self._saved = 0
        self._beat = 0
        #: How many attempts to write the object have failed, and why the last one did.
        self._failures = 0
        self._failure: StorageError | None = None
        self._wake = trio.Event()

    async def beginning(self, key: str) -> _Entry:
        """As `backends.noting.Notes`."""
        entry = _Entry(self, key)
        self._entries[entry] = None
        self._changes += 1
        try:
            await self._save()
            # Or else the upload would not begin, and nobody end its note.
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            self.forget(entry)
            raise
        return entry

    def tell(self) -> None:
        """Let the object say soon what is known now."""
        self._changes += 1
        self._wake.set()

    def forget(self, entry: _Entry) -> None:
        """Leave an upload out of what is written from now on; nobody is harmed by its staying there till then."""
        self._entries.pop(entry, None)
        self._changes += 1

    async def run(self) -> None:
        """Write what nobody waits for, and show that the mount lives, for ever."""
        while True:
            with trio.move_on_after(BEAT_SECONDS) as waited:
                await self._wake.wait()
            self._wake = trio.Event()
            if waited.cancelled_caught:
                if not self._entries:
                    continue
                self._changes += 1
            try:
                await self._save()
            except StorageError as error:
                _log.warning("the uploads under way are not noted in %s: %s", self._key, error)

    async def abort_left(self) -> None:
        """Abort again what could not be aborted, for ever."""
        while True:
            await trio.sleep(BEAT_SECONDS)
            for abort in [entry.abort for entry in self._entries if entry.abort is not None]:
                try:
                    await abort()
                except StorageError as error:
                    _log.debug("aborting an upload again: %s", error)

    async def finish(self) -> None:
        """Leave a note only if something is left. Raises what the store raises."""
        if self._entries:
            await self._save()
        elif self._beat:
            await self._storage.delete(self._key)

    async def _save(self) -> None:
        """Return when the object says what is known now."""
        wanted, failures = self._changes, self._failures
        async with self._turn:
            if self._saved >= wanted:
                return
            if self._failures > failures and self._failure is not None:
                raise self._failure  # or else each of those who wait would wait for `retry_timeout` again
            saved = self._changes
            self._beat += 1
            try:
                await self._storage.put(self._key, self._note().encode())
            except StorageError as error:
                self._failures, self._failure = self._failures + 1, error
                raise
            self._saved = saved

    def _note(self) -> UploadNote:
        now = trio.current_time()
        return UploadNote(
            self._writer,
            self._beat,
            tuple(NotedUpload(entry.key, entry.upload_id, now - entry.since) for entry in self._entries),
        )


@asynccontextmanager
async def open_notes(storage: ObjectStorage, mount_id: str, writer: Writer) -> AsyncIterator[UploadNotes]:
    """Keep notes for the block; after it, there are some only of uploads that it has left."""
    notes = UploadNotes(storage, mount_id, writer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notes.run)
        nursery.start_soon(notes.abort_left)
        try:
            yield notes
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + END_SECONDS):
                try:
                    await notes.finish()
                except StorageError as error:
                    _log.warning("the notes of uploads could not be ended: %s", error)
