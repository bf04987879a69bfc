"""One mount from its beginning to its end: builds everything, owns the nursery, the signals and the order of teardown.

Beginning: the mount point is checked, the store is asked what it can do, the tree is built, the kernel is told; only
when a request has gone round through the kernel is the mount called ready.

End, whoever asks for it (SIGTERM, SIGINT, `fusefs umount`, umount(8)): what the kernel still holds is fetched from
it, everything is published, the mount goes away, and what came in meanwhile is published. What cannot be published
is moved to `cache_dir/rescued`, and the process ends with an error that says so. A second signal stops the waiting.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import stat
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

import pyfuse3
import trio

from backends.base import ObjectStorage
from backends.errors import StorageError
from backends.noting import NotingStorage
from fusefs.attributes import Defaults, fresh
from fusefs.cache_directory import CacheDirectory
from fusefs.clock import SystemClock
from fusefs.config import Config
from fusefs.content import ContentSources
from fusefs.control import ControlServer, Progress, socket_path
from fusefs.errors import MountError
from fusefs.filesystem import Filesystem, FilesystemOptions
from fusefs.index_writer import IndexWriter
from fusefs.inodes import ROOT_NUMBER, Directory, File, InodeTable
from fusefs.kept_content import KeptContent, keep_all
from fusefs.kernel_tuning import tune_mount, tune_process
from fusefs.mountpoints import check_mountpoint, sync_filesystem
from fusefs.namespace import Namespace, NamespaceOptions
from fusefs.operations import FuseOperations, KernelOptions
from fusefs.options import BucketStore, MountOptions
from fusefs.placement import Placement
from fusefs.publisher import Publisher, PublishOptions
from fusefs.stage import Stage
from fusefs.stage_budget import StageBudget
from fusefs.stores import OpenStore, open_store
from fusefs.tree_index import TreeIndex
from fusefs.upload_notes import UploadNotes, abort_orphans
from fusefs.uploads import Uploads
from fusefs.xattr_calls import XattrCalls

_log = logging.getLogger(__name__)

FETCHES_IN_FLIGHT: Final = 12
"""Ranged GETs of 4 MiB under way at once: 48 MiB of memory, and enough for a network of 1 GB/s and 40 ms."""

PART_MEMORY: Final = 64 * 1024 * 1024
"""Bytes of parts in memory at once, for all uploads together."""

COLLECTING_SHARE: Final = 0.25
"""Of `publish_interval`: how long written pages of open files stay with the kernel; the rest is the publisher's."""

INDEX_PATIENCE_SECONDS: Final = 30.0
"""For how long the end of a mount waits for the index, which nothing depends on."""

DEFAULT_PART_SIZE: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """The parts of a mount that the rest of it talks to."""

    filesystem: Filesystem
    publisher: Publisher
    index_writer: IndexWriter
    #: None: files have no extended attributes.
    xattrs: XattrCalls | None


async def run_mount(config: Config, on_ready: Callable[[], None]) -> None:
    """Mount, call `on_ready` when the mount answers, and return when it is gone and everything is published.

    Raises `MountError` with one line for the operator, before or after the mount was there.
    """
    check_mountpoint(config.mount.mountpoint)
    tune_process()
    mount_id = uuid.uuid4().hex[:12]
    store = open_store(config.store, retry_timeout_seconds=config.mount.retry_timeout_seconds)
    cache: CacheDirectory | None = None
    try:
        await _probe(store, config)
        cache = CacheDirectory.claim(config.mount.cache_dir, mount_id)
        with _bare_mount_errors():
            notes = UploadNotes(cache.upload_notes, config.store.url)
            storage = NotingStorage(store.storage, notes)
            for orphan in cache.orphans:
                notes.remember(orphan)
            async with (
                open_tree(config, storage, cache, mount_id) as tree,
                trio.open_nursery() as nursery,
            ):
                if not config.mount.read_only:
                    nursery.start_soon(abort_orphans, storage, config.store.url, cache.orphans)
                await _Session(config, tree, cache).run(on_ready)
                nursery.cancel_scope.cancel()
    finally:
        if cache is not None:
            cache.release()
        with trio.CancelScope(shield=True):
            await store.storage.aclose()
        used = store.meter.statistics()
        _log.info(
            "%d requests, %d bytes sent, %d bytes received",
            used.requests,
            used.bytes_sent,
            used.bytes_received,
        )


@contextmanager
def _bare_mount_errors() -> Iterator[None]:
    """Take a `MountError` out of the groups into which nurseries put what is raised in them."""
    try:
        yield
    except BaseExceptionGroup as group:
        errors, others = group.split(MountError)
        if errors is None:
            raise
        if others is not None:
            _log.error("this failed as well", exc_info=others)
        error: BaseException = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from error.__cause__


async def _probe(store: OpenStore, config: Config) -> None:
    try:
        await store.storage.probe(read_only=config.mount.read_only)
    except StorageError as error:
        raise MountError(f"{config.store.url}: {error}") from error


@asynccontextmanager
async def open_tree(
    config: Config, storage: ObjectStorage, cache: CacheDirectory, mount_id: str
) -> AsyncIterator[Tree]:
    """Build everything below the kernel's interface, with its tasks running for the block.

    If the block ends well, what is clean then is kept for later mounts.
    """
    options = config.mount
    part_size = (
        config.store.multipart_part_size_bytes if isinstance(config.store, BucketStore) else DEFAULT_PART_SIZE
    )
    stage = Stage(cache.stage)
    budget = StageBudget(options.cache_size_bytes)
    kept = KeptContent(cache.kept, budget, store=config.store.identity)
    clock = SystemClock()
    async with trio.open_nursery() as nursery:
        sources = ContentSources(
            stage, storage, nursery.start_soon, budget, trio.CapacityLimiter(FETCHES_IN_FLIGHT), kept
        )
        root = Directory(
            number=ROOT_NUMBER,
            attributes=fresh(
                mode=stat.S_IFDIR | options.directory_mode,
                uid=options.uid,
                gid=options.gid,
                now_ns=clock.realtime_ns(),
            ),
        )
        inodes = InodeTable(root)
        placement = Placement(root, mount_id=mount_id)
        uploads = Uploads(
            storage,
            nursery.start_soon,
            part_size=part_size,
            parts_in_flight=max(2, PART_MEMORY // part_size),
        )
        publisher = Publisher(
            storage,
            placement,
            uploads,
            PublishOptions(
                delay_seconds=options.publish_delay_seconds,
                interval_seconds=options.publish_interval_seconds * (1 - COLLECTING_SHARE),
                workers=options.upload_workers,
            ),
            mount_id=mount_id,
        )
        defaults = Defaults(
            uid=options.uid,
            gid=options.gid,
            file_mode=options.file_mode,
            directory_mode=options.directory_mode,
        )
        index = TreeIndex(storage, nursery.start_soon, defaults)
        index_writer = IndexWriter(index, inodes, placement, publisher, root, defaults, shared=options.shared)
        namespace = Namespace(
            storage,
            sources,
            placement,
            publisher,
            inodes,
            NamespaceOptions(
                defaults=defaults,
                mounted_at_ns=clock.realtime_ns(),
                revalidate_seconds=_freshness_seconds(options),
                shared=options.shared,
            ),
            index,
        )
        filesystem = Filesystem(
            namespace,
            inodes,
            publisher,
            budget,
            clock,
            FilesystemOptions(
                read_only=options.read_only,
                shared=options.shared,
                wait_on_close=options.wait_on_close,
                kernel_keeps_times=not options.shared,
                read_ahead=options.read_ahead_bytes,
            ),
        )
        xattrs = XattrCalls(
            storage, inodes, publisher, clock, read_only=options.read_only, shared=options.shared
        )
        try:
            await namespace.load_root(root)
        except StorageError as error:
            raise MountError(f"{config.store.url}: {error}") from error
        nursery.start_soon(publisher.run)
        if not options.read_only:
            nursery.start_soon(index_writer.run)
        try:
            yield Tree(
                filesystem=filesystem,
                publisher=publisher,
                index_writer=index_writer,
                xattrs=xattrs if options.xattr else None,
            )
        finally:
            nursery.cancel_scope.cancel()
            stage.close()
    keep_all(budget)
    stage.close()


class _Session:
    """The mount while the kernel knows it."""

    def __init__(self, config: Config, tree: Tree, cache: CacheDirectory) -> None:
        self._config = config
        self._mountpoint = config.mount.mountpoint
        self._filesystem = tree.filesystem
        self._publisher = tree.publisher
        self._index_writer = tree.index_writer
        self._cache = cache
        self._operations = FuseOperations(
            tree.filesystem,
            KernelOptions(
                entry_timeout_seconds=_freshness_seconds(config.mount),
                writeback_cache=not config.mount.shared,
            ),
            tree.xattrs,
        )
        self._mounted = False
        #: Whether what could not be published has been rescued.
        self._ended = False
        self._patience = trio.CancelScope()
        self._impatient = False
        self._control = ControlServer(
            socket_path(self._mountpoint), drain=self._drain, progress=self._progress
        )

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Mount, serve until somebody ends it, and publish what is left."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            self._mount()
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(self._control.serve)
                    nursery.start_soon(self._stop_on_signal, signals, nursery)
                    nursery.start_soon(self._announce, on_ready)
                    if self._operations.enable_writeback_cache and not self._config.mount.read_only:
                        nursery.start_soon(self._collect_pages)
                    await pyfuse3.main()
                    self._unmount()
                    await self._end()
                    nursery.cancel_scope.cancel()
            except BaseException:
                self._unmount()
                if not self._ended:
                    self._rescue()  # whatever ended the mount, what was written is not thrown away with the stage
                raise

    def _mount(self) -> None:
        try:
            pyfuse3.init(self._operations, str(self._mountpoint), set(self._options()))
        except RuntimeError as error:
            raise MountError(f"{self._mountpoint} cannot be mounted: {_why_not(self._config)}") from error
        self._mounted = True

    def _unmount(self) -> None:
        if self._mounted:
            self._mounted = False
            pyfuse3.close(unmount=True)

    def _options(self) -> Iterable[str]:
        yield "default_permissions"
        yield "subtype=fusefs"
        yield "fsname=" + self._config.store.url.replace("\\", "\\\\").replace(",", "\\,")
        if self._config.mount.read_only:
            yield "ro"
        if self._config.mount.allow_other:
            yield "allow_other"

    async def _announce(self, on_ready: Callable[[], None]) -> None:
        """Send one request round through the kernel, and then say that the mount is there."""
        status = await trio.to_thread.run_sync(os.stat, self._mountpoint)
        await trio.to_thread.run_sync(tune_mount, status.st_dev)
        _log.info("%s is mounted on %s", self._config.store.url, self._mountpoint)
        on_ready()

    async def _stop_on_signal(self, signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
        number = await anext(signals)
        _log.info("%s: publishing what is left, then unmounting", signal.Signals(number).name)
        nursery.start_soon(self._stop)
        number = await anext(signals)
        _log.warning("%s again: not waiting for uploads any more", signal.Signals(number).name)
        self._impatient = True
        self._patience.cancel()

    def _with_patience(self) -> trio.CancelScope:
        """Return a scope that a second signal ends."""
        self._patience = trio.CancelScope(deadline=-math.inf if self._impatient else math.inf)
        return self._patience

    async def _stop(self) -> None:
        with self._with_patience():
            try:
                await self._drain()
            except Exception as error:
                _log.error("not everything could be published while mounted: %s", error)
        if self._mounted:
            pyfuse3.terminate()

    async def _collect_pages(self) -> None:
        """Fetch in time what was written to files that stay open, and that only the kernel has: it keeps pages long.

        With no writer there are no such pages, and the descriptor of the call would only be in the way of umount(8).
        """
        while True:
            await trio.sleep(self._config.mount.publish_interval_seconds * COLLECTING_SHARE)
            if self._filesystem.has_writers:
                try:
                    await trio.to_thread.run_sync(sync_filesystem, self._mountpoint)
                except OSError as error:
                    _log.warning("the kernel's pages could not be fetched: %s", error.strerror)

    async def _drain(self) -> None:
        """Publish everything, the pages that only the kernel holds included. Raises why something was not."""
        if self._mounted and not self._config.mount.read_only:
            await trio.to_thread.run_sync(sync_filesystem, self._mountpoint)
        await self._publisher.publish_all()

    def _progress(self) -> Progress:
        left = self._publisher.statistics()
        return Progress(pending_inodes=left.pending_inodes + left.leftovers, pending_bytes=left.pending_bytes)

    async def _end(self) -> None:
        """Publish what is left after the mount has gone; rescue what cannot be. Raises `MountError` for that."""
        error: str | None = None
        with self._with_patience():
            try:
                await self._publisher.publish_all()
            except Exception as failure:
                _log.error("not everything could be published: %s", failure)
        rescued = self._rescue()
        self._ended = True
        if rescued:
            error = (
                f"{rescued} changed files could not be published; their bytes are in {self._cache.rescued}"
            )
        elif self._publisher.pending_inodes() or self._publisher.statistics().leftovers:
            error = "not every change of names and attributes could be published; the log says which"
        if error is None and not self._config.mount.read_only:
            await self._save_index()
        await self._control.tell_end(error)
        if error is not None:
            raise MountError(error)
        _log.info("%s is unmounted, everything is published", self._mountpoint)

    async def _save_index(self) -> None:
        """Leave what is known of the tree to the next mount, as far as that does not take long."""
        with self._with_patience(), trio.move_on_after(INDEX_PATIENCE_SECONDS):
            await self._index_writer.save(is_final=True)

    def _rescue(self) -> int:
        files = [
            inode
            for inode in self._publisher.pending_inodes()
            if isinstance(inode, File) and inode.linked and inode.content.changed
        ]
        for file in files:
            where = self._cache.rescued.joinpath(*map(os.fsdecode, file.path))
            try:
                where.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                file.content.rescue(where)
            except OSError as error:
                _log.error("%r was not published and cannot be rescued: %s", file.path_key, error)
                continue
            staged = [(extent.start, extent.end) for extent in file.content.present]
            _log.error(
                "%r was not published; bytes %s of %d are in %s", file.path_key, staged, file.size, where
            )
        return len(files)


def _freshness_seconds(options: MountOptions) -> float:
    """Return how long the kernel, and how long the tree, may believe what the bucket said.

    On a shared mount the two add up to the interval: what the kernel is told may be as old as a listing.
    """
    return options.revalidate_interval_seconds / (2 if options.shared else 1)


def _why_not(config: Config) -> str:
    """Return what most likely made fusermount3 refuse; libfuse tells its reason on standard error only."""
    if not os.path.exists("/dev/fuse"):
        return "/dev/fuse is missing; load the module with: modprobe fuse"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse may not be opened by this user"
    if config.mount.allow_other and os.getuid() != 0:
        return "--allow-other needs the line user_allow_other in /etc/fuse.conf"
    return "see the message of fusermount3 above"
