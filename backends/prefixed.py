"""A prefix of a store that looks like a store of its own: `s3://bucket/prefix` instead of `s3://bucket`.

The prefix goes before every key on the way in and off every key on the way out. Messages of errors keep the full
key, because that is what an operator finds in the bucket. The object whose key is the prefix itself (a directory
marker made by another tool) has no name here, so listings leave it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from backends.base import (
    NO_ETAGS,
    NO_METADATA,
    OVERWRITE,
    Capabilities,
    Data,
    Limits,
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
from backends.errors import InvalidKey, StorageError
from backends.rules import check_key


class PrefixedStorage(ObjectStorage):
    """The objects of `inner` whose keys begin with `prefix`, which ends with a slash or is empty."""

    def __init__(self, inner: ObjectStorage, prefix: str) -> None:
        if prefix and not prefix.endswith("/"):
            raise ValueError(f"a prefix ends with a slash: {prefix!r}")
        self._inner = inner
        self._prefix = prefix

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    @property
    def limits(self) -> Limits:
        """Those of the inner store, with keys shorter by the prefix."""
        inner = self._inner.limits
        return replace(inner, max_key_length=inner.max_key_length - len(self._prefix.encode()))

    async def probe(self, *, read_only: bool = False) -> Capabilities:
        return await self._inner.probe(read_only=read_only)

    async def head(self, key: str) -> ObjectInfo:
        return self._outer_info(await self._inner.head(self._inner_key(key)))

    async def get_range(
        self, key: str, start: int = 0, length: int | None = None, *, if_match: str | None = None
    ) -> RangeResult:
        return await self._inner.get_range(self._inner_key(key), start, length, if_match=if_match)

    async def put(
        self, key: str, data: Data, *, metadata: Metadata = NO_METADATA, mode: PutMode = OVERWRITE
    ) -> str:
        return await self._inner.put(self._inner_key(key), data, metadata=metadata, mode=mode)

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str | None = None,
        metadata: Metadata | None = None,
        mode: PutMode = OVERWRITE,
    ) -> str:
        inner_source, inner_target = self._inner_key(source), self._inner_key(target)
        return await self._inner.copy(
            inner_source, inner_target, if_match=if_match, metadata=metadata, mode=mode
        )

    async def delete(self, key: str, *, if_match: str | None = None) -> None:
        await self._inner.delete(self._inner_key(key), if_match=if_match)

    async def delete_many(
        self, keys: Iterable[str], *, if_match: Mapping[str, str] = NO_ETAGS
    ) -> Mapping[str, StorageError]:
        failures: dict[str, StorageError] = {}
        inner_keys = []
        for key in keys:
            try:
                inner_keys.append(self._inner_key(key))
            except InvalidKey as error:
                failures[key] = error
        inner_etags = {self._prefix + key: etag for key, etag in if_match.items()}
        failed = await self._inner.delete_many(inner_keys, if_match=inner_etags)
        return failures | {self._outer_key(key): error for key, error in failed.items()}

    async def list_prefix(
        self,
        prefix: str = "",
        *,
        delimiter: str = "",
        start_after: str = "",
        page_token: str | None = None,
        page_size: int = 1_000,
    ) -> ListPage:
        page = await self._inner.list_prefix(
            self._prefix + prefix,
            delimiter=delimiter,
            start_after=self._prefix + start_after if start_after else "",
            page_token=page_token,
            page_size=page_size,
        )
        return ListPage(
            objects=tuple(self._outer_info(info) for info in page.objects if info.key != self._prefix),
            prefixes=tuple(self._outer_key(found) for found in page.prefixes),
            next_token=page.next_token,
        )

    async def create_multipart(self, key: str, *, metadata: Metadata = NO_METADATA) -> MultipartUpload:
        upload = await self._inner.create_multipart(self._inner_key(key), metadata=metadata)
        return _PrefixedUpload(upload, key, self._inner_key)

    def resume_multipart(self, key: str, upload_id: str) -> MultipartUpload:
        upload = self._inner.resume_multipart(self._inner_key(key), upload_id)
        return _PrefixedUpload(upload, key, self._inner_key)

    async def list_multipart_uploads(self, prefix: str = "") -> Sequence[UploadInfo]:
        found = await self._inner.list_multipart_uploads(self._prefix + prefix)
        return [
            replace(upload, key=self._outer_key(upload.key)) for upload in found if upload.key != self._prefix
        ]

    async def aclose(self) -> None:
        """Close the inner store."""
        await self._inner.aclose()

    def _inner_key(self, key: str) -> str:
        # The inner store sees the prefix before it: the empty key would be the prefix's own marker, "../x" a stranger.
        check_key(key)
        return self._prefix + key

    def _outer_key(self, key: str) -> str:
        return key.removeprefix(self._prefix)

    def _outer_info(self, info: ObjectInfo) -> ObjectInfo:
        # Not `dataclasses.replace`, which takes three times as long: a listing has a hundred thousand of them.
        return ObjectInfo(
            key=info.key.removeprefix(self._prefix),
            etag=info.etag,
            size=info.size,
            last_modified_ns=info.last_modified_ns,
            metadata=info.metadata,
        )


class _PrefixedUpload(MultipartUpload):
    def __init__(self, inner: MultipartUpload, key: str, inner_key: Callable[[str], str]) -> None:
        self._inner = inner
        self._key = key
        self._inner_key = inner_key

    @property
    def key(self) -> str:
        return self._key

    @property
    def upload_id(self) -> str:
        return self._inner.upload_id

    async def upload_part(self, number: int, data: Data) -> Part:
        return await self._inner.upload_part(number, data)

    async def copy_part(
        self, number: int, source: str, start: int, length: int, *, if_match: str | None = None
    ) -> Part:
        return await self._inner.copy_part(number, self._inner_key(source), start, length, if_match=if_match)

    async def complete(self, parts: Sequence[Part], *, mode: PutMode = OVERWRITE) -> str:
        return await self._inner.complete(parts, mode=mode)

    async def abort(self) -> None:
        await self._inner.abort()
