"""The calls of the seam on a local directory, blocking and safe for threads; `directory` makes them in threads.

How a write goes: bytes and record into a temporary file, fsync, then under the key's lock the condition, the rename
and the fsync of the directory. Directories are made before the lock is taken, because that may take the locks of
other keys; if they are gone by then, the lock is let go and they are made again.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from backends import rules
from backends.base import (
    NO_METADATA,
    Data,
    IfMatch,
    ListPage,
    Metadata,
    ObjectInfo,
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
from backends.directory_records import Version, read_version, unrecorded_version, write_version
from backends.directory_tree import ObjectTree
from backends.directory_uploads import UploadArea, UploadRecord
from backends.errors import ConcurrentRequest, NotFound, StorageError, UploadNotFound
from backends.listing import Query, cut_page

_log = logging.getLogger(__name__)

#: The last time of an object, in the year 2262; a file that others have put there may have any.
_LAST_TIME_NS: Final = 2**63 - 1

#: How often a write looks for a directory that others keep removing before it gives the caller a say.
_PLACING_ATTEMPTS: Final = 100


class DirectoryBucket:
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
        return RangeResult(body=data, etag=version.etag, object_size=version.size)

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
            self._tree.settle([directory])

    def delete_many(self, keys: Sequence[str], if_match: Mapping[str, str]) -> Mapping[str, StorageError]:
        """One fsync for each directory, not for each key."""
        failures: dict[str, StorageError] = {}
        directories: set[str] = set()
        for key in keys:
            try:
                directory = self._remove(key, if_match.get(key))
            except StorageError as error:
                failures[key] = error
            except OSError as error:
                failures[key] = translate(error, self._root)
            else:
                directories.update(() if directory is None else (directory,))
        self._tree.settle(directories)
        return failures

    def list_page(self, query: Query) -> ListPage:
        cut = cut_page(self._names(query), query)
        objects: list[ObjectInfo] = []
        for key in cut.keys:
            with contextlib.suppress(NotFound):
                objects.append(self._listed(key))
        return ListPage(objects=tuple(objects), prefixes=cut.prefixes, next_token=cut.next_token)

    def _names(self, query: Query) -> Iterator[bytes]:
        """Yield the candidates for a page, as `cut_page` wants them."""
        return self._tree.walk(query)

    def _listed(self, key: str) -> ObjectInfo:
        """Return what a listing tells of an object. Raises `NotFound`."""
        try:
            with self._opened(key) as (_, version):
                return _info(key, version, metadata=None)
        except PermissionError:  # it must not hide what is beside it
            found = self._tree.open_object(key, os.O_PATH)
            if found is None:
                raise
            with closing(found[0]):
                return _info(key, unrecorded_version(os.fstat(found[0])), metadata=None)

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
            try:
                self._uploads.remove(upload_id)
            except OSError as error:
                _log.warning("%r is complete, and its parts cannot be removed: %s", key, error)
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
        last_modified_ns=min(version.mtime_ns, _LAST_TIME_NS),
        metadata=metadata,
    )
