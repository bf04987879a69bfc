"""One mount from its beginning to its end: builds everything, and owns the order in which that goes away again.

Beginning: the mount point is checked, the store is asked what it can do, the lease is taken, the tree is built; then
the kernel is told (`session`). How far that is, is told in lines, and answered on the socket. At the end the parts are
closed in the opposite order.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import trio

from backends.base import ObjectStorage
from backends.errors import StorageError, Unavailable
from backends.noting import NotingStorage
from fusefs.assembly import open_tree
from fusefs.cache_directory import CacheDirectory
from fusefs.config import Config
from fusefs.control import Progress, socket_path
from fusefs.control_server import ControlServer
from fusefs.errors import MountError, first_cause
from fusefs.kernel_tuning import tune_process
from fusefs.lease import check_before_sending
from fusefs.mountpoints import check_mountpoint
from fusefs.options import BucketStore
from fusefs.session import Observer, Session
from fusefs.stage_budget import StageBudget
from fusefs.start_progress import REPEAT_SECONDS, StartProgress
from fusefs.status import identity_of, starting_document
from fusefs.stores import OpenStore, gated, open_store
from fusefs.term import Term, open_term, warn_of_mounts_above
from fusefs.upload_notes import Writer, open_notes
from fusefs.upload_orphans import abort_orphans, clear_trials, find_orphans

_log = logging.getLogger(__name__)


async def run_mount(config: Config, observer: Observer) -> None:
    """Mount, and return when the mount is gone and everything is published.

    Raises `MountError` with one line for the operator, before or after the mount was there.
    """
    check_mountpoint(config.mount.mountpoint)
    tune_process()
    mount_id = uuid.uuid4().hex[:12]
    front = _Front(config, StartProgress(observer.starting, trio.current_time))
    store = open_store(config.store, retry_timeout_seconds=config.mount.retry_timeout_seconds)
    try:
        await _probe(store, config, front.progress_of_start)
        cache = CacheDirectory.claim(config.mount.cache_dir, mount_id)
        try:
            with _bare_mount_errors():
                await _live(config, mount_id, store, cache, front, observer)
        finally:
            cache.release()
    finally:
        await _close(store)


async def _live(
    config: Config,
    mount_id: str,
    store: OpenStore,
    cache: CacheDirectory,
    front: _Front,
    observer: Observer,
) -> None:
    """Do what a mount does between the first answer of its store and the last request to it."""
    progress, writer = front.progress_of_start, _writer(config)
    budget = StageBudget(config.mount.cache_size_bytes)
    async with (
        front.answering() as control,
        open_term(
            config, store, mount_id=mount_id, known_dead=cache.dead, budget=budget, progress=progress
        ) as term,
        open_notes(store.storage, mount_id, writer) as notes,
    ):
        may_write = not config.mount.read_only
        orphans = await find_orphans(store.storage, writer, known_dead=cache.dead) if may_write else []
        storage = NotingStorage(_for_the_tree(config, store, term), notes)
        async with (
            open_tree(config, storage, cache, mount_id, term, budget, progress) as tree,
            trio.open_nursery() as nursery,
        ):
            # Only now: the log may have needed some of them.
            nursery.start_soon(abort_orphans, store.storage, orphans)
            if may_write:
                nursery.start_soon(clear_trials, store.storage)
                nursery.start_soon(warn_of_mounts_above, config, store)
            front.session = Session(config, tree, cache, store, term, control, front.began_at)
            await front.session.run(observer)
            nursery.cancel_scope.cancel()


def _for_the_tree(config: Config, store: OpenStore, term: Term | None) -> ObjectStorage:
    """Return the store as the tree may use it: where there is a term, for changes only while its lease is held."""
    if term is None:
        return store.storage
    check = partial(check_before_sending, term.lease)
    return gated(config.store, store, check, retry_timeout_seconds=config.mount.retry_timeout_seconds)


async def _close(store: OpenStore) -> None:
    with trio.CancelScope(shield=True):
        await store.storage.aclose()
    used = store.meter.statistics()
    _log.info(
        "%d requests, %d bytes sent, %d bytes received", used.requests, used.bytes_sent, used.bytes_received
    )


def _writer(config: Config) -> Writer:
    if config.mount.shared:
        return Writer.SHARED
    return Writer.OWNER if config.mount.lease else Writer.UNLEASED


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
        error = first_cause(errors)
        raise error from error.__cause__


async def _probe(store: OpenStore, config: Config, progress: StartProgress) -> None:
    with _bare_mount_errors():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_tell_of_silence, progress)
            try:
                await store.storage.probe(read_only=config.mount.read_only)
            except StorageError as error:
                raise MountError(f"{config.store.url}: {error}{_where_to_look(config, error)}") from error
            nursery.cancel_scope.cancel()


def _where_to_look(config: Config, error: StorageError) -> str:
    """Return what else is to be told of a bucket that was not to be had; the error has named the endpoint."""
    if isinstance(error, Unavailable) and isinstance(config.store, BucketStore):
        return ": is a server running there, and can this host reach it? --endpoint names another"
    return ""


async def _tell_of_silence(progress: StartProgress) -> None:
    """Tell, as long as it lasts, that the store has not answered: whoever waits sees nothing else."""
    began_at = trio.current_time()
    while True:
        await trio.sleep(REPEAT_SECONDS)
        seconds = trio.current_time() - began_at
        progress.note("asking the store", f"it has not answered in full for {seconds:.0f} s")


class _Front:
    """What the socket answers: how far the mount is, and when the kernel knows it what the session says."""

    def __init__(self, config: Config, progress_of_start: StartProgress) -> None:
        self._config = config
        self.progress_of_start = progress_of_start
        self.session: Session | None = None
        self.began_at = trio.current_time()

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[ControlServer]:
        """Answer on the socket for the block. Raises `MountError` where there cannot be one.

        Where somebody else does, the socket is left to them until it is certain that this mount is to be there.
        """
        path = socket_path(self._config.mount.mountpoint)
        server = ControlServer(path, drain=self._drain, progress=self._progress, status=self._status)
        async with trio.open_nursery() as nursery:
            if not server.is_taken():
                await nursery.start(server.serve)
            yield server
            nursery.cancel_scope.cancel()

    async def _drain(self) -> None:
        if self.session is None:
            raise MountError("the mount has not begun yet")
        await self.session.drain()

    def _progress(self) -> Progress:
        if self.session is None:
            return Progress(pending_inodes=0, pending_bytes=0)
        return self.session.progress()

    def _status(self) -> Mapping[str, object]:
        if self.session is None:
            uptime = trio.current_time() - self.began_at
            return starting_document(identity_of(self._config, uptime), self.progress_of_start.line)
        return self.session.status()
