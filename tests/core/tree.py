"""A whole tree over any store, for tests: everything below the kernel's interface, assembled as for a mount.

    async with open_tree(storage, tmp_path) as tree:
        await tree.write_file("d/a", b"bytes")
        await tree.publisher.publish_all()
        assert await stored(storage) == {"d/a": b"bytes"}

Time is trio's: with the fixture `autojump_clock` nothing waits in earnest, and the stamps of files follow it. What
the methods of `Tree` do with paths goes through `Filesystem`, with the references that a kernel would take and give.
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final

import trio

from backends.base import GIB, MIB, Data, Metadata, ObjectStorage, iterate_pages
from backends.byte_budget import ByteBudget
from backends.memory import MemoryStorage
from fusefs import assembly, prefetch
from fusefs.assembly import AssemblyOptions
from fusefs.attributes import Defaults
from fusefs.change_log import ChangeLog, NoLog
from fusefs.committer import Committer
from fusefs.content import ContentSources
from fusefs.filesystem import Caller, FilesystemOptions
from fusefs.inodes import Directory, File, Inode
from fusefs.journal import Journal
from fusefs.kept_content import KeptContent, keep_all
from fusefs.keys import RESERVED_PREFIX
from fusefs.lease import Lease, NoLease
from fusefs.log_reader import LogReader, OldLog
from fusefs.log_room import LogRoom
from fusefs.old_logs import LogPart, find_logs
from fusefs.publisher import PublishOptions
from fusefs.stage import Stage
from fusefs.stage_budget import MAX_CLEAN, StageBudget
from fusefs.start_progress import StartProgress
from fusefs.term import Term
from fusefs.tree_index import TreeIndex
from tests.support.faulty import FaultyStorage

CALLER: Final = Caller(uid=1000, gid=1000)
EPOCH_NS: Final = 1_700_000_000_000_000_000
"""What the clock of files shows when trio's clock is at 0."""

PATIENCE_SECONDS: Final = 3_600.0
"""On trio's clock: whatever has not ended by then hangs."""

NEVER: Final = 1e9
"""Seconds on trio's clock."""

NEVER_PUBLISHED: Final = PublishOptions(delay_seconds=NEVER, interval_seconds=NEVER)
"""Of a mount that publishes files when somebody waits for it, and never by itself: the log alone has them."""


class TrioTime:
    """The clock of a tree; its time of day goes with trio's clock and never stands still between two readings."""

    def __init__(self) -> None:
        self._readings = 0

    def realtime_ns(self) -> int:
        self._readings += 1
        return EPOCH_NS + int(trio.current_time() * 1e9) + self._readings


@dataclass(frozen=True, kw_only=True)
class TreeOptions:
    """How the tree is built; what is not named here is as in a mount."""

    publish: PublishOptions = field(default_factory=PublishOptions)
    filesystem: FilesystemOptions = field(default_factory=FilesystemOptions)
    revalidate_seconds: float = 60.0
    part_size: int = 5 * MIB
    parts_in_flight: int = 4
    fetches_in_flight: int = 4
    max_open_stage_files: int = 64
    cache_size: int = 10 * GIB
    max_clean: int = MAX_CLEAN
    mount_id: str = "mount"
    #: Whether what is known of the tree is kept in the bucket; off, because it makes requests that tests count.
    index: bool = False
    #: Whether the tree before it has not ended well.
    follows_crash: bool = False
    #: Whether it keeps a log in the storage, and recovers what the tree before it has left there.
    logged: bool = False
    max_log_bytes: float = math.inf
    #: Where the log is, if it is not in the storage.
    log_storage: ObjectStorage | None = None
    #: Where that is on the local disk, and takes room of it.
    log_directory: Path | None = None
    #: How long a commit waits for a lease that has lapsed.
    patience_seconds: float = 300.0
    #: The right to write; without one, nobody else wants it.
    lease: Lease | None = None
    #: The lease and the log as a mount has them, in place of all that is said here of either.
    term: Term | None = None
    defaults: Defaults = field(default_factory=lambda: Defaults(uid=CALLER.uid, gid=CALLER.gid))


@dataclass(frozen=True, kw_only=True)
class Tree(assembly.Tree):
    """The parts of a tree, and short ways to use them by path. Paths have no slash at the beginning; '' is the root."""

    storage: ObjectStorage
    log: ChangeLog

    async def find(self, path: str) -> Inode:
        """Return the inode of a path, without a reference to it. Raises `NoSuchEntry`."""
        inode: Inode = self.root
        for name in filter(None, path.encode().split(b"/")):
            assert isinstance(inode, Directory)
            inode = await self.namespace.lookup(inode, name, wholly=False)
        return inode

    async def find_file(self, path: str) -> File:
        inode = await self.find(path)
        assert isinstance(inode, File)
        return inode

    async def place_of(self, path: str) -> tuple[int, bytes]:
        """Return the number of the directory and the name, as the operations take them."""
        directory, _, name = path.rpartition("/")
        return (await self.find(directory)).number, name.encode()

    async def create(self, path: str, *, flags: int = os.O_RDWR, mode: int = 0o644) -> int:
        """Make a file and return its handle."""
        inode, handle = await self.filesystem.create(*await self.place_of(path), mode, flags, CALLER)
        self.filesystem.forget([(inode.number, 1)])
        return handle

    async def open(self, path: str, flags: int = os.O_RDWR) -> int:
        return await self.filesystem.open((await self.find(path)).number, flags, CALLER)

    async def close(self, handle: int) -> None:
        """As close(2) of the only descriptor: flush, whose error is the caller's, and release."""
        try:
            await self.filesystem.flush(handle)
        finally:
            await self.filesystem.release(handle)

    async def write_file(self, path: str, data: Data) -> None:
        """Make or replace (O_TRUNC) a file of these bytes."""
        directory, name = await self.place_of(path)
        known = self.inodes[directory]
        assert isinstance(known, Directory)
        if name in await self.listed(known):
            handle = await self.open(path, os.O_WRONLY | os.O_TRUNC)
        else:
            handle = await self.create(path, flags=os.O_WRONLY)
        try:
            await self.write(handle, 0, data)
        finally:
            await self.close(handle)

    async def write(self, handle: int, offset: int, data: Data) -> None:
        """Write as the kernel does: a MiB at a time."""
        view = memoryview(data)
        for start in range(0, len(view), MIB):
            await self.filesystem.write(handle, offset + start, view[start : start + MIB])

    async def read_file(self, path: str) -> bytes:
        handle = await self.open(path, os.O_RDONLY)
        try:
            return await self.filesystem.read(handle, 0, (await self.find(path)).size)
        finally:
            await self.filesystem.release(handle)

    async def mkdir(self, path: str, mode: int = 0o755) -> None:
        self._forget(await self.filesystem.mkdir(*await self.place_of(path), mode, CALLER))

    async def symlink(self, path: str, target: bytes) -> None:
        self._forget(await self.filesystem.symlink(*await self.place_of(path), target, CALLER))

    async def link(self, path: str, new_path: str) -> None:
        number = (await self.find(path)).number
        self._forget(await self.filesystem.link(number, *await self.place_of(new_path)))

    async def rename(self, path: str, new_path: str, flags: int = 0) -> None:
        await self.filesystem.rename(*await self.place_of(path), *await self.place_of(new_path), flags)

    async def unlink(self, path: str) -> None:
        await self.filesystem.unlink(*await self.place_of(path))

    async def rmdir(self, path: str) -> None:
        await self.filesystem.rmdir(*await self.place_of(path))

    async def names(self, path: str = "") -> list[str]:
        """Return what opendir and readdir tell."""
        handle = await self.filesystem.opendir((await self.find(path)).number)
        try:
            names: list[str] = []
            while entries := await self.filesystem.readdir(handle, len(names), 100):
                names += [name.decode() for name, _, _ in entries]
            return names
        finally:
            await self.filesystem.releasedir(handle)

    async def listed(self, directory: Directory) -> list[bytes]:
        """Return the names of a directory when all of them are known."""
        names = await self.namespace.names(directory)
        found: list[bytes] = []
        while more := await names.take(len(found), 1_000):
            found += more
        return found

    async def publish_all(self) -> None:
        """As `Publisher.publish_all`, which must end."""
        with trio.fail_after(PATIENCE_SECONDS):
            await self.publisher.publish_all()

    async def end(self) -> None:
        """Do what a mount does at its end."""
        await self.publish_all()
        if self.index_writer is not None:
            await self.index_writer.finish()

    def _forget(self, inode: Inode) -> None:
        self.filesystem.forget([(inode.number, 1)])


@asynccontextmanager
async def open_tree(
    storage: ObjectStorage, directory: Path, options: TreeOptions | None = None
) -> AsyncIterator[Tree]:
    """Build a tree over `storage` that stages in `directory`; nothing is published at the end of the block.

    What is clean then is kept in `directory` for the next tree, as it is at the end of a mount.
    """
    options = options or TreeOptions()
    stage_files = Stage(directory / "stage", max_open_files=options.max_open_stage_files)
    with bare_failures(), closing(stage_files) as stage:
        async with trio.open_nursery() as nursery:
            budget = StageBudget(options.cache_size, max_clean=options.max_clean)
            old, log, log_room = await _begin_log(storage, options, budget)
            kept = KeptContent(directory / "kept", budget, store="memory://")
            fetches = ByteBudget(options.fetches_in_flight * prefetch.FETCH_SIZE)
            sources = ContentSources(
                stage, storage, nursery.start_soon, budget, fetches, kept, logged=log.is_kept
            )
            tree = _assembled(sources, log, options)
            if options.index and options.follows_crash:
                await TreeIndex(storage, nursery.start_soon, options.defaults).note_crash()
            await tree.namespace.load_root(tree.root)
            if isinstance(log, Committer):
                nursery.start_soon(log.run)
                progress = StartProgress(lambda line: None, trio.current_time)
                await assembly.recover(tree, old, log, options.defaults, progress)
            if log_room is not None:
                stage.leave_room(log_room.is_left_after)
            nursery.start_soon(tree.publisher.run)
            try:
                yield tree
            finally:
                nursery.cancel_scope.cancel()
        keep_all(budget)


def _assembled(sources: ContentSources, log: ChangeLog, options: TreeOptions) -> Tree:
    others_write = options.filesystem.shared
    index = TreeIndex(sources.storage, sources.spawn, options.defaults, others_write=others_write)
    assembly_options = AssemblyOptions(
        mount_id=options.mount_id,
        defaults=options.defaults,
        filesystem=options.filesystem,
        publish=options.publish,
        revalidate_seconds=options.revalidate_seconds,
        part_size=options.part_size,
        bytes_in_flight=options.parts_in_flight * options.part_size,
    )
    assembled = assembly.assemble(
        sources, log, index if options.index else None, TrioTime(), assembly_options
    )
    parts = {part.name: getattr(assembled, part.name) for part in fields(assembled)}
    return Tree(storage=sources.storage, log=log, **parts)


async def _begin_log(
    storage: ObjectStorage, options: TreeOptions, budget: StageBudget
) -> tuple[list[OldLog], ChangeLog, LogRoom | None]:
    if options.term is not None:
        return options.term.old, options.term.committer, options.term.log_room
    if not options.logged:
        return [], NoLog(), None
    storage = options.log_storage or storage
    reader = LogReader(storage)
    lease = options.lease or NoLease(await reader.last_epoch() + 1)
    (old,) = await find_logs(
        [LogPart(reader, _log_begins(lease))],
        before_epoch=lease.epoch,
        empty_too=lease.previous is not None,
    )
    on_disk = options.log_directory
    journal = Journal(
        storage,
        lease.epoch,
        older=[(storage, old.keys)],
        make_room=budget.give_back_all if on_disk is not None else None,
    )
    committer = Committer(
        journal,
        lease,
        patience_seconds=options.patience_seconds,
        max_log_bytes=options.max_log_bytes,
        is_on_disk=options.log_storage is not None,
    )
    return [old], committer, LogRoom(on_disk, budget, journal) if on_disk is not None else None


def _log_begins(lease: Lease) -> int:
    """Return from which term on the log in the storage counts; the lease that was taken knows of no other place."""
    if lease.previous is None:
        return 1
    return min([log.since_epoch for log in lease.previous.logs], default=lease.previous.epoch + 1)


@contextmanager
def bare_failures() -> Iterator[None]:
    """Take the group off a failure that is alone in it: it is the test's own."""
    try:
        yield
    except ExceptionGroup as group:
        failure: Exception = group
        while isinstance(failure, ExceptionGroup) and len(failure.exceptions) == 1:
            failure = failure.exceptions[0]
        raise failure from None


async def filled(*keys: str) -> FaultyStorage:
    """Return a store with objects whose bytes are their keys."""
    storage = FaultyStorage(MemoryStorage())
    for key in keys:
        await storage.put(key, b"" if key.endswith("/") else key.encode())
    storage.calls.clear()
    return storage


async def stored(storage: ObjectStorage, *, ours: bool = False) -> dict[str, bytes]:
    """Return the bytes of every object, by key; those under `.fusefs/` only if `ours`."""
    return {key: (await storage.get_range(key)).data for key in await _keys(storage, ours=ours)}


async def stored_metadata(storage: ObjectStorage, *, ours: bool = False) -> dict[str, Metadata]:
    """Return the user metadata of every object, by key; those under `.fusefs/` only if `ours`."""
    return {key: (await storage.head(key)).metadata or {} for key in await _keys(storage, ours=ours)}


async def _keys(storage: ObjectStorage, *, ours: bool) -> list[str]:
    return [
        info.key
        async for page in iterate_pages(storage)
        for info in page.objects
        if ours or not info.key.startswith(RESERVED_PREFIX)
    ]
