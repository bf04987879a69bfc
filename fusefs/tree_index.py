"""What earlier mounts knew of the tree, kept in the bucket: `.fusefs/index/`, and when it may be believed.

A listing tells ETag, size and time of an object; its attributes and its inode number are known to the mount that wrote
it, or asked for them, and would cost the next one a HEAD each. They are kept by directory (`index_format`), the
directories spread over a fixed number of objects by a hash of their prefix, so that a small tree needs few of them and
a change in a large one writes little.

An entry is believed if the listing's ETag and size agree, and the time. ETags alone do not tell: a change of attributes
is a copy of an object onto itself, and leaves the ETag as it was. The time is known exactly of objects that were
listed; of those that a mount wrote itself it is not, and must be earlier than the moment, by the store's clock, in
which the mount began to write the index (`TIME_KEY`): what is changed while that is under way may be in the bucket
before it. At its end, when it changes nothing any more, it must be no later than the index object. What is not believed
costs a HEAD, as if there were no index; the inode number is kept.

Markers of directories do not appear in the listing of the parent. What is remembered of a directory is believed until
the directory itself is listed, and its marker with it. But a mount that was killed may have changed a marker after it
wrote the index: the next one notes that there was a crash (`CRASH_KEY`), and of what the index has from before that,
each directory costs a HEAD when it is looked up. A mount that could not write all of it at its end notes the same. So
does every directory on mounts beside which others may write.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from typing import Final

import trio

from backends.base import (
    CREATE_ONLY,
    KIB,
    OVERWRITE,
    IfMatch,
    ObjectInfo,
    ObjectStorage,
    PutMode,
    iterate_pages,
)
from backends.errors import NotFound, PreconditionFailed, StorageError
from backends.threads import beside_others
from fusefs.attributes import Defaults
from fusefs.content import Spawn
from fusefs.index_format import Block, DamagedIndex, Shard, decode_block, decode_shard, encode_shard
from fusefs.keys import RESERVED_PREFIX
from fusefs.listed import ListedDirectory, ListedEntry, ListedObject

_log = logging.getLogger(__name__)

INDEX_PREFIX: Final = f"{RESERVED_PREFIX}index/"

CRASH_KEY: Final = f"{INDEX_PREFIX}crash"
"""An empty object; when the store received it says when a mount began after one that had not ended well, or ended with
an index that is not whole.
"""

TIME_KEY: Final = f"{INDEX_PREFIX}time"
"""An empty object: when the store received it was the time."""

SHARDS: Final = 64
"""Objects of a large tree's index: 16,000 entries, about a megabyte, in each of a tree of a million files."""

UPDATE_ATTEMPTS: Final = 2
"""Of one shard, where another host writes it at the same time; what it does not get is written the next time."""


class Memories:
    """What is remembered of one directory, and which of it can be believed."""

    def __init__(
        self,
        entries: Mapping[bytes, ListedEntry],
        *,
        not_after_ns: int,
        same_defaults: bool,
        sure_of_directories: bool = True,
    ) -> None:
        self._entries = entries
        self._not_after_ns = not_after_ns
        self._same_defaults = same_defaults
        self._sure_of_directories = sure_of_directories
        self.believed = 0

    def __len__(self) -> int:
        return len(self._entries)

    def of_object(self, name: bytes, listed: ListedObject) -> ListedObject:
        """Return what a listing says, and what is remembered of that very object."""
        memory = self._entries.get(name)
        if not isinstance(memory, ListedObject):
            return listed
        if self._same_defaults and memory.startswith(listed):
            self.believed += 1
            return memory  # all that the listing says, to the time, and what is remembered
        if not self._agrees(memory, listed):
            return listed.with_number_of(memory)
        self.believed += 1
        return listed.with_memory_of(memory)

    def of_directory(self, name: bytes, listed: ListedDirectory) -> ListedDirectory:
        """Return what is remembered of a directory; how old its marker may be is in `stored_at_ns`."""
        memory = self._entries.get(name)
        if not isinstance(memory, ListedDirectory):
            return listed
        if not self._same_defaults:
            return listed.with_number_of(memory)
        self.believed += 1
        is_doubtful = memory.is_doubtful or not self._sure_of_directories
        stored_at_ns = memory.stored_at_ns or -max(1, self._not_after_ns)
        return ListedDirectory.pack(
            size=int(is_doubtful), stored_at_ns=stored_at_ns, etag=memory.etag
        ).with_memory_of(memory)

    def _agrees(self, memory: ListedObject, listed: ListedObject) -> bool:
        if memory.etag != listed.etag or memory.size != listed.size or not self._same_defaults:
            return False
        if memory.stored_at_ns:
            return memory.stored_at_ns == listed.stored_at_ns
        return listed.stored_at_ns <= self._not_after_ns


LARGE_PAYLOAD: Final = 256 * KIB
"""Bytes of a block, of 15,000 entries or so, that is unpacked in a thread: 100,000 take half a second."""

NO_MEMORIES: Final = Memories({}, not_after_ns=0, same_defaults=True)


@dataclass(eq=False, slots=True)
class _Loading:
    """A shard on its way; then its blocks, each until its directory is listed."""

    blocks: dict[str, Block] = field(default_factory=dict)
    is_over: trio.Event = field(default_factory=trio.Event)


class TreeIndex:
    """The objects of the index. Only `note_crash` raises: without an index everything costs more, and works."""

    def __init__(
        self, storage: ObjectStorage, spawn: Spawn, defaults: Defaults, *, others_write: bool = False
    ) -> None:
        """`others_write`: while this mount lasts; then nothing that is remembered of directories is certain."""
        self._storage = storage
        self._spawn = spawn
        self._defaults = defaults
        self._others_write = others_write
        self._loading: dict[int, _Loading] = {}
        self._infos: dict[str, ObjectInfo] = {}
        self._infos_lock = trio.Lock()
        self._infos_known = False

    async def note_crash(self) -> None:
        """Note that directories may have other attributes than the index has. Raises what the store raises."""
        await self._storage.put(CRASH_KEY, b"", mode=OVERWRITE)

    # Reading

    async def recall(self, prefix: str) -> Memories:
        """Return what is remembered of a directory, until it is `let_go`."""
        loading = self._loading_of(shard_of(prefix))
        await loading.is_over.wait()
        block = loading.blocks.get(prefix)
        if block is None:
            return NO_MEMORIES
        try:
            is_large = len(block.payload) > LARGE_PAYLOAD
            entries = await beside_others(partial(decode_block, block)) if is_large else decode_block(block)
        except DamagedIndex as error:
            self._report(shard_key(shard_of(prefix)), error)
            return NO_MEMORIES
        crash = self._infos.get(CRASH_KEY)
        return Memories(
            entries,
            not_after_ns=block.not_after_ns,
            same_defaults=block.defaults == self._defaults,
            sure_of_directories=not self._others_write
            and (crash is None or crash.last_modified_ns < block.not_after_ns),
        )

    def let_go(self, prefix: str) -> None:
        """Forget what was recalled: the directory is listed, and the tree has it."""
        self._loading_of(shard_of(prefix)).blocks.pop(prefix, None)

    def _loading_of(self, shard: int) -> _Loading:
        if shard not in self._loading:
            loading = self._loading[shard] = _Loading()
            self._spawn(self._load, shard, loading)
        return self._loading[shard]

    async def _load(self, shard: int, loading: _Loading) -> None:
        try:
            info = (await self._known_objects()).get(shard_key(shard))
            if info is not None:
                loading.blocks = dict(await self._read(info))
        except StorageError as error:
            _log.warning("what an earlier mount knew of the tree cannot be read: %s", error)
        finally:
            loading.is_over.set()

    async def _known_objects(self) -> Mapping[str, ObjectInfo]:
        """Return the objects of the index as they were when they were first asked for."""
        async with self._infos_lock:
            if not self._infos_known:
                async for page in iterate_pages(self._storage, INDEX_PREFIX):
                    self._infos |= {info.key: info for info in page.objects}
                self._infos_known = True
        return self._infos

    async def _read(self, info: ObjectInfo) -> Mapping[str, Block]:
        """Return the blocks of a shard, each with the time until which it is to be believed."""
        try:
            data = (await self._storage.get_range(info.key, if_match=info.etag)).data
            return _dated(decode_shard(data), info.last_modified_ns)
        except (NotFound, PreconditionFailed):
            return {}  # another host has written it since
        except DamagedIndex as error:
            self._report(info.key, error)
            return {}

    @staticmethod
    def _report(key: str, error: DamagedIndex) -> None:
        _log.warning("%r is damaged and is not used; attributes are asked for one by one: %s", key, error)

    # Writing

    async def time_before_ns(self) -> int | None:
        """Return the last time, by the store's clock, that is over now; None if it does not tell."""
        try:
            await self._storage.put(TIME_KEY, b"", mode=OVERWRITE)
            return (await self._storage.head(TIME_KEY)).last_modified_ns - 1
        except StorageError as error:
            self._report_failure(error)
            return None

    async def update(
        self, shard: int, blocks: Mapping[str, Block], *, is_gone: Callable[[str], bool], is_final: bool
    ) -> int | None:
        """Put blocks into a shard; of the others in it those stay whose directory is not gone.

        Returns how many bytes that took; None if it failed.
        """
        for _ in range(UPDATE_ATTEMPTS):
            try:
                return await self._update_now(shard, blocks, is_gone, is_final)
            except PreconditionFailed:
                continue
            except StorageError as error:
                self._report_failure(error)
                return None
        return None

    @staticmethod
    def _report_failure(error: StorageError) -> None:
        _log.warning("what is known of the tree cannot be kept for the next mount: %s", error)

    async def _update_now(
        self, shard: int, blocks: Mapping[str, Block], is_gone: Callable[[str], bool], is_final: bool
    ) -> int:
        key = shard_key(shard)
        mode: PutMode = CREATE_ONLY
        others: Mapping[str, Block] = {}
        try:
            info = await self._storage.head(key)
            mode = IfMatch(info.etag)
            others = await self._read(info)
        except NotFound:
            pass  # nobody has written it yet: `CREATE_ONLY` sees to that
        kept = [block for prefix, block in others.items() if prefix not in blocks and not is_gone(prefix)]
        merged = [*kept, *(block for block in blocks.values() if block.payload)]
        if not merged and mode == CREATE_ONLY:
            return 0
        data = encode_shard(merged, is_final=is_final)
        await self._storage.put(key, data, mode=mode)
        return len(data)


def shard_of(prefix: str) -> int:
    """Return which object has the block of a directory."""
    return blake2b(prefix.encode(), digest_size=1).digest()[0] % SHARDS


def shard_key(shard: int) -> str:
    return f"{INDEX_PREFIX}{shard:02x}"


def _dated(shard: Shard, stored_at_ns: int) -> dict[str, Block]:
    """Return blocks that say until when they are to be believed: they may be written again, in a younger object."""
    not_after_ns = stored_at_ns if shard.is_final else stored_at_ns - 1
    return {
        prefix: block if block.not_after_ns else replace(block, not_after_ns=not_after_ns)
        for prefix, block in shard.blocks.items()
    }
