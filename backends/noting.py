"""Tells which multipart uploads are under way, to somebody who can abort them after a crash, or an outage."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from backends.base import NO_METADATA, OVERWRITE, Metadata, MultipartUpload, ObjectStorage, Part, PutMode
from backends.errors import StorageError, UploadNotFound
from backends.intercepted import InterceptedStorage, InterceptedUpload, Request, T


class Note(Protocol):
    """What is remembered of one upload; no call may fail."""

    def begun(self, upload_id: str) -> None: ...

    def ended(self) -> None: ...

    def left(self, abort: Callable[[], Awaitable[None]]) -> None:
        """Is told that the upload was to be aborted, and may still be there: `abort` tries again."""
        ...


class Notes(Protocol):
    """Whoever remembers the uploads."""

    async def beginning(self, key: str) -> Note:
        """Return when a crash does not make it forgotten that an upload of `key` may begin. Raises `StorageError`."""
        ...


class NotingStorage(InterceptedStorage):
    """A store whose uploads are noted before they begin, and struck out when they were completed or aborted."""

    def __init__(self, inner: ObjectStorage, notes: Notes) -> None:
        super().__init__(inner)
        self._notes = notes

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        return await send()

    async def create_multipart(self, key: str, *, metadata: Metadata = NO_METADATA) -> MultipartUpload:
        note = await self._notes.beginning(key)
        try:
            upload = await self._inner.create_multipart(key, metadata=metadata)
        except StorageError as error:
            if not error.is_in_doubt:
                note.ended()
            raise
        note.begun(upload.upload_id)
        return _NotedUpload(upload, self, note)

    def _wrapped_upload(self, inner: MultipartUpload, metadata: Metadata | None) -> MultipartUpload:
        return inner  # another process began it, and has noted it


class _NotedUpload(InterceptedUpload):
    def __init__(self, inner: MultipartUpload, storage: NotingStorage, note: Note) -> None:
        super().__init__(inner, storage)
        self._note = note

    async def complete(self, parts: Sequence[Part], *, mode: PutMode = OVERWRITE) -> str:
        etag = await super().complete(parts, mode=mode)
        self._note.ended()
        return etag

    async def abort(self) -> None:
        try:
            await super().abort()
        except UploadNotFound:
            self._note.ended()
            raise
        except BaseException:
            self._note.left(self.abort)
            raise
        self._note.ended()
