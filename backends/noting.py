"""Tells which multipart uploads are under way, to somebody who can abort them after a crash."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from backends.base import OVERWRITE, Metadata, MultipartUpload, ObjectStorage, Part, PutMode
from backends.errors import UploadNotFound
from backends.intercepted import InterceptedStorage, InterceptedUpload, Request, T


class Notes(Protocol):
    """Whoever remembers the uploads; neither call may fail."""

    def begun(self, key: str, upload_id: str) -> None: ...

    def ended(self, upload_id: str) -> None: ...


class NotingStorage(InterceptedStorage):
    """A store whose uploads are noted when they begin, and struck out when they were completed or aborted."""

    def __init__(self, inner: ObjectStorage, notes: Notes) -> None:
        super().__init__(inner)
        self._notes = notes

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        return await send()

    def _wrapped_upload(self, inner: MultipartUpload, metadata: Metadata | None) -> MultipartUpload:
        if metadata is not None:  # begun by this process
            self._notes.begun(inner.key, inner.upload_id)
        return _NotedUpload(inner, self, self._notes)


class _NotedUpload(InterceptedUpload):
    def __init__(self, inner: MultipartUpload, storage: NotingStorage, notes: Notes) -> None:
        super().__init__(inner, storage)
        self._notes = notes

    async def complete(self, parts: Sequence[Part], *, mode: PutMode = OVERWRITE) -> str:
        etag = await super().complete(parts, mode=mode)
        self._notes.ended(self.upload_id)
        return etag

    async def abort(self) -> None:
        try:
            await super().abort()
        except UploadNotFound:
            self._notes.ended(self.upload_id)
            raise
        self._notes.ended(self.upload_id)
