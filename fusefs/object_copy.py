"""Copies inside the store, of objects of any size."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from backends.base import Metadata, MultipartUpload, ObjectStorage, PutMode
from backends.errors import StorageError
from backends.multipart import ABORT_TIMEOUT_SECONDS
from fusefs.content import Version
from fusefs.extents import ExtentSet
from fusefs.upload_plan import Multipart, plan

_log = logging.getLogger(__name__)


async def copy_object(
    storage: ObjectStorage, source: Version, target: str, *, mode: PutMode, metadata: Metadata
) -> Version:
    """Copy just this version, with other metadata. Raises `PreconditionFailed` (of either) and `NotFound`."""
    if source.size <= storage.limits.max_copy_size:
        etag = await storage.copy(source.key, target, if_match=source.etag, metadata=metadata, mode=mode)
        return Version(target, etag, source.size)
    limits = storage.limits
    planned = plan(source.size, ExtentSet(), source.size, part_size=limits.min_part_size, limits=limits)
    assert isinstance(planned, Multipart)
    async with begun_upload(storage, target, metadata) as upload:
        parts = [
            await upload.copy_part(
                part.number, source.key, part.start, part.end - part.start, if_match=source.etag
            )
            for part in planned.parts
        ]
        return Version(target, await upload.complete(parts, mode=mode), source.size)


@asynccontextmanager
async def begun_upload(
    storage: ObjectStorage, key: str, metadata: Metadata
) -> AsyncIterator[MultipartUpload]:
    """An upload that is aborted if the block fails."""
    upload = await storage.create_multipart(key, metadata=metadata)
    try:
        yield upload
    except BaseException:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + ABORT_TIMEOUT_SECONDS):
            try:
                await upload.abort()
            except StorageError as error:
                _log.warning("cannot abort upload %s of %r: %s", upload.upload_id, key, error)
        raise
