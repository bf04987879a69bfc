"""Builds the parts of a mount below the kernel's interface, and has their tasks run."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from backends.base import ObjectStorage
from backends.errors import StorageError
from fusefs.attributes import Defaults, fresh
from fusefs.cache_directory import CacheDirectory
from fusefs.change_log import ChangeLog, NoLog
from fusefs.clock import SystemClock
from fusefs.committer import Committer
from fusefs.config import Config
from fusefs.content import ContentSources
from fusefs.errors import MountError
from fusefs.filesystem import Filesystem, FilesystemOptions
from fusefs.index_writer import IndexWriter
from fusefs.inode_packing import Packer
from fusefs.inodes import ROOT_NUMBER, Directory, InodeTable
from fusefs.kept_content import KeptContent, keep_all
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

FETCHES_IN_FLIGHT: Final = 12
"""Ranged GETs of 4 MiB under way at once: 48 MiB of memory, and enough for a network of 1 GB/s and 40 ms."""

PART_MEMORY: Final = 64 * 1024 * 1024
"""Bytes of files on their way up at once, for all uploads together; small files have an eighth of it besides.

More only where two parts of the size that was asked for are more.
"""

DEFAULT_PART_SIZE: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """The parts of a mount that the rest of it talks to."""

    filesystem: Filesystem
    publisher: Publisher
    #: None without a log.
    committer: Committer | None
    index_writer: IndexWriter
    #: None: files have no extended attributes.
    xattrs: XattrCalls | None


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
    options = config.mount
    part_size = (
        config.store.multipart_part_size_bytes if isinstance(config.store, BucketStore) else DEFAULT_PART_SIZE
    )
    stage = Stage(cache.stage)
    kept = KeptContent(cache.kept, budget, store=config.store.identity)
    clock = SystemClock()
    async with trio.open_nursery() as nursery:
        sources = ContentSources(
            stage,
            storage,
            nursery.start_soon,
            budget,
            trio.CapacityLimiter(FETCHES_IN_FLIGHT),
            kept,
            logged=log.is_kept,
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
        defaults = Defaults(
            uid=options.uid,
            gid=options.gid,
            file_mode=options.file_mode,
            directory_mode=options.directory_mode,
        )
        placement = Placement(root, log, mount_id=mount_id)
        uploads = Uploads(
            storage,
            nursery.start_soon,
            log,
            part_size=part_size,
            bytes_in_flight=max(PART_MEMORY, 2 * part_size),
        )
        publisher = Publisher(
            storage,
            placement,
            uploads,
            log,
            PublishOptions(
                delay_seconds=options.publish_delay_seconds,
                interval_seconds=options.publish_interval_seconds,
                workers=options.upload_workers,
            ),
            mount_id=mount_id,
        )
        index = TreeIndex(storage, nursery.start_soon, defaults, others_write=term is None)
        index_writer = IndexWriter(
            index, inodes, placement, publisher.changes, root, defaults, shared=options.shared
        )
        namespace = Namespace(
            storage,
            sources,
            placement,
            publisher,
            inodes,
            NamespaceOptions(
                defaults=defaults,
                mounted_at_ns=clock.realtime_ns(),
                revalidate_seconds=freshness_seconds(options),
                shared=options.shared,
            ),
            index,
        )
        filesystem = Filesystem(
            namespace,
            inodes,
            publisher,
            log,
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
            storage, inodes, publisher, clock, filesystem.check_writable, shared=options.shared
        )
        try:
            if term is not None and term.follows_crash:
                await index.note_crash()
            await namespace.load_root(root)
            if term is not None:
                nursery.start_soon(term.committer.run)
                recovered = await Recovery(storage, sources, defaults, progress).read(term.old)
                restoration = Restoration(
                    root, namespace, inodes, placement, publisher.changes, term.committer
                )
                await restoration.restore(recovered)
        except StorageError as error:
            raise MountError(f"{config.store.url}: {error}") from error
        except OSError as error:
            raise MountError(
                f"what an earlier mount has left cannot be laid out in {cache.stage}: {error.strerror}"
            ) from error
        if term is not None and term.log_room is not None:
            # Only now: what was restored is in the log already.
            stage.leave_room(term.log_room.is_left_after)
        nursery.start_soon(publisher.run)
        nursery.start_soon(Packer(inodes, placement, publisher.changes).run)
        if not options.read_only:
            nursery.start_soon(index_writer.run)
        try:
            yield Tree(
                filesystem=filesystem,
                publisher=publisher,
                committer=term.committer if term else None,
                index_writer=index_writer,
                xattrs=xattrs if options.xattr else None,
            )
        finally:
            nursery.cancel_scope.cancel()
            stage.close()
    keep_all(budget)
    stage.close()


def freshness_seconds(options: MountOptions) -> float:
    """Return how long the kernel, and how long the tree, may believe what the bucket said.

    On a shared mount the two add up to the interval: what the kernel is told may be as old as a listing.
    """
    return options.revalidate_interval_seconds / (2 if options.shared else 1)
