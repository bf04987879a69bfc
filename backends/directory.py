"""A store in a local directory: a bucket that a person can look into, for one host and any number of processes.

An object is a plain file under its key's path, and a file that somebody copies into the directory is an object too.
What S3 keeps beside the bytes (ETag, metadata) is an extended attribute of the file: a rename brings both into place
together, so they cannot disagree after a crash (see `directory_records`). The price is a file system that keeps
`user.*` attributes, as ext4, XFS, Btrfs, ZFS and tmpfs do, and copies of the directory that take them along
(`cp -a`, `rsync -X`, `tar --xattrs`).

Every mutation is durable when it returns: the bytes and the record are fsynced under a temporary name, renamed, and the
directory is fsynced. Conditions are judged under a lock that holds between processes. ETags are made from content
as S3 makes them. Keys that are no path of files are escaped (`escaping`); everything of the store's own is in
`.fusefs-store` (`directory_private`), which may be removed while no process has the store open and no upload matters.

Limits: file work takes threads of a limiter of its own, and one that has begun is waited for. A listing reads whole
directories, one for each level that it goes down, and reads them again for the next page; it may miss an object `x`
in the moment in which the first key below it, `x/y`, moves its file aside. A file whose name holds a `%` that is not
one of ours belongs to no key and does not show.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import trio

from backends import rules
from backends.base import (
    NO_METADATA,
    OVERWRITE,
    Capabilities,
    Data,
    IfMatch,
    ListPage,
    Metadata,
    MultipartUpload,
    ObjectInfo,
    ObjectStorage,
    Overwrite,
    Part,
    PutMode,
    RangeResult,
    UploadInfo,
)
from backends.directory_files import (
    append_hashed,
    closing,
    missing_root,
    read_range,
    translate,
    write_all,
)
from backends.directory_private import PrivateArea
from backends.directory_records import Version, read_version, write_version
from backends.directory_tree import ObjectTree
from backends.directory_uploads import UploadArea, UploadRecord
from backends.errors import ConcurrentRequest, NotFound, StorageError, UploadNotFound
from backends.listing import Query, cut_page, parse_query

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: How often a write looks for a directory that others keep removing before it gives the caller a say.
_PLACING_ATTEMPTS: Final = 100


class DirectoryStorage(ObjectStorage):
    """A bucket kept in `root`, which must exist; the calls of the seam, each made in a thread of `_DirectoryBucket`."""

    def __init__(
        self,
        root: Path | str,
        *,
        max_threads: int = 8,
        clock_ns: Callable[[], int] = time.time_ns,
        new_upload_id: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        """`clock_ns` tells the time since the epoch in nanoseconds; an upload id is 32 hex digits."""
        self._root: Final = os.path.abspath(root)
        self._bucket: Final = _DirectoryBucket(self._root, clock_ns, new_upload_id)
        self._max_threads: Final = max_threads
        self._threads: Final = trio.CapacityLimiter(max_threads)
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

    async def delete_many(self, keys: Iterable[str]) -> Mapping[str, StorageError]:
        return await self._run(self._bucket.delete_many, list(keys))

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
        # With all tokens in hand no call is under way.
        for number in range(self._max_threads):
            await self._threads.acquire_on_behalf_of((self, number))
        await trio.to_thread.run_sync(self._bucket.close)

    async def _run(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Make a blocking call in a thread, to its end, and translate what the system answers."""

        def translated() -> _T:
            try:
                return call(*args, **kwargs)
            except OSError as error:
                raise translate(error, self._root) from error

        return await trio.to_thread.run_sync(translated, limiter=self._threads)


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


class _DirectoryBucket:
    """The same calls, blocking and safe for threads. They may raise OSError beside what the seam names."""

    def __init__(self, root: str, clock_ns: Callable[[], int], new_upload_id: Callable[[], str]) -> None:
        self._root: Final = root
        self._clock_ns: Final = clock_ns
        self._new_upload_id: Final = new_upload_id
        self._private: Final = PrivateArea(root)
        self._tree: Final = ObjectTree(root, self._private)
        self._uploads: Final = UploadArea(self._private)

    def probe(self, *, read_only: bool) -> None:
        if not os.path.isdir(self._root):
            raise missing_root(self._root)
        with os.scandir(self._root):
            pass
        if not read_only:
            with self._private.temporary() as (descriptor, _):
                write_version(descriptor, "probe", NO_METADATA, self._clock_ns())

    def close(self) -> None:
        self._private.close_session()

    def head(self, key: str) -> ObjectInfo:
        with self._opened(key) as (_, version):
            return _info(key, version, metadata=version.metadata)

    def get_range(self, key: str, start: int, length: int | None, if_match: str | None) -> RangeResult:
        with self._opened(key) as (descriptor, version):
            rules.check_if_match(key, if_match, version.etag)
            first, end = rules.resolve_range(key, start, length, version.size)
            data = read_range(descriptor, first, end)
        return RangeResult(data=data, etag=version.etag, object_size=version.size)

    def put(self, key: str, data: Data, metadata: Metadata, mode: PutMode) -> str:
        rules.check_key(key)
        rules.check_metadata(metadata)
        rules.check_put_size(key, memoryview(data).nbytes)
        with self._private.temporary() as (descriptor, path):
            etag = write_all(descriptor, data)
            self._publish(key, descriptor, path, etag, metadata, mode)
        return etag

    def copy(
        self, source: str, target: str, if_match: str | None, metadata: Metadata | None, mode: PutMode
    ) -> str:
        rules.check_key(target)
        rules.check_metadata(metadata or NO_METADATA)
        rules.check_copy_changes(source, target, metadata)
        with self._opened(source) as (opened, version), self._private.temporary() as (descriptor, path):
            rules.check_if_match(source, if_match, version.etag)
            rules.check_copy_size(source, version.size)
            etag = append_hashed(opened, descriptor, 0, version.size)
            kept = version.metadata if metadata is None else metadata
            self._publish(target, descriptor, path, etag, kept, mode)
        return etag

    def delete(self, key: str, if_match: str | None) -> None:
        directory = self._remove(key, if_match)
        if directory is not None:
            self._tree.settle(directory)

    def delete_many(self, keys: Sequence[str]) -> Mapping[str, StorageError]:
        """One fsync for each directory, not for each key."""
        failures: dict[str, StorageError] = {}
        directories: set[str] = set()
        for key in keys:
            try:
                directory = self._remove(key, None)
            except StorageError as error:
                failures[key] = error
            except OSError as error:
                failures[key] = translate(error, self._root)
            else:
                directories.update(() if directory is None else (directory,))
        for directory in directories:
            self._tree.settle(directory)
        return failures

    def list_page(self, query: Query) -> ListPage:
        cut = cut_page(self._tree.walk(query), query)
        objects: list[ObjectInfo] = []
        for key in cut.keys:
            with contextlib.suppress(NotFound), self._opened(key) as (_, version):
                objects.append(_info(key, version, metadata=None))
        return ListPage(objects=tuple(objects), prefixes=cut.prefixes, next_token=cut.next_token)

    def begin_upload(self, key: str, metadata: Metadata) -> str:
        rules.check_key(key)
        rules.check_metadata(metadata)
        upload_id = self._new_upload_id()
        self._uploads.begin(
            upload_id, UploadRecord(key=key, initiated_ns=self._clock_ns(), metadata=metadata)
        )
        return upload_id

    def list_uploads(self, prefix: str) -> Sequence[UploadInfo]:
        return self._uploads.list_all(prefix)

    def upload_part(self, key: str, upload_id: str, number: int, data: Data) -> Part:
        rules.check_part(number, memoryview(data).nbytes)
        self._uploads.find(key, upload_id)
        with self._private.temporary() as (descriptor, path):
            etag = write_all(descriptor, data)
            return self._place_part(key, upload_id, number, descriptor, path, etag)

    def copy_part(
        self,
        key: str,
        upload_id: str,
        number: int,
        source: str,
        start: int,
        length: int,
        if_match: str | None,
    ) -> Part:
        rules.check_part(number, 0)
        rules.check_copy_size(source, length)
        self._uploads.find(key, upload_id)
        with self._opened(source) as (opened, version), self._private.temporary() as (descriptor, path):
            rules.check_if_match(source, if_match, version.etag)
            rules.check_copied_range(source, start, length, version.size)
            etag = append_hashed(opened, descriptor, start, length)
            return self._place_part(key, upload_id, number, descriptor, path, etag)

    def complete(self, key: str, upload_id: str, parts: Sequence[Part], mode: PutMode) -> str:
        with self._uploads.ending(key, upload_id) as record:
            self._uploads.check_parts(upload_id, parts)
            self._check_mode(key, mode)
            etag = rules.multipart_etag(parts)
            with self._private.temporary() as (descriptor, path):
                self._uploads.assemble(upload_id, parts, descriptor)
                self._publish(key, descriptor, path, etag, record.metadata, mode)
            self._uploads.remove(upload_id)
        return etag

    def abort(self, key: str, upload_id: str) -> None:
        with contextlib.suppress(UploadNotFound), self._uploads.ending(key, upload_id):
            self._uploads.remove(upload_id)

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, Version]]:
        """Open one version of an object; what others do to the key meanwhile does not touch it."""
        rules.check_key(key)
        found = self._tree.open_object(key)
        if found is None:
            if not os.path.isdir(self._root):
                raise missing_root(self._root)
            raise NotFound(f"there is no object {key!r}")
        descriptor, path = found
        with closing(descriptor):
            yield descriptor, read_version(descriptor, path)

    def _check_mode(self, key: str, mode: PutMode) -> None:
        if isinstance(mode, Overwrite):
            return
        try:
            with self._opened(key) as (_, version):
                etag: str | None = version.etag
        except NotFound:
            etag = None
        rules.check_mode(key, mode, etag)

    def _publish(
        self, key: str, descriptor: int, path: str, etag: str, metadata: Metadata, mode: PutMode
    ) -> None:
        """Make a file whose bytes are complete the object `key`, if `mode` allows it."""
        write_version(descriptor, etag, metadata, self._clock_ns())
        self._tree.tag_file(key, descriptor)
        os.fsync(descriptor)
        for _ in range(_PLACING_ATTEMPTS):
            self._tree.make_directories(key)
            with self._private.locked(key):
                self._check_mode(key, mode)
                if self._tree.move_into_place(key, path):
                    return
        raise ConcurrentRequest(f"the directories of {key!r} change faster than it can be written")

    def _place_part(
        self, key: str, upload_id: str, number: int, descriptor: int, path: str, etag: str
    ) -> Part:
        version = write_version(descriptor, etag, NO_METADATA, self._clock_ns())
        os.fsync(descriptor)
        self._uploads.place_part(key, upload_id, number, path)
        return Part(number=number, etag=etag, size=version.size)

    def _remove(self, key: str, if_match: str | None) -> str | None:
        """Remove an object's file and return the directory to settle."""
        rules.check_key(key)
        with self._private.locked(key):
            if if_match is not None:
                self._check_mode(key, IfMatch(if_match))
            return self._tree.remove(key)


def _info(key: str, version: Version, *, metadata: Metadata | None) -> ObjectInfo:
    return ObjectInfo(
        key=key,
        etag=version.etag,
        size=version.size,
        last_modified_ns=version.mtime_ns,
        metadata=metadata,
    )
