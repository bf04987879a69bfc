"""A store in memory: the fake that tests use, and that refuses everything S3 refuses.

Every call is a checkpoint first and then decides and acts without another await, so it is atomic in the face of
any number of tasks, and a cancelled call has done nothing. ETags are computed as S3 computes them.

With other `capabilities` it plays a store that lacks something, the way such stores do: conditions that it does
not know are ignored without a word, and a copy of a part is refused.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import trio

from backends import rules
from backends.base import (
    NO_ETAGS,
    NO_METADATA,
    OVERWRITE,
    Capabilities,
    CreateOnly,
    Data,
    IfMatch,
    ListPage,
    Metadata,
    MultipartUpload,
    ObjectInfo,
    ObjectStorage,
    Part,
    PutMode,
    RangeResult,
    UploadInfo,
)
from backends.errors import NotFound, NotSupported, StorageError, UploadNotFound
from backends.listing import cut_page, parse_query


@dataclass(frozen=True, slots=True, kw_only=True)
class _Object:
    data: bytes
    etag: str
    last_modified_ns: int
    metadata: Metadata

    def info(self, key: str, *, metadata: Metadata | None) -> ObjectInfo:
        return ObjectInfo(
            key=key,
            etag=self.etag,
            size=len(self.data),
            last_modified_ns=self.last_modified_ns,
            metadata=metadata,
        )


@dataclass(slots=True, kw_only=True)
class _Upload:
    key: str
    metadata: Metadata
    initiated_ns: int
    #: By number: the part as it was answered, and its bytes.
    parts: dict[int, tuple[Part, bytes]] = field(default_factory=dict)


class MemoryStorage(ObjectStorage):
    """A bucket that lives as long as this object."""

    def __init__(
        self, *, capabilities: Capabilities | None = None, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        """`clock_ns` tells the time since the epoch in nanoseconds."""
        self._capabilities: Final = Capabilities() if capabilities is None else capabilities
        self._clock_ns: Final = clock_ns
        self._upload_ids: Final = itertools.count(1)
        # Keys are in `_keys` exactly if they are in `_objects`; `_keys` is sorted, for listings.
        self._objects: dict[str, _Object] = {}
        self._keys: list[str] = []
        self._uploads: dict[str, _Upload] = {}

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    async def probe(self, *, read_only: bool = False) -> Capabilities:
        await trio.lowlevel.checkpoint()
        return self._capabilities

    async def head(self, key: str) -> ObjectInfo:
        await trio.lowlevel.checkpoint()
        found = self._find(key)
        return found.info(key, metadata=found.metadata)

    async def get_range(
        self, key: str, start: int = 0, length: int | None = None, *, if_match: str | None = None
    ) -> RangeResult:
        await trio.lowlevel.checkpoint()
        found = self._find(key)
        rules.check_if_match(key, if_match, found.etag)
        first, end = rules.resolve_range(key, start, length, len(found.data))
        return RangeResult(body=found.data[first:end], etag=found.etag, object_size=len(found.data))

    async def put(
        self, key: str, data: Data, *, metadata: Metadata = NO_METADATA, mode: PutMode = OVERWRITE
    ) -> str:
        await trio.lowlevel.checkpoint()
        rules.check_key(key)
        rules.check_metadata(metadata)
        body = bytes(data)
        rules.check_put_size(key, len(body))
        self._check_put_mode(key, mode)
        return self._store(key, body, _md5(body), metadata)

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str | None = None,
        metadata: Metadata | None = None,
        mode: PutMode = OVERWRITE,
    ) -> str:
        await trio.lowlevel.checkpoint()
        rules.check_key(target)
        rules.check_metadata(metadata or NO_METADATA)
        rules.check_copy_changes(source, target, metadata)
        found = self._find(source)
        rules.check_if_match(source, if_match, found.etag)
        rules.check_copy_size(source, len(found.data))
        if self._capabilities.conditional_copy:
            rules.check_mode(target, mode, self._etag_of(target))
        kept = found.metadata if metadata is None else metadata
        return self._store(target, found.data, _md5(found.data), kept)

    async def delete(self, key: str, *, if_match: str | None = None) -> None:
        await trio.lowlevel.checkpoint()
        rules.check_key(key)
        if self._capabilities.conditional_delete:
            rules.check_if_match(key, if_match, self._etag_of(key))
        self._remove(key)

    async def delete_many(
        self, keys: Iterable[str], *, if_match: Mapping[str, str] = NO_ETAGS
    ) -> Mapping[str, StorageError]:
        failures: dict[str, StorageError] = {}
        await trio.lowlevel.checkpoint()
        for key in keys:
            try:
                rules.check_key(key)
                if key in self._objects and self._capabilities.conditional_delete_many:
                    rules.check_if_match(key, if_match.get(key), self._etag_of(key))
            except StorageError as error:
                failures[key] = error
            else:
                self._remove(key)
        return failures

    async def list_prefix(
        self,
        prefix: str = "",
        *,
        delimiter: str = "",
        start_after: str = "",
        page_token: str | None = None,
        page_size: int = 1_000,
    ) -> ListPage:
        await trio.lowlevel.checkpoint()
        query = parse_query(
            prefix,
            delimiter=delimiter,
            start_after=start_after,
            page_token=page_token,
            page_size=page_size,
        )
        first = max(prefix, query.after.decode())
        candidates = itertools.takewhile(
            lambda key: key.startswith(prefix),
            itertools.islice(self._keys, bisect_left(self._keys, first), None),
        )
        cut = cut_page((key.encode() for key in candidates), query)
        objects = tuple(self._objects[key].info(key, metadata=None) for key in cut.keys)
        return ListPage(objects=objects, prefixes=cut.prefixes, next_token=cut.next_token)

    async def create_multipart(self, key: str, *, metadata: Metadata = NO_METADATA) -> MultipartUpload:
        await trio.lowlevel.checkpoint()
        rules.check_key(key)
        rules.check_metadata(metadata)
        upload_id = f"upload-{next(self._upload_ids)}"
        self._uploads[upload_id] = _Upload(key=key, metadata=_frozen(metadata), initiated_ns=self._clock_ns())
        return _MemoryUpload(self, key, upload_id)

    def resume_multipart(self, key: str, upload_id: str) -> MultipartUpload:
        return _MemoryUpload(self, key, upload_id)

    async def list_multipart_uploads(self, prefix: str = "") -> Sequence[UploadInfo]:
        await trio.lowlevel.checkpoint()
        return [
            UploadInfo(key=upload.key, upload_id=upload_id, initiated_ns=upload.initiated_ns)
            for upload_id, upload in self._uploads.items()
            if upload.key.startswith(prefix)
        ]

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    # What follows is synchronous: the calls above and the parts below act through it, after their checkpoint.

    def _find(self, key: str) -> _Object:
        rules.check_key(key)
        found = self._objects.get(key)
        if found is None:
            raise NotFound(f"there is no object {key!r}")
        return found

    def _etag_of(self, key: str) -> str | None:
        found = self._objects.get(key)
        return None if found is None else found.etag

    def _check_put_mode(self, key: str, mode: PutMode) -> None:
        ignored = (isinstance(mode, CreateOnly) and not self._capabilities.create_only) or (
            isinstance(mode, IfMatch) and not self._capabilities.if_match
        )
        if not ignored:
            rules.check_mode(key, mode, self._etag_of(key))

    def _store(self, key: str, data: bytes, etag: str, metadata: Metadata) -> str:
        if key not in self._objects:
            self._keys.insert(bisect_left(self._keys, key), key)
        self._objects[key] = _Object(
            data=data, etag=etag, last_modified_ns=self._clock_ns(), metadata=_frozen(metadata)
        )
        return etag

    def _remove(self, key: str) -> None:
        if self._objects.pop(key, None) is not None:
            del self._keys[bisect_left(self._keys, key)]

    def _upload(self, key: str, upload_id: str) -> _Upload:
        upload = self._uploads.get(upload_id)
        if upload is None or upload.key != key:
            raise UploadNotFound(f"there is no upload {upload_id!r} of {key!r}")
        return upload

    def _add_part(self, key: str, upload_id: str, number: int, data: bytes) -> Part:
        upload = self._upload(key, upload_id)
        part = Part(number=number, etag=_md5(data), size=len(data))
        upload.parts[number] = (part, data)
        return part

    def _copy_source(self, key: str, if_match: str | None, start: int, length: int) -> bytes:
        found = self._find(key)
        rules.check_if_match(key, if_match, found.etag)
        rules.check_copied_range(key, start, length, len(found.data))
        return found.data[start : start + length]

    def _complete(self, key: str, upload_id: str, parts: Sequence[Part], mode: PutMode) -> str:
        upload = self._upload(key, upload_id)
        rules.check_completion(parts, {number: part for number, (part, _) in upload.parts.items()})
        if self._capabilities.conditional_complete:
            rules.check_mode(key, mode, self._etag_of(key))
        data = b"".join(upload.parts[part.number][1] for part in parts)
        del self._uploads[upload_id]
        return self._store(key, data, rules.multipart_etag(parts), upload.metadata)

    def _abort(self, key: str, upload_id: str) -> None:
        upload = self._uploads.get(upload_id)
        if upload is not None and upload.key == key:
            del self._uploads[upload_id]


class _MemoryUpload(MultipartUpload):
    """A handle on an upload; the parts are in the store, so that `resume_multipart` finds them."""

    def __init__(self, storage: MemoryStorage, key: str, upload_id: str) -> None:
        self._storage: Final = storage
        self._key: Final = key
        self._upload_id: Final = upload_id

    @property
    def key(self) -> str:
        return self._key

    @property
    def upload_id(self) -> str:
        return self._upload_id

    async def upload_part(self, number: int, data: Data) -> Part:
        await trio.lowlevel.checkpoint()
        body = bytes(data)
        rules.check_part(number, len(body))
        return self._storage._add_part(self._key, self._upload_id, number, body)

    async def copy_part(
        self, number: int, source: str, start: int, length: int, *, if_match: str | None = None
    ) -> Part:
        await trio.lowlevel.checkpoint()
        if not self._storage.capabilities.copy_part:
            raise NotSupported("this store does not copy parts")
        rules.check_part(number, 0)
        rules.check_copy_size(source, length)
        self._storage._upload(self._key, self._upload_id)
        body = self._storage._copy_source(source, if_match, start, length)
        return self._storage._add_part(self._key, self._upload_id, number, body)

    async def complete(self, parts: Sequence[Part], *, mode: PutMode = OVERWRITE) -> str:
        await trio.lowlevel.checkpoint()
        return self._storage._complete(self._key, self._upload_id, parts, mode)

    async def abort(self) -> None:
        await trio.lowlevel.checkpoint()
        self._storage._abort(self._key, self._upload_id)


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _frozen(metadata: Metadata) -> Metadata:
    """A copy that the caller cannot change afterwards."""
    return MappingProxyType(dict(metadata))
