"""A store in a local directory: a bucket that a person can look into, for one host and any number of processes.

An object is a plain file under its key's path, and a file that somebody copies into the directory is an object too.
What S3 keeps beside the bytes (ETag, metadata) is an extended attribute of the file: a rename brings both into place
together, so they cannot disagree after a crash (see `directory_records`). The price is a file system that keeps
`user.*` attributes, as ext4, XFS, Btrfs, ZFS and tmpfs do, and copies of the directory that take them along
(`cp -a`, `rsync -X`, `tar --xattrs`).

Every mutation is durable when it returns: the bytes and the record are fsynced under a temporary name, renamed, and the
directory is fsynced. Conditions are judged under a lock that holds between processes. ETags are made from content
as S3 makes them. Keys that are no path of files are escaped (`escaping`); everything of the store's own is in
`.fusefs-store` (`directory_private`), which may be removed while no process has the store open, no upload matters and
no objects share files there (`packing_bucket`; by default none do).

Limits: file work takes threads of a limiter of its own, and one that has begun is waited for. A listing reads whole
directories, one for each level that it goes down, and reads them again for the next page; it may miss an object `x`
in the moment in which the first key below it, `x/y`, moves its file aside. A file whose name holds a `%` that is not
one of ours belongs to no key and does not show.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import trio

from backends.base import (
    NO_ETAGS,
    NO_METADATA,
    OVERWRITE,
    Capabilities,
    Data,
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
from backends.directory_bucket import DirectoryBucket
from backends.directory_files import translate
from backends.errors import StorageError
from backends.listing import parse_query
from backends.packing_bucket import Packing, PackingBucket
from backends.threads import Threads, beside_others

_P = ParamSpec("_P")
_T = TypeVar("_T")


class DirectoryStorage(ObjectStorage):
    """A bucket kept in `root`, which must exist: the calls of `DirectoryBucket`, each made in a thread."""

    def __init__(
        self,
        root: Path | str,
        *,
        max_threads: int = 8,
        clock_ns: Callable[[], int] = time.time_ns,
        new_upload_id: Callable[[], str] = lambda: secrets.token_hex(16),
        packing: Packing | None = None,
    ) -> None:
        """`clock_ns` tells the time since the epoch in nanoseconds; an upload id is 32 hex digits.

        `packing` says which objects share files, if any do.
        """
        self._root: Final = os.path.abspath(root)
        self._bucket: Final = (
            DirectoryBucket(self._root, clock_ns, new_upload_id)
            if packing is None
            else PackingBucket(self._root, clock_ns, new_upload_id, packing=packing)
        )
        self._threads: Final = Threads(max_threads)
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities()

    async def probe(self, *, read_only: bool = False) -> Capabilities:
        await self._run(self._bucket.probe, read_only=read_only)
        return self.capabilities

    async def head(self, key: str) -> ObjectInfo:
        return await self._run(self._bucket.head, key)

    async def get_range(
        self, key: str, start: int = 0, length: int | None = None, *, if_match: str | None = None
    ) -> RangeResult:
        return await self._run(self._bucket.get_range, key, start, length, if_match)

    async def put(
        self, key: str, data: Data, *, metadata: Metadata = NO_METADATA, mode: PutMode = OVERWRITE
    ) -> str:
        return await self._run(self._bucket.put, key, data, metadata, mode)

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str | None = None,
        metadata: Metadata | None = None,
        mode: PutMode = OVERWRITE,
    ) -> str:
        return await self._run(self._bucket.copy, source, target, if_match, metadata, mode)

    async def delete(self, key: str, *, if_match: str | None = None) -> None:
        await self._run(self._bucket.delete, key, if_match)

    async def delete_many(
        self, keys: Iterable[str], *, if_match: Mapping[str, str] = NO_ETAGS
    ) -> Mapping[str, StorageError]:
        return await self._run(self._bucket.delete_many, list(keys), if_match)

    async def list_prefix(
        self,
        prefix: str = "",
        *,
        delimiter: str = "",
        start_after: str = "",
        page_token: str | None = None,
        page_size: int = 1_000,
    ) -> ListPage:
        query = parse_query(
            prefix,
            delimiter=delimiter,
            start_after=start_after,
            page_token=page_token,
            page_size=page_size,
        )
        return await self._run(self._bucket.list_page, query)

    async def create_multipart(self, key: str, *, metadata: Metadata = NO_METADATA) -> MultipartUpload:
        upload_id = await self._run(self._bucket.begin_upload, key, metadata)
        return _DirectoryUpload(self, key, upload_id)

    def resume_multipart(self, key: str, upload_id: str) -> MultipartUpload:
        return _DirectoryUpload(self, key, upload_id)

    async def list_multipart_uploads(self, prefix: str = "") -> Sequence[UploadInfo]:
        return await self._run(self._bucket.list_uploads, prefix)

    async def aclose(self) -> None:
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        # The calls that are under way end soon, and cannot be cancelled either.
        with trio.CancelScope(shield=True):
            await self._threads.wait_until_idle()
            await beside_others(self._bucket.close)

    async def _run(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Make a blocking call in a thread, to its end, and translate what the system answers."""

        def translated() -> _T:
            try:
                return call(*args, **kwargs)
            except OSError as error:
                raise translate(error, self._root) from error

        if self._closed:
            raise StorageError(f"the directory store in {self._root} was closed")
        return await self._threads.run(translated)


class _DirectoryUpload(MultipartUpload):
    """A handle on an upload; everything of it is on disk."""

    def __init__(self, storage: DirectoryStorage, key: str, upload_id: str) -> None:
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
        bucket = self._storage._bucket
        return await self._storage._run(bucket.upload_part, self._key, self._upload_id, number, data)

    async def copy_part(
        self, number: int, source: str, start: int, length: int, *, if_match: str | None = None
    ) -> Part:
        bucket = self._storage._bucket
        return await self._storage._run(
            bucket.copy_part, self._key, self._upload_id, number, source, start, length, if_match
        )

    async def complete(self, parts: Sequence[Part], *, mode: PutMode = OVERWRITE) -> str:
        bucket = self._storage._bucket
        return await self._storage._run(bucket.complete, self._key, self._upload_id, parts, mode)

    async def abort(self) -> None:
        await self._storage._run(self._storage._bucket.abort, self._key, self._upload_id)
