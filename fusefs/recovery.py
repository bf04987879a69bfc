"""From the logs of earlier terms to inodes that are ready for the tree.

    read      the batches that count, in order; bytes go to the stage (`replay`)
    find      for each inode, which object of the bucket is its own by now, and up to which batch it is complete
    complete  uploads whose parts hold bytes that nothing else does
    build     the inode, with the bytes that the object lacks as dirty ones

An object is an inode's own if the log names just that version, or if its metadata carries the inode's log id: the
mount that died has published it after the last record. It is looked for under every name that the log knows the inode
by. What else carries the id, under a name that the inode has no more, is left over and to be deleted. A directory's
marker that carries no metadata at all is taken for one that does: some stores keep none of keys that end with a slash.

Nothing that is read here changes the bucket but a completed upload, whose bytes belong to the file either way. So
whoever is killed in the middle leaves a log that says the same as before.
"""

from __future__ import annotations

import logging
import re
import stat
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

import trio

from backends.base import (
    CREATE_ONLY,
    MIB,
    IfMatch,
    MultipartUpload,
    ObjectInfo,
    ObjectStorage,
    Part,
    PutMode,
    iterate_pages,
)
from backends.errors import InvalidPart, NotFound, PreconditionFailed, UploadNotFound
from fusefs.attributes import Attributes, Defaults, from_metadata
from fusefs.change_log import LOG_KEY
from fusefs.content import Content, ContentSources, Version
from fusefs.errors import LogDamaged
from fusefs.extents import ExtentSet
from fusefs.inodes import Alias, Directory, File, Inode, Links, Special, Symlink
from fusefs.journal_format import InodeRecord, Position, StoredVersion, UploadReference
from fusefs.keys import RESERVED_PREFIX, segment_of
from fusefs.link_lists import list_key, list_of
from fusefs.log_reader import NOWHERE, OldLog, batches, places
from fusefs.object_writer import CONFLICTS_PREFIX
from fusefs.placement import DETOURS_PREFIX, ORPHANS_PREFIX, ROOT_MARKER
from fusefs.replay import Replay, Replayed, Sources

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

LOOKS_AT_ONCE: Final = 32
"""HEADs under way together."""

FETCHED_PART: Final = 16 * MIB
"""Bytes of a part that the store cannot copy."""

_LOG_ID: Final = re.compile(r"[0-9a-f]+-[0-9a-f]+")
_MARK: Final = re.compile(r"([0-9a-f]+-[0-9a-f]+)@([0-9a-f]+)-([0-9a-f]+)")


@dataclass(frozen=True, slots=True)
class RecoveredInode:
    """An inode for the tree; its path are the names on the way to it."""

    path: tuple[bytes, ...]
    inode: Inode
    version: Version | None


@dataclass(kw_only=True)
class Recovered:
    """What the logs of earlier terms tell that the bucket does not."""

    inodes: list[RecoveredInode] = field(default_factory=list)
    #: Objects that belong to nobody any more.
    leftovers: list[Version] = field(default_factory=list)
    #: Prefixes of keys that something is to leave, and below which there are others too.
    directories: set[str] = field(default_factory=set)
    #: Where the story begins, for as long as any of it is not published.
    first: Position = NOWHERE


@dataclass(frozen=True, slots=True)
class _Found:
    """An object that is an inode's own, and the batch that it is complete with."""

    version: Version
    complete_to: Position


class Recovery:
    """One recovery; everything is built for the tree of a mount whose stage this is."""

    def __init__(self, storage: ObjectStorage, sources: ContentSources, defaults: Defaults) -> None:
        self._storage = storage
        self._sources = sources
        self._defaults = defaults
        self._looks = trio.CapacityLimiter(LOOKS_AT_ONCE)
        #: Keys of the markers that the directories of the log have in the end.
        self._markers: set[str] = set()

    async def read(self, logs: Sequence[OldLog]) -> Recovered:
        """Return what is to be done. Raises `LogDamaged`, OSError of the local disk, and what the store raises."""
        recovered = Recovered()
        if places(logs):
            await self._read(logs, recovered)
        await self._find_hidden(recovered)
        await self._find_directories(recovered)
        return recovered

    async def _read(self, logs: Sequence[OldLog], recovered: Recovered) -> None:
        counting = places(logs)
        recovered.first = counting[0][0]
        replay = Replay(self._sources.stage.new_file)
        size = 0
        async for batch in batches(logs):
            replay.apply(batch)
            size += 1
            if size % 100 == 0:
                _log.info("read %d of %d batches of the log", size, len(counting))
        _log.info(
            "the log of an earlier mount has %d batches, about %d files and directories",
            len(counting),
            len(replay.inodes),
        )
        self._markers = {key for replayed in replay.inodes.values() for key in _markers_of(replayed)}
        leftovers = {version.key: version for version in replay.leftovers}
        firsts = [replayed for replayed in replay.inodes.values() if replayed.last.link is None]
        await self._for_each(firsts, partial(self._recover, leftovers, recovered))
        by_log_id = {found.inode.log_id: found.inode for found in recovered.inodes}
        aliases = [replayed for replayed in replay.inodes.values() if replayed.last.link is not None]
        await self._for_each(aliases, partial(self._recover_alias, by_log_id, recovered))
        with_lists = [replayed for replayed in firsts if replayed.lists]
        await self._for_each(with_lists, partial(self._note_list, by_log_id, recovered))
        await self._for_each(replay.leftovers, partial(self._note_leftover, recovered))
        recovered.inodes.sort(key=lambda found: found.path)
        taken = {found.version for found in recovered.inodes}
        recovered.leftovers = [version for version in recovered.leftovers if version not in taken]

    async def _find_hidden(self, recovered: Recovered) -> None:
        """Note what was left of removed files that were open, and of objects that were out of the way."""
        taken = {found.version for found in recovered.inodes}
        for prefix in (ORPHANS_PREFIX, DETOURS_PREFIX):
            async for page in iterate_pages(self._storage, prefix):
                for info in page.objects:
                    version = Version(info.key, info.etag, info.size)
                    if _LOG_ID.fullmatch(info.key.removeprefix(prefix)) and version not in taken:
                        recovered.leftovers.append(version)

    async def _find_directories(self, recovered: Recovered) -> None:
        """Note which directories are there, although no listing of their parents can tell that any more."""
        departing = {version.key for version in recovered.leftovers}
        for found in recovered.inodes:
            if found.version is not None and found.version.key.removesuffix("/") == _key_of(found.path):
                recovered.directories |= _prefixes_of(found.version.key)
            elif found.version is not None:
                departing.add(found.version.key)
        unknown = set().union(*map(_prefixes_of, departing)) - recovered.directories

        async def look_below(prefix: str) -> None:
            async with aclosing(iterate_pages(self._storage, prefix)) as pages:
                async for page in pages:
                    if any(info.key not in departing for info in page.objects):
                        recovered.directories.add(prefix)
                        return

        await self._for_each(
            [prefix for prefix in unknown if not prefix.startswith(RESERVED_PREFIX)], look_below
        )

    async def _for_each(self, things: Iterable[_T], look: Callable[[_T], Awaitable[None]]) -> None:
        failures: list[Exception] = []

        async def look_at(thing: _T) -> None:
            try:
                async with self._looks:
                    await look(thing)
            except Exception as error:  # of any kind: the nursery would make a group of it
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for thing in things:
                nursery.start_soon(look_at, thing)
        if failures:
            raise failures[0]

    async def _recover(
        self, leftovers: dict[str, StoredVersion], recovered: Recovered, replayed: Replayed
    ) -> None:
        found = await self._find(replayed)
        path = replayed.last.path
        upload = _needed_upload(replayed)
        if path is not None and upload is not None and not (found and await self._is_ended(upload)):
            completed = await self._complete(replayed, upload, leftovers, found)
            found = [completed, *(each for each in found if each.version.key != upload.key)]
        strays = found if path is None else found[1:]
        recovered.leftovers += [each.version for each in strays]
        if path is not None:
            current = found[0] if found else None
            version = current.version if current is not None else _lost(replayed)
            recovered.inodes.append(RecoveredInode(path, self._build(replayed, current), version))

    async def _recover_alias(
        self, by_log_id: Mapping[str, Inode], recovered: Recovered, replayed: Replayed
    ) -> None:
        """Find the object of a further name; what is to be in it is its inode's matter."""
        record = replayed.last
        of = by_log_id.get(record.link or "")
        if of is None and record.path is not None:
            return  # somebody else has changed the inode, and under this name there is what was there before
        found = await self._find(replayed)
        strays = found if record.path is None else found[1:]
        recovered.leftovers += [each.version for each in strays]
        if record.path is None or of is None:
            return
        if of.links is None:
            of.links = Links(number=max(replayed.lists, default=of.number))
        alias = Alias(number=record.number, attributes=of.attributes, of=of, log_id=record.log_id)
        of.links.aliases.append(alias)
        version = found[0].version if found else _lost(replayed)
        recovered.inodes.append(RecoveredInode(record.path, alias, version))

    async def _note_list(
        self, by_log_id: Mapping[str, Inode], recovered: Recovered, replayed: Replayed
    ) -> None:
        """Note the list of names of an inode that has no more than one now."""
        inode = by_log_id.get(replayed.last.log_id)
        if inode is not None and inode.aliases:
            return
        for number in replayed.lists:
            with suppress(NotFound):
                info = await self._storage.head(list_key(number))
                recovered.leftovers.append(Version(info.key, info.etag, info.size))

    async def _note_leftover(self, recovered: Recovered, leftover: StoredVersion) -> None:
        version = await self._still_there(leftover)
        if version is not None:
            recovered.leftovers.append(version)

    # Finding

    async def _find(self, replayed: Replayed) -> list[_Found]:
        """Return the objects that are the inode's own, the newest first."""
        found = await self._look_under(replayed, _names(replayed))
        if not found and replayed.versions:
            log_id = replayed.last.log_id
            hidden = [f"{DETOURS_PREFIX}{log_id}", f"{ORPHANS_PREFIX}{log_id}"]
            found = await self._look_under(replayed, hidden)
        at_home = _keys_of(replayed, [replayed.last.path] if replayed.last.path is not None else [])
        found.sort(key=lambda each: (each.complete_to, each.version.key in at_home), reverse=True)
        return found

    async def _look_under(self, replayed: Replayed, keys: Iterable[str]) -> list[_Found]:
        found: list[_Found] = []
        for key in keys:
            try:
                info = await self._storage.head(key)
            except NotFound:
                continue
            own = _own(replayed, info)
            if own is None and self._may_be_marker_of(replayed, info):
                own = _Found(Version(info.key, info.etag, info.size), NOWHERE)
            if own is not None:
                found.append(own)
                number = list_of(info.metadata or {})
                replayed.lists.update([number] if number is not None else [])
        return found

    def _may_be_marker_of(self, replayed: Replayed, info: ObjectInfo) -> bool:
        """Return whether a marker without metadata, which SeaweedFS keeps of none, is taken for the directory's own.

        That is where nothing is to be any more, or just the directory: no bytes are lost with a marker.
        """
        if not _is_directory(replayed.last) or info.size or info.metadata:
            return False
        return info.key not in self._markers or info.key in _markers_of(replayed)

    # Uploads that nobody has completed

    async def _is_ended(self, upload: UploadReference) -> bool:
        """Return whether an upload was completed: what the log refers to is not aborted."""
        begun = await self._storage.list_multipart_uploads(upload.key)
        return all(each.upload_id != upload.upload_id for each in begun)

    async def _complete(
        self,
        replayed: Replayed,
        upload: UploadReference,
        leftovers: dict[str, StoredVersion],
        found: Sequence[_Found],
    ) -> _Found:
        """Make an object of the parts that the log refers to. Raises `LogDamaged` where they are not there.

        It replaces the one that the inode has under that key, if any, whose bytes behind the parts go up as well.
        """
        replaced = next((each.version for each in found if each.version.key == upload.key), None)
        in_the_way = replaced or await self._still_there(leftovers.get(upload.key))
        mode: PutMode = IfMatch(in_the_way.etag) if in_the_way is not None else CREATE_ONLY
        resumed = self._storage.resume_multipart(upload.key, upload.upload_id)
        sources = replayed.bytes_since(NOWHERE)
        parts: list[Part] = []
        end = 0
        try:
            for part in upload.parts:
                if end < part.start:
                    # A part that was being replaced: the log has its bytes.
                    number = len(parts) + 1
                    data = _bytes(replayed, sources.explicit, end, part.start)
                    parts.append(await resumed.upload_part(number, data))
                parts.append(Part(number=part.number, etag=part.etag, size=part.end - part.start))
                end = part.end
            for start, stop in _pieces(end, _end_of_stored(replayed, sources, replaced), self._longest_part):
                assert replaced is not None
                parts.append(await self._carried_over(resumed, parts[-1].number + 1, replaced, start, stop))
                end = stop
            etag = await resumed.complete(parts, mode=mode)
        except (UploadNotFound, InvalidPart, PreconditionFailed, NotFound) as error:
            raise LogDamaged(
                f"bytes of {replayed.last.path!r} were in upload {upload.upload_id} of {upload.key!r},"
                f" which cannot be completed: {error}"
            ) from error
        leftovers.pop(upload.key, None)
        return _Found(Version(upload.key, etag, end), NOWHERE)

    async def _still_there(self, leftover: StoredVersion | None) -> Version | None:
        """Return the object that was to be deleted, if it was not."""
        if leftover is not None:
            with suppress(NotFound):
                if (await self._storage.head(leftover.key)).etag == leftover.etag:
                    return _version(leftover)
        return None

    @property
    def _longest_part(self) -> int:
        if self._storage.capabilities.copy_part:
            return self._storage.limits.max_copy_size
        return max(FETCHED_PART, self._storage.limits.min_part_size)

    async def _carried_over(
        self, upload: MultipartUpload, number: int, source: Version, start: int, end: int
    ) -> Part:
        """Make a part of an object's bytes."""
        length = end - start
        if self._storage.capabilities.copy_part:
            return await upload.copy_part(number, source.key, start, length, if_match=source.etag)
        stored = await self._storage.get_range(source.key, start, length, if_match=source.etag)
        return await upload.upload_part(number, stored.data)

    # Building

    def _build(self, replayed: Replayed, current: _Found | None) -> Inode:
        record = replayed.last
        attributes = self._attributes(record)
        inode: Inode
        if _is_directory(record):
            inode = Directory(number=record.number, attributes=attributes)
        elif record.target is not None:
            inode = Symlink(number=record.number, attributes=attributes, target=record.target)
        elif _is_file(attributes):
            inode = File(
                number=record.number, attributes=attributes, content=self._content(replayed, current)
            )
        else:
            inode = Special(number=record.number, attributes=attributes)
        inode.log_id = record.log_id
        return inode

    def _attributes(self, record: InodeRecord) -> Attributes:
        return from_metadata(
            record.metadata, directory=_is_directory(record), stored_at_ns=0, defaults=self._defaults
        )

    def _content(self, replayed: Replayed, current: _Found | None) -> Content:
        base = current.version if current is not None else _lost(replayed)
        if replayed.file is None or replayed.size is None:
            return Content(self._sources, base=base)
        sources = replayed.bytes_since(current.complete_to if current is not None else NOWHERE)
        if base is None:
            sources.stored.truncate(0)
        else:
            sources.stored.truncate(min(base.size, replayed.size))
        return Content.restored(
            self._sources,
            replayed.file,
            base=base,
            size=replayed.size,
            written=_with_zeros(sources.explicit, sources.stored, replayed),
            base_limit=sources.stored.end,
        )


def _with_zeros(explicit: ExtentSet, stored: ExtentSet, replayed: Replayed) -> ExtentSet:
    """Return the written ranges, with what nothing tells of as zeros; nobody writes a log with such."""
    assert replayed.file is not None
    assert replayed.size is not None
    known = explicit.copy()
    for extent in stored:
        known.add(*extent)
    for gap in known.gaps(0, replayed.size):
        replayed.file.punch_hole(gap.start, gap.length)
        explicit.add(*gap)
    explicit.truncate(replayed.size)
    return explicit


def _needed_upload(replayed: Replayed) -> UploadReference | None:
    """Return the upload of the last record, if its parts may have bytes that the log itself does not have."""
    upload = replayed.upload
    if upload is None or not upload.parts or replayed.size is None:
        return None
    explicit, stored = replayed.bytes_since(NOWHERE)
    stored.truncate(min(replayed.size, upload.parts[-1].end))
    for extent in explicit:
        stored.remove(*extent)
    return upload if stored else None


def _end_of_stored(replayed: Replayed, sources: Sources, base: Version | None) -> int:
    """Return where that ends which nothing but the object in the bucket has."""
    if base is None or replayed.size is None:
        return 0
    stored = sources.stored.copy()
    stored.truncate(min(base.size, replayed.size))
    for extent in sources.explicit:
        stored.remove(*extent)
    return stored.end


def _pieces(start: int, end: int, longest: int) -> Iterator[tuple[int, int]]:
    while start < end:
        stop = min(start + longest, end)
        yield start, stop
        start = stop


def _bytes(replayed: Replayed, explicit: ExtentSet, start: int, end: int) -> bytes:
    if replayed.file is None or not explicit.covers(start, end):
        raise LogDamaged(
            f"bytes {start} to {end} of {replayed.last.path!r} are neither in the log nor in a part"
        )
    return replayed.file.read(start, end - start)


def _key_of(path: Iterable[bytes]) -> str:
    return "/".join(map(segment_of, path))


def _prefixes_of(key: str) -> set[str]:
    """Return the prefix of each directory on the way to a key; that of a marker's own is one of them."""
    return {key[: end + 1] for end, letter in enumerate(key) if letter == "/"}


def _names(replayed: Replayed) -> Iterable[str]:
    """Return the keys under which the inode's objects may be."""
    keys = dict.fromkeys(_keys_of(replayed, reversed(replayed.paths)))
    keys |= dict.fromkeys(version.key for version in replayed.versions)
    if replayed.upload is not None:
        keys[replayed.upload.key] = None
    return [key for key in keys if not key.startswith(CONFLICTS_PREFIX)]  # nobody removes those


def _keys_of(replayed: Replayed, paths: Iterable[tuple[bytes, ...]]) -> list[str]:
    keys = [_key_of(path) for path in paths]
    if _is_directory(replayed.last):
        return [f"{key}/" if key else ROOT_MARKER for key in keys]
    return keys


def _markers_of(replayed: Replayed) -> list[str]:
    """Return the key of the marker that a directory has in the end, if it is one that is there."""
    if replayed.last.path is None or not _is_directory(replayed.last):
        return []
    return _keys_of(replayed, [replayed.last.path])


def _own(replayed: Replayed, info: ObjectInfo) -> _Found | None:
    version = Version(info.key, info.etag, info.size)
    mark = _MARK.fullmatch((info.metadata or {}).get(LOG_KEY, ""))
    if mark is not None and mark[1] == replayed.last.log_id:
        marked = Position(int(mark[2], 16), int(mark[3], 16))
        # An upload has its mark from its beginning. One that a recovery has completed lacks bytes that the log had
        # before that; and what the log tells can be laid over any newer object, too.
        return _Found(version, NOWHERE if replayed.refers_to_upload_after(marked) else marked)
    if StoredVersion(info.key, info.etag, info.size) in replayed.versions:
        return _Found(version, NOWHERE)
    return None


def _lost(replayed: Replayed) -> Version | None:
    """Return the version that the bucket had, where it has none of the inode any more: its publication finds that."""
    versions = list(replayed.versions)
    return _version(versions[-1]) if versions else None


def _version(stored: StoredVersion) -> Version:
    return Version(stored.key, stored.etag, stored.size)


def _is_directory(record: InodeRecord) -> bool:
    return stat.S_ISDIR(_mode(record))


def _is_file(attributes: Attributes) -> bool:
    return stat.S_ISREG(attributes.mode)


def _mode(record: InodeRecord) -> int:
    mode = record.metadata.get("mode", "")
    return int(mode) if mode.isdecimal() else 0
