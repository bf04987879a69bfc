"""The calls of the seam on a local directory in which small objects that come one after the other share files.

Such an object is appended to a pack (`packs`): that takes one sync, and no new file. It is an object like any other,
but that its ETag says where it is, and not what is in it. Whatever is done to it, beside reading it and deleting it
with others, makes files of all objects of its pack first.

Which objects these are is decided by key and size: they have neighbours, are new, and go again with these. One that is
larger gains nothing, and would keep the room of a whole pack.
"""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from backends import rules
from backends.base import (
    CREATE_ONLY,
    NO_METADATA,
    CreateOnly,
    Data,
    Metadata,
    ObjectInfo,
    Part,
    PutMode,
    RangeResult,
)
from backends.directory_bucket import DirectoryBucket
from backends.directory_files import sync_directory, translate, write_all
from backends.errors import NotFound, PreconditionFailed, StorageError
from backends.escaping import PRIVATE_NAME
from backends.listing import Query
from backends.pack_format import PackedObject
from backends.packs import Pack, Packs

_Place: TypeAlias = tuple[Pack, PackedObject]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Which new objects go into packs."""

    prefix: str
    #: Bytes of the smallest and of the largest one.
    sizes: tuple[int, int]

    def takes(self, data: Data, metadata: Metadata) -> bool:
        """Return whether an object below the prefix is one for a pack."""
        least, most = self.sizes
        return least <= memoryview(data).nbytes <= most and not metadata


class PackingBucket(DirectoryBucket):
    """As `DirectoryBucket`; what is not below the prefix of `packing` never meets a pack."""

    def __init__(
        self, root: str, clock_ns: Callable[[], int], new_upload_id: Callable[[], str], *, packing: Packing
    ) -> None:
        super().__init__(root, clock_ns, new_upload_id)
        self._packing: Final = packing
        self._packs: Final = Packs(os.path.join(root, PRIVATE_NAME))

    def close(self) -> None:
        self._packs.close()
        super().close()

    # Reading

    def head(self, key: str) -> ObjectInfo:
        found = self._find(key)
        return super().head(key) if found is None else _info(key, found, metadata=NO_METADATA)

    def get_range(self, key: str, start: int, length: int | None, if_match: str | None) -> RangeResult:
        found = self._find(key)
        if found is not None:
            pack, packed = found
            rules.check_if_match(key, if_match, _etag(found))
            first, end = rules.resolve_range(key, start, length, packed.size)
            with contextlib.suppress(NotFound):  # it may be a file by now
                data = pack.read(packed, first, end)
                return RangeResult(body=data, etag=_etag(found), object_size=packed.size)
        return super().get_range(key, start, length, if_match)

    def _names(self, query: Query) -> Iterator[bytes]:
        prefix = self._packing.prefix.encode()
        if not (query.prefix.startswith(prefix) or prefix.startswith(query.prefix)):
            return super()._names(query)
        self._packs.refresh()
        return heapq.merge(super()._names(query), self._packs.names(query.prefix))

    def _listed(self, key: str) -> ObjectInfo:
        try:
            return super()._listed(key)
        except NotFound:
            found = self._packs.find(key)
            if found is None:
                raise
            return _info(key, found, metadata=None)

    def _find(self, key: str) -> _Place | None:
        """Return where an object is if it is in a pack, and no file.

        A file may be newer: what was dropped from a pack is back for another process.
        """
        if not self._is_below(key) or self._has_file(key):
            return None
        found = self._packs.find(key)
        if found is None:
            self._packs.refresh()
            found = self._packs.find(key)
        return found

    # Writing

    def put(self, key: str, data: Data, metadata: Metadata, mode: PutMode) -> str:
        if not self._is_below(key):
            return super().put(key, data, metadata, mode)
        is_new = isinstance(mode, CreateOnly)
        place: _Place | None = None
        with self._packs.locked():
            is_own = self._packs.is_own(key)
            if not is_own:
                self._packs.refresh()
            if is_new and (self._packs.find(key) is not None or self._has_file(key)):
                raise PreconditionFailed(f"{key!r} exists already")
            may_append = is_own or not self._packs.is_anothers(key)
            if is_new and may_append and self._packing.takes(data, metadata):
                place = self._packs.append(key, data, self._clock_ns())
            elif not (is_new and is_own):
                self._make_file(key)
                return super().put(key, data, metadata, mode)
        if place is None:  # a large one, and nobody else appends meanwhile
            return super().put(key, data, metadata, mode)
        self._packs.confirm(*place)
        return _etag(place)

    def copy(
        self, source: str, target: str, if_match: str | None, metadata: Metadata | None, mode: PutMode
    ) -> str:
        with self._as_files(source, target):
            return super().copy(source, target, if_match, metadata, mode)

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
        with self._as_files(source):
            return super().copy_part(key, upload_id, number, source, start, length, if_match)

    def complete(self, key: str, upload_id: str, parts: Sequence[Part], mode: PutMode) -> str:
        with self._as_files(key):
            return super().complete(key, upload_id, parts, mode)

    def delete(self, key: str, if_match: str | None) -> None:
        with self._as_files(key):
            super().delete(key, if_match)

    def delete_many(self, keys: Sequence[str], if_match: Mapping[str, str]) -> Mapping[str, StorageError]:
        """What is in packs is gone for this process alone, until all of its pack is."""
        below = [key for key in keys if self._is_below(key)]
        if not below:
            return super().delete_many(keys, if_match)
        with self._packs.locked():
            if any(self._packs.find(key) is None for key in below):
                self._packs.refresh()
            packed = {key for key in below if self._packs.find(key) is not None}
            for key in [key for key in packed if key in if_match or self._has_file(key)]:
                self._make_file(key)
            packed = {key for key in packed if self._packs.find(key) is not None}
            try:
                self._packs.drop(packed)
            except OSError as error:
                return dict.fromkeys(keys, translate(error, self._root))
        return super().delete_many([key for key in keys if key not in packed], if_match)

    # What is a file, and what is not

    def _is_below(self, key: str) -> bool:
        return key.startswith(self._packing.prefix)

    def _has_file(self, key: str) -> bool:
        rules.check_key(key)
        found = self._tree.open_object(key)
        if found is not None:
            os.close(found[0])
        return found is not None

    @contextlib.contextmanager
    def _as_files(self, *keys: str) -> Iterator[None]:
        """Have objects as files for the block, in which no other process packs any."""
        if not any(map(self._is_below, keys)):
            yield
            return
        with self._packs.locked():
            self._packs.refresh()
            for key in keys:
                self._make_file(key)
            yield

    def _make_file(self, key: str) -> None:
        """Make files of all objects of the pack that has one, if any has; they keep their ETags."""
        while (found := self._packs.find(key)) is not None:
            pack, _ = found
            for each in pack.objects.values():
                data = pack.read(each, 0, each.size)
                with self._private.temporary() as (descriptor, path):
                    write_all(descriptor, data)
                    try:
                        self._publish(
                            each.key, descriptor, path, _etag((pack, each)), NO_METADATA, CREATE_ONLY
                        )
                    except PreconditionFailed:  # it is newer, or a process has died at this
                        self._sync_name(each.key)
            self._packs.remove(pack)

    def _sync_name(self, key: str) -> None:
        """Make the name of a file durable: whoever has given it may have been killed before that."""
        found = self._tree.open_object(key)
        if found is not None:
            os.close(found[0])
            sync_directory(os.path.dirname(found[1]))


def _etag(place: _Place) -> str:
    pack, packed = place
    return f"{os.path.basename(pack.path)}-{packed.offset:x}"


def _info(key: str, place: _Place, *, metadata: Metadata | None) -> ObjectInfo:
    _, packed = place
    return ObjectInfo(
        key=key, etag=_etag(place), size=packed.size, last_modified_ns=packed.time_ns, metadata=metadata
    )
