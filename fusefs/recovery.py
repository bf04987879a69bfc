"""From the logs of earlier terms to inodes that are ready for the tree.

    read      the batches that count, in order; bytes go to the stage (`replay`)
    find      for each inode, which object of the bucket is its own by now, and up to which batch it is complete
              (`log_objects`)
    complete  uploads whose parts hold bytes that nothing else does (`log_uploads`)
    build     the inode, with the bytes that the object lacks as dirty ones

What else is an inode's own, under a name that it has no more, is left over and to be deleted.

Of what the log needs nothing in the bucket is changed, but that an upload is completed, whose bytes belong to the file
either way, and that what is in its way is copied elsewhere first. So whoever is killed in the middle leaves a log that
says the same as before.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from backends.base import iterate_pages
from backends.errors import AccessDenied, NotFound
from fusefs import extended_attributes
from fusefs.attributes import Attributes, Defaults, from_metadata
from fusefs.content import Content, ContentSources
from fusefs.directory_search import DirectorySearch
from fusefs.errors import MountError
from fusefs.extents import ExtentSet
from fusefs.inodes import Alias, Directory, File, Inode, Links, Special, Symlink
from fusefs.link_lists import list_key, new_list_number
from fusefs.log_objects import LOG_ID, LogObjects, OwnObject, is_directory, key_of, version_of
from fusefs.log_reader import OldLog
from fusefs.log_records import NOWHERE, InodeRecord, Position
from fusefs.log_uploads import LogUploads, needed_upload
from fusefs.old_logs import batches, places
from fusefs.placement import ORPHANS_PREFIX, UNSEEN, unseen
from fusefs.quantities import brief_size
from fusefs.replay import Replay, Replayed
from fusefs.start_progress import StartProgress
from fusefs.versions import Version

_log = logging.getLogger(__name__)


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
    #: Paths of directories that something is to leave, and below which there are others too.
    directories: set[tuple[bytes, ...]] = field(default_factory=set)
    #: Where the story begins, for as long as any of it is not published.
    first: Position = NOWHERE


class Recovery:
    """One recovery; everything is built for the tree of a mount whose stage this is."""

    def __init__(self, sources: ContentSources, defaults: Defaults, progress: StartProgress) -> None:
        self._storage = sources.storage
        self._sources = sources
        self._defaults = defaults
        self._progress = progress

    async def read(self, logs: Sequence[OldLog]) -> Recovered:
        """Return what is to be done.

        Raises `MountError` where the store denies what it takes, `LogDamaged`, OSError of the local disk, and what the
        store raises.
        """
        recovered = Recovered()
        if places(logs):
            await self._read(logs, recovered)
        await self._find_hidden(recovered)
        await self._find_directories(recovered)
        return recovered

    async def _read(self, logs: Sequence[OldLog], recovered: Recovered) -> None:
        counting = places(logs)
        recovered.first = counting[0][0]
        replay = await self._replay(logs)
        objects = await LogObjects.of(self._storage, replay)
        found: dict[Replayed, list[OwnObject]] = {}

        uploads = LogUploads(self._storage, found, replay.leftovers)

        async def find(replayed: Replayed) -> None:
            with _denial_told(replayed):
                found[replayed] = await objects.find(replayed)

        async def complete(replayed: Replayed) -> None:
            with _denial_told(replayed):
                await uploads.complete(replayed)

        await self._progress.for_each(
            replay.inodes.values(), find, "looking for its files and directories in the bucket"
        )
        firsts = [replayed for replayed in replay.inodes.values() if replayed.last.link is None]
        with_uploads = [replayed for replayed in firsts if needed_upload(replayed) is not None]
        # One after the other: the object that is in the way of one may have bytes that another one still lacks.
        await self._progress.for_each(with_uploads, complete, "completing its uploads", at_once=1)
        for replayed in firsts:
            self._recover(recovered, replayed, found[replayed])
        by_log_id = {each.inode.log_id: each.inode for each in recovered.inodes}
        for replayed in replay.inodes.values():
            if replayed.last.link is not None:
                of = by_log_id.get(replayed.last.link)
                self._recover_alias(recovered, replayed, of, found[replayed])
        with_lists = [replayed for replayed in firsts if replayed.lists]
        await self._progress.for_each(with_lists, partial(self._note_list, by_log_id, recovered))
        await self._progress.for_each(replay.leftovers, partial(self._note_leftover, recovered))
        recovered.inodes.sort(key=lambda each: each.path)

    async def _replay(self, logs: Sequence[OldLog]) -> Replay:
        """Read all that counts, and tell how far that is."""
        counting = [position for position, _ in places(logs)]
        sizes = {position: size for log in logs for position, size in log.sizes.items()}
        whole = sum(sizes[position] for position in counting)
        replay = Replay(self._sources.stage.new_file, self._sources.budget.give_back_all)
        count = size = 0
        self._note_read(0, len(counting), 0, whole)
        async for batch in batches(logs):
            replay.apply(batch)
            count, size = count + 1, size + sizes[batch.position]
            self._note_read(count, len(counting), size, whole)
        return replay

    def _note_read(self, count: int, batches: int, size: int, whole: int) -> None:
        self._progress.note(
            "reading the log that an earlier mount has left",
            f"{count:,} of {batches:,} batches, {brief_size(size)} of {brief_size(whole)}",
        )

    async def _find_hidden(self, recovered: Recovered) -> None:
        """Note what was left of removed files that were open.

        What is left of objects that were out of the way the log tells. Of what it does not, below `DETOURS_PREFIX`, a
        part may be damaged, or given up: the object may be the only one of a file.
        """
        taken = {found.version for found in recovered.inodes}
        orphans: list[Version] = []
        async for page in iterate_pages(self._storage, ORPHANS_PREFIX):
            for info in page.objects:
                version = version_of(info)
                if LOG_ID.fullmatch(info.key.removeprefix(ORPHANS_PREFIX)) and version not in taken:
                    orphans.append(version)
        recovered.leftovers += orphans
        await self._progress.for_each(orphans, partial(self._note_xattrs_of, recovered))

    async def _note_xattrs_of(self, recovered: Recovered, orphan: Version) -> None:
        """Note what goes with a removed file; the log may not tell of it any more."""
        with suppress(NotFound):
            metadata = (await self._storage.head(orphan.key)).metadata or {}
            key = extended_attributes.own_key(extended_attributes.from_metadata(metadata))
            recovered.leftovers += [unseen(key)] if key is not None else []

    async def _find_directories(self, recovered: Recovered) -> None:
        """Note which directories are there, although no listing of their parents can tell that any more."""
        search = DirectorySearch(
            self._storage,
            {
                found.path: found.inode.source
                for found in recovered.inodes
                if isinstance(found.inode, Directory) and found.inode.source is not None
            },
            [(found.path, found.version.key) for found in recovered.inodes if found.version is not None],
            [version.key for version in recovered.leftovers],
        )
        await self._progress.for_each(search.unknown(), search.look_into)
        recovered.directories = search.found

    def _recover(self, recovered: Recovered, replayed: Replayed, found: Sequence[OwnObject]) -> None:
        path = replayed.last.path
        strays = found if path is None else found[1:]
        recovered.leftovers += [each.version for each in strays]
        if path is None:
            recovered.leftovers += map(unseen, replayed.xattrs)
            if replayed.file is not None:
                replayed.file.discard()
        else:
            current = found[0] if found else None
            version = current.version if current is not None else _lost(replayed)
            recovered.inodes.append(RecoveredInode(path, self._build(replayed, current), version))

    def _recover_alias(
        self, recovered: Recovered, replayed: Replayed, of: Inode | None, found: Sequence[OwnObject]
    ) -> None:
        """Note the object of a further name; what is to be in it is its inode's matter."""
        record = replayed.last
        if record.path is None:
            recovered.leftovers += [each.version for each in found]
            return
        if of is None:
            return  # somebody else has changed the inode, and under this name there is what was there before
        recovered.leftovers += [each.version for each in found[1:]]
        if of.links is None:
            of.links = Links(number=replayed.last_list or new_list_number(of.number))
        alias = Alias(number=record.number, attributes=of.attributes, of=of, log_id=record.log_id)
        of.links.aliases.append(alias)
        version = found[0].version if found else _lost(replayed)
        recovered.inodes.append(RecoveredInode(record.path, alias, version))

    async def _note_list(
        self, by_log_id: Mapping[str, Inode], recovered: Recovered, replayed: Replayed
    ) -> None:
        """Note the list of names of an inode: it is of no use as soon as that has no more than one."""
        inode = by_log_id.get(replayed.last.log_id)
        links = inode.links if inode is not None and inode.aliases else None
        for number in replayed.lists if links is None else [links.number]:
            with suppress(NotFound):
                version = version_of(await self._storage.head(list_key(number)))
                if links is not None:
                    links.listed = version
                else:
                    recovered.leftovers.append(version)

    async def _note_leftover(self, recovered: Recovered, leftover: Version) -> None:
        try:
            found = version_of(await self._storage.head(leftover.key))
        except NotFound:
            return
        except AccessDenied:
            found = leftover  # or not; it is deleted only if it is just that one
        if leftover.etag in (found.etag, UNSEEN):
            recovered.leftovers.append(found)

    # Building

    def _build(self, replayed: Replayed, current: OwnObject | None) -> Inode:
        record = replayed.last
        attributes = self._attributes(record)
        inode: Inode
        if is_directory(record):
            inode = Directory(number=record.number, attributes=attributes, source=record.source)
        elif record.target is not None:
            inode = Symlink(number=record.number, attributes=attributes, target=record.target)
        elif stat.S_ISREG(attributes.mode):
            inode = File(
                number=record.number, attributes=attributes, content=self._content(replayed, current)
            )
        else:
            inode = Special(number=record.number, attributes=attributes)
        inode.log_id = record.log_id
        inode.stored_xattrs = tuple(replayed.xattrs)
        return inode

    def _attributes(self, record: InodeRecord) -> Attributes:
        return from_metadata(
            record.metadata, directory=is_directory(record), stored_at_ns=0, defaults=self._defaults
        )

    def _content(self, replayed: Replayed, current: OwnObject | None) -> Content:
        base = current.version if current is not None else _lost(replayed)
        if replayed.file is None or replayed.size is None:
            return Content(self._sources, base=base)
        sources = replayed.bytes_since(current.complete_to if current is not None else NOWHERE)
        if base is None:
            sources.stored.truncate(0)
        else:
            sources.stored.truncate(min(base.size, replayed.size))
        written = _with_zeros(sources.explicit, sources.stored, replayed)
        if not written:
            replayed.file.discard()  # the bucket has newer bytes than all that were laid there
        content = Content.restored(
            self._sources,
            replayed.file,
            base=base,
            size=replayed.size,
            written=written,
            base_limit=sources.stored.end,
        )
        content.is_referred = replayed.upload is not None
        return content


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


@contextmanager
def _denial_told(replayed: Replayed) -> Iterator[None]:
    """Say of which file it is, and what can be done, that the store denies what a recovery takes.

    To go on without that file would show an older state of it, or none, and others may build on what was confirmed.
    """
    try:
        yield
    except AccessDenied as error:
        upload = [replayed.upload.key] if replayed.upload is not None else []
        keys = [version.key for version in replayed.versions]
        name = next(iter([*upload, *map(key_of, reversed(replayed.paths)), *keys]), replayed.last.log_id)
        raise MountError(
            f"the log has what was confirmed of {name!r}, and the store denies that key: let this mount read and write"
            f" it, and mount again; nothing of the log is applied or lost ({error})"
        ) from error


def _lost(replayed: Replayed) -> Version | None:
    """Return the version that the bucket had, where it has none of the inode any more: its publication finds that."""
    versions = list(replayed.versions)
    return versions[-1] if versions else None
