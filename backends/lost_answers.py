"""Did it take effect? What a conditional mutation left behind whose answer was lost.

Doing most calls twice is doing them once. A conditional mutation is different: the second attempt meets the work of
the first and reports a conflict. Each function here looks at the store after such a conflict and returns what the
call would have returned, or None if the conflict is with somebody else.

The limits of looking: two writers that put the same bytes with the same metadata under the same condition cannot be
told apart, so whoever needs to know which of them won (a lease, a journal) puts something unique into the bytes. And
where somebody has replaced our work before we look, it is a conflict like any other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from backends.base import (
    MIB,
    Data,
    IfMatch,
    Metadata,
    MultipartUpload,
    ObjectInfo,
    ObjectStorage,
    Part,
    PutMode,
    UploadInfo,
)
from backends.errors import NotFound, PreconditionFailed
from backends.rules import have_md5_etags, multipart_etag

_COMPARED_AT_ONCE: Final = 8 * MIB

_ROUNDED_NS: Final = 1_000_000_000
"""Stores tell when an upload was begun in seconds."""


async def etag_of_put(storage: ObjectStorage, key: str, data: Data, metadata: Metadata) -> str | None:
    """Return the ETag of the object under `key` if it holds `data` and `metadata`."""
    found = await _find(storage, key)
    if found is None or found.size != len(data) or found.metadata != metadata:
        return None
    # An ETag is the MD5 of the bytes only for some kinds of encryption, so another one proves nothing.
    if found.etag == hashlib.md5(data, usedforsecurity=False).hexdigest():
        return found.etag
    try:
        stored = await storage.get_range(key, if_match=found.etag)
    except (NotFound, PreconditionFailed):
        return None
    return found.etag if stored.data == data else None


async def etag_of_copy(
    storage: ObjectStorage, source: str, target: str, *, if_match: str | None, metadata: Metadata | None
) -> str | None:
    """Return the ETag of `target` if it is a copy of `source` as it is now (of the version `if_match`, if given).

    A copy of an object onto itself has replaced the source, so only its metadata can be compared.
    """
    copy = await _find(storage, target)
    if source == target:
        return copy.etag if copy is not None and copy.metadata == metadata else None
    original = await _find(storage, source)
    if copy is None or original is None or if_match not in (None, original.etag):
        return None
    if copy.metadata != (original.metadata if metadata is None else metadata):
        return None
    return copy.etag if await _same_bytes(storage, original, copy) else None


async def is_deleted(storage: ObjectStorage, key: str) -> bool | None:
    """Return True if there is no object under `key`."""
    return True if await _find(storage, key) is None else None


async def etag_of_completion(
    storage: ObjectStorage,
    upload: MultipartUpload,
    parts: Sequence[Part],
    *,
    metadata: Metadata | None,
    mode: PutMode,
) -> str | None:
    """Return the ETag of the object if `upload` has become it: the parts fit the object, and the upload is gone.

    They fit if they make up its size and its ETag. Where a store computes ETags otherwise, it must be none that was
    to be replaced, must end with the number of parts, and the `metadata` of the upload, if known, must be its own.

    A store that dies just then may have both (SeaweedFS): the ETag proves it, too. That upload is left alone, because
    its parts may be what the object consists of.
    """
    found = await _find(storage, upload.key)
    if found is None or found.size != sum(part.size for part in parts):
        return None
    is_equal = have_md5_etags(parts) and found.etag == multipart_etag(parts)
    begun = await storage.list_multipart_uploads(upload.key)
    if any(other.upload_id == upload.upload_id for other in begun):
        return found.etag if is_equal and metadata in (None, found.metadata) else None
    if is_equal:
        return found.etag
    is_replaceable = isinstance(mode, IfMatch) and found.etag == mode.etag
    is_similar = found.etag.endswith(f"-{len(parts)}") and metadata is not None and found.metadata == metadata
    return found.etag if is_similar and not is_replaceable else None


async def unanswered_uploads(
    storage: ObjectStorage, upload: MultipartUpload, *, seconds: float
) -> list[UploadInfo]:
    """Return the uploads of the same key that were begun in the `seconds` before `upload` was.

    So long its request was repeated. Nothing else tells an attempt's upload from one that somebody else began of this
    key at that moment; so there are none where the store does not tell times.
    """
    begun = [each for each in await storage.list_multipart_uploads(upload.key) if each.key == upload.key]
    own = next((each for each in begun if each.upload_id == upload.upload_id), None)
    if own is None or own.initiated_ns == 0:
        return []
    since_ns = own.initiated_ns - round(seconds * 1e9) - _ROUNDED_NS
    return [each for each in begun if each is not own and since_ns <= each.initiated_ns <= own.initiated_ns]


async def _find(storage: ObjectStorage, key: str) -> ObjectInfo | None:
    try:
        return await storage.head(key)
    except NotFound:
        return None


async def _same_bytes(storage: ObjectStorage, one: ObjectInfo, other: ObjectInfo) -> bool:
    if one.size != other.size:
        return False
    if one.etag == other.etag:
        return True
    try:
        for start in range(0, one.size, _COMPARED_AT_ONCE):
            left = await storage.get_range(one.key, start, _COMPARED_AT_ONCE, if_match=one.etag)
            right = await storage.get_range(other.key, start, _COMPARED_AT_ONCE, if_match=other.etag)
            if left.data != right.data:
                return False
    except (NotFound, PreconditionFailed):
        return False
    return True
