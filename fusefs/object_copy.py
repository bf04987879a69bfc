"""Copies inside the store, of objects of any size."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from backends.base import MIB, Metadata, MultipartUpload, ObjectStorage, Part, PutMode
from backends.multipart import ABORT_TIMEOUT_SECONDS, abort_or_leave
from fusefs.versions import Version, read_version

FETCHED_PART: Final = 16 * MIB
"""Bytes of a part that the store cannot copy; of an object over 156 GiB they are longer, since 10,000 are the most."""


async def copy_object(
    storage: ObjectStorage, source: Version, target: str, *, mode: PutMode, metadata: Metadata
) -> Version:
    """Copy just this version, with other metadata. Raises `PreconditionFailed` (of either) and `NotFound`."""
    if source.size <= storage.limits.max_copy_size:
        etag = await storage.copy(source.key, target, if_match=source.etag, metadata=metadata, mode=mode)
        return Version(target, etag, source.size)
    length = longest_part(storage, source.size)
    async with begun_upload(storage, target, metadata) as upload:
        parts = [
            await copy_part(storage, upload, number, source, start, min(start + length, source.size))
            for number, start in enumerate(range(0, source.size, length), start=1)
        ]
        return Version(target, await upload.complete(parts, mode=mode), source.size)


def longest_part(storage: ObjectStorage, size: int) -> int:
    """Return how long the parts are of which an object of `size` bytes is made by `copy_part`, but for the last one."""
    if storage.capabilities.copy_part:
        return storage.limits.max_copy_size
    return max(FETCHED_PART, storage.limits.min_part_size, -(-size // storage.limits.max_part_number))


async def copy_part(
    storage: ObjectStorage, upload: MultipartUpload, number: int, source: Version, start: int, end: int
) -> Part:
    """Make a part of just this version's bytes, which are fetched where the store cannot copy them."""
    if storage.capabilities.copy_part:
        return await upload.copy_part(number, source.key, start, end - start, if_match=source.etag)
    return await upload.upload_part(number, await read_version(storage, source, start, end))


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
            await abort_or_leave(upload)
        raise
