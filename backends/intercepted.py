"""The frame of wrappers that do the same around every request: count it, repeat it, let it fail.

`InterceptedStorage` passes every call on to an inner store, through one method that a subclass writes.
"""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

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
from backends.errors import StorageError

T = TypeVar("T")


class Verb(StrEnum):
    """The calls of the seam that make requests, by their names."""

    PROBE = "probe"
    HEAD = "head"
    GET_RANGE = "get_range"
    PUT = "put"
    COPY = "copy"
    DELETE = "delete"
    DELETE_MANY = "delete_many"
    LIST_PREFIX = "list_prefix"
    CREATE_MULTIPART = "create_multipart"
    LIST_MULTIPART_UPLOADS = "list_multipart_uploads"
    UPLOAD_PART = "upload_part"
    COPY_PART = "copy_part"
    COMPLETE = "complete"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class Request:
    """One call, as far as it can be told in a line."""

    verb: Verb
    #: What is written or read: the target of a copy, the prefix of a listing, the first of many keys.
    key: str
    #: Of the body.
    bytes_sent: int = 0


class InterceptedStorage(ObjectStorage):
    """Every request goes through `_carry_out`; all else is the inner store's."""

    def __init__(self, inner: ObjectStorage) -> None:
        self._inner: Final = inner

    @property
    def wrapped(self) -> ObjectStorage:
        """The store that is wrapped."""
        return self._inner

    @abc.abstractmethod
    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        """Do what the wrapper is for around `send`, which makes the request at the inner store."""

    def _wrapped_upload(self, inner: MultipartUpload, metadata: Metadata | None) -> MultipartUpload:
        """Return the wrapper of an upload; its `metadata` is None where another process began it."""
        return InterceptedUpload(inner, self)

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    @property
    def limits(self) -> Limits:
        return self._inner.limits

    async def probe(self, *, read_only: bool = False) -> Capabilities:
        return await self._carry_out(Request(Verb.PROBE, ""), lambda: self._inner.probe(read_only=read_only))

    async def head(self, key: str) -> ObjectInfo:
        return await self._carry_out(Request(Verb.HEAD, key), lambda: self._inner.head(key))

    async def get_range(
        self, key: str, start: int = 0, length: int | None = None, *, if_match: str | None = None
    ) -> RangeResult:
        return await self._carry_out(
            Request(Verb.GET_RANGE, key),
            lambda: self._inner.get_range(key, start, length, if_match=if_match),
        )

    async def put(
        self, key: str, data: Data, *, metadata: Metadata = NO_METADATA, mode: PutMode = OVERWRITE
    ) -> str:
        return await self._carry_out(
            Request(Verb.PUT, key, len(data)),
            lambda: self._inner.put(key, data, metadata=metadata, mode=mode),
        )

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str | None = None,
        metadata: Metadata | None = None,
        mode: PutMode = OVERWRITE,
    ) -> str:
        return await self._carry_out(
            Request(Verb.COPY, target),
            lambda: self._inner.copy(source, target, if_match=if_match, metadata=metadata, mode=mode),
        )

    async def delete(self, key: str, *, if_match: str | None = None) -> None:
        await self._carry_out(Request(Verb.DELETE, key), lambda: self._inner.delete(key, if_match=if_match))

    async def delete_many(
        self, keys: Iterable[str], *, if_match: Mapping[str, str] = NO_ETAGS
    ) -> Mapping[str, StorageError]:
        wanted = list(keys)
        return await self._carry_out(
            Request(Verb.DELETE_MANY, wanted[0] if wanted else ""),
            lambda: self._inner.delete_many(wanted, if_match=if_match),
        )

    async def list_prefix(
        self,
        prefix: str = "",
        *,
        delimiter: str = "",
        start_after: str = "",
        page_token: str | None = None,
        page_size: int = 1_000,
    ) -> ListPage:
        return await self._carry_out(
            Request(Verb.LIST_PREFIX, prefix),
            lambda: self._inner.list_prefix(
                prefix,
                delimiter=delimiter,
                start_after=start_after,
                page_token=page_token,
                page_size=page_size,
            ),
        )

    async def create_multipart(self, key: str, *, metadata: Metadata = NO_METADATA) -> MultipartUpload:
        upload = await self._carry_out(
            Request(Verb.CREATE_MULTIPART, key),
            lambda: self._inner.create_multipart(key, metadata=metadata),
        )
        return self._wrapped_upload(upload, metadata)

    def resume_multipart(self, key: str, upload_id: str) -> MultipartUpload:
        return self._wrapped_upload(self._inner.resume_multipart(key, upload_id), None)

    async def list_multipart_uploads(self, prefix: str = "") -> Sequence[UploadInfo]:
        return await self._carry_out(
            Request(Verb.LIST_MULTIPART_UPLOADS, prefix),
            lambda: self._inner.list_multipart_uploads(prefix),
        )

    async def aclose(self) -> None:
        """Close the inner store."""
        await self._inner.aclose()


class InterceptedUpload(MultipartUpload):
    """The upload of an `InterceptedStorage`; its requests go through the same method."""

    def __init__(self, inner: MultipartUpload, storage: InterceptedStorage) -> None:
        self._inner: Final = inner
        self._carry_out: Final = storage._carry_out

    @property
    def key(self) -> str:
        return self._inner.key

    @property
    def upload_id(self) -> str:
        return self._inner.upload_id

    async def upload_part(self, number: int, data: Data) -> Part:
        return await self._carry_out(
            Request(Verb.UPLOAD_PART, self.key, len(data)), lambda: self._inner.upload_part(number, data)
        )

    async def copy_part(
        self, number: int, source: str, start: int, length: int, *, if_match: str | None = None
    ) -> Part:
        return await self._carry_out(
            Request(Verb.COPY_PART, self.key),
            lambda: self._inner.copy_part(number, source, start, length, if_match=if_match),
        )

    async def complete(self, parts: Sequence[Part], *, mode: PutMode = OVERWRITE) -> str:
        return await self._carry_out(
            Request(Verb.COMPLETE, self.key), lambda: self._inner.complete(parts, mode=mode)
        )

    async def abort(self) -> None:
        await self._carry_out(Request(Verb.ABORT, self.key), self._inner.abort)
