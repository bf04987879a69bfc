"""Builds the parts of a mount below the kernel's interface, and has their tasks run."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from typing import Final

import trio

from backends.base import MIB, ObjectStorage
from backends.byte_budget import ByteBudget
from backends.errors import StorageError
from fusefs.attributes import Defaults, fresh
from fusefs.cache_directory import CacheDirectory
from fusefs.change_log import ChangeLog, NoLog
from fusefs.clock import Clock, SystemClock
from fusefs.committer import Committer
from fusefs.config import Config
from fusefs.content import ContentSources
from fusefs.errors import MountError
from fusefs.filesystem import Filesystem, FilesystemOptions
from fusefs.index_writer import IndexWriter
from fusefs.inode_packing import Packer
from fusefs.inode_table import InodeTable
from fusefs.inodes import ROOT_NUMBER, Directory
from fusefs.kept_content import KeptContent, keep_all
from fusefs.log_places import log_is_on_disk
from fusefs.log_reader import OldLog
from fusefs.namespace import Namespace, NamespaceOptions
from fusefs.options import BucketStore, MountOptions
from fusefs.placement import Placement
from fusefs.publisher import Publisher, PublishOptions
from fusefs.recovery import Recovery
from fusefs.restoration import Restoration
from fusefs.stage import Stage
from fusefs.stage_budget import StageBudget
from fusefs.start_progress import StartProgress
from fusefs.term import Term
from fusefs.tree_index import TreeIndex
from fusefs.uploads import Uploads
from fusefs.xattr_calls import XattrCalls

FETCH_MEMORY: Final = 48 * MIB
"""Bytes of ranged GETs under way at once, enough for a network of 1 GB/s and 40 ms; short ones have an eighth more."""

COMMITS_SHARE: Final = 4
"""What part of the workers publishes beside commits to the same store: beside all, one takes half as long again."""

MAX_FETCHES: Final = 16
"""Ranged GETs of one kind, long or short, under way at once: half of the store's connections as they are by default."""

PART_MEMORY: Final = 64 * MIB
"""Bytes of files on their way up at once, for all uploads together; small files have an eighth of it besides.

More only where two parts of the size that was asked for are more.
"""

DEFAULT_PART_SIZE: Final = 8 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class AssemblyOptions:
    """What the parts are told of their mount."""

    mount_id: str
    defaults: Defaults
    filesystem: FilesystemOptions
    publish: PublishOptions
    #: How old a listing may be when its directory is opened.
    revalidate_seconds: float
    part_size: int
    #: Of files on their way up.
    bytes_in_flight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Everything below the kernel's interface, part by part."""

    root: Directory
    inodes: InodeTable
    sources: ContentSources
    placement: Placement
    uploads: Uploads
    publisher: Publisher
    namespace: Namespace
    packer: Packer
    #: None where nothing is told to the next mount.
    index_writer: IndexWriter | None
    filesystem: Filesystem
    xattrs: XattrCalls


@asynccontextmanager
async def open_tree(
    config: Config,
    storage: ObjectStorage,
    cache: CacheDirectory,
    mount_id: str,
    term: Term | None,
    budget: StageBudget,
    progress: StartProgress,
) -> AsyncIterator[Tree]:
    """Build everything below the kernel's interface, with its tasks running for the block.

    What earlier terms have left is in the tree then. If the block ends well, what is clean then is kept for later
    mounts. Raises `MountError`.
    """
    log: ChangeLog = term.committer if term is not None else NoLog()
    options = _options(config, mount_id)
    kept = KeptContent(cache.kept, budget, store=config.store.identity)
    with closing(Stage(cache.stage)) as stage:
        async with trio.open_nursery() as nursery:
            spawn, fetches = nursery.start_soon, ByteBudget(FETCH_MEMORY, max_bodies=MAX_FETCHES)
            sources = ContentSources(stage, storage, spawn, budget, fetches, kept, logged=log.is_kept)
            index = TreeIndex(storage, spawn, options.defaults, others_write=term is None)
            tree = assemble(sources, log, index, SystemClock(), options)
            with _as_mount_error(config, cache):
                if term is not None and term.follows_crash:
                    await index.note_crash()
                await tree.namespace.load_root(tree.root)
                if term is not None:
                    spawn(term.committer.run)
                    await recover(tree, term.old, term.committer, options.defaults, progress)
            if term is not None and term.log_room is not None:
                # Only now: what was restored is in the log already.
                stage.leave_room(term.log_room.is_left_after)
            spawn(tree.publisher.run)
            spawn(tree.packer.run)
            if tree.index_writer is not None:
                spawn(tree.index_writer.run)
            try:
                yield tree
            finally:
                nursery.cancel_scope.cancel()
        keep_all(budget)


def _options(config: Config, mount_id: str) -> AssemblyOptions:
    mount, store = config.mount, config.store
    part_size = store.multipart_part_size_bytes if isinstance(store, BucketStore) else DEFAULT_PART_SIZE
    share = 1 if log_is_on_disk(config) else COMMITS_SHARE
    return AssemblyOptions(
        mount_id=mount_id,
        defaults=Defaults(
            uid=mount.uid, gid=mount.gid, file_mode=mount.file_mode, directory_mode=mount.directory_mode
        ),
        filesystem=FilesystemOptions(
            read_only=mount.read_only,
            shared=mount.shared,
            wait_on_close=mount.wait_on_close,
            kernel_keeps_times=kernel_owns_times(mount),
            read_ahead_bytes=mount.read_ahead_bytes,
        ),
        publish=PublishOptions(
            delay_seconds=mount.publish_delay_seconds,
            interval_seconds=mount.publish_interval_seconds,
            workers=mount.upload_workers,
            workers_beside_commits=-(-mount.upload_workers // share),
        ),
        revalidate_seconds=freshness_seconds(mount),
        part_size=part_size,
        bytes_in_flight=max(PART_MEMORY, 2 * part_size),
    )


def assemble(
    sources: ContentSources, log: ChangeLog, index: TreeIndex | None, clock: Clock, options: AssemblyOptions
) -> Tree:
    """Put the parts together; none of their tasks runs yet. Without `index`, nothing is known from earlier mounts."""
    storage, defaults, shared = sources.storage, options.defaults, options.filesystem.shared
    root = _new_root(defaults, clock)
    inodes = InodeTable(root)
    placement = Placement(root, log, mount_id=options.mount_id)
    uploads = Uploads(
        storage,
        sources.spawn,
        log,
        part_size=options.part_size,
        bytes_in_flight=options.bytes_in_flight,
    )
    publisher = Publisher(storage, placement, uploads, log, options.publish, mount_id=options.mount_id)
    seen_as = NamespaceOptions(
        defaults=defaults,
        mounted_at_ns=clock.realtime_ns(),
        revalidate_seconds=options.revalidate_seconds,
        shared=shared,
    )
    namespace = Namespace(sources, placement, publisher, inodes, clock, seen_as, index)
    filesystem = Filesystem(namespace, inodes, publisher, log, sources.budget, clock, options.filesystem)
    index_writer = None
    if index is not None and not options.filesystem.read_only:
        index_writer = IndexWriter(index, inodes, placement, publisher.changes, defaults, shared=shared)
    return Tree(
        root=root,
        inodes=inodes,
        sources=sources,
        placement=placement,
        uploads=uploads,
        publisher=publisher,
        namespace=namespace,
        packer=Packer(inodes, placement, publisher.changes),
        index_writer=index_writer,
        filesystem=filesystem,
        xattrs=XattrCalls(storage, inodes, publisher, clock, filesystem.check_writable, shared=shared),
    )


def _new_root(defaults: Defaults, clock: Clock) -> Directory:
    attributes = fresh(
        mode=stat.S_IFDIR | defaults.directory_mode,
        uid=defaults.uid,
        gid=defaults.gid,
        now_ns=clock.realtime_ns(),
    )
    return Directory(number=ROOT_NUMBER, attributes=attributes)


async def recover(
    tree: Tree, logs: Sequence[OldLog], committer: Committer, defaults: Defaults, progress: StartProgress
) -> None:
    """Put into the tree what earlier terms have left in their logs. Raises as `Recovery.read`."""
    recovery = Recovery(tree.sources, defaults, progress)
    restoration = Restoration(
        tree.namespace, tree.inodes, tree.placement, tree.publisher.changes, committer, progress
    )
    await restoration.restore(await recovery.read(logs))


@contextmanager
def _as_mount_error(config: Config, cache: CacheDirectory) -> Iterator[None]:
    """Say for the operator what keeps a tree from being there: the store, or the local disk."""
    try:
        yield
    except StorageError as error:
        raise MountError(f"{config.store.url}: {error}") from error
    except OSError as error:
        raise MountError(
            f"what an earlier mount has left cannot be laid out in {cache.stage}: {error.strerror}"
        ) from error


def freshness_seconds(options: MountOptions) -> float:
    """Return how long the kernel, and how long the tree, may believe what the bucket said.

    On a shared mount the two add up to the interval: what the kernel is told may be as old as a listing.
    """
    return options.revalidate_interval_seconds / (2 if options.shared else 1)


def kernel_owns_times(options: MountOptions) -> bool:
    """Return whether the kernel may gather writes. It hears nothing of times and sizes that others change then."""
    return not (options.shared or options.read_only)
