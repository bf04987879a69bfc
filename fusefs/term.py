"""The term of a mount that is the only writer: from taking the lease to giving it back, with the log between.

The log and the lease have connections of their own, so that a commit, or a renewal, does not wait behind uploads.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

import trio

from backends.base import ObjectStorage
from backends.errors import StorageError
from fusefs.clock import SystemClock
from fusefs.committer import Committer
from fusefs.config import Config
from fusefs.errors import MountError
from fusefs.journal import Journal
from fusefs.lease import Lease, NoLease
from fusefs.lease_acquisition import Claim, acquire, check_supported
from fusefs.lease_record import Identity
from fusefs.log_reader import LogReader, OldLog
from fusefs.stored_lease import longest_call_seconds
from fusefs.stores import OpenStore, open_beside

_log = logging.getLogger(__name__)

LOG_CONNECTIONS: Final = 6
"""As many as there are batches on their way at once, and some that trim or read."""

LEASE_CONNECTIONS: Final = 2

IN_BUCKET: Final = ""
"""The name of the place of a log that is in the mounted prefix itself."""

RELEASE_SECONDS: Final = 10.0
"""How long giving the lease back may hold up the end of a mount."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """What a mount has as long as it is the only writer."""

    lease: Lease
    committer: Committer
    #: What earlier terms have left, and who reads it.
    old: OldLog
    reader: LogReader


@asynccontextmanager
async def open_term(
    config: Config, store: OpenStore, *, mount_id: str, known_dead: Collection[str]
) -> AsyncIterator[Term | None]:
    """Be the only writer for the block; None for mounts that are not. Raises `MountError`."""
    if config.mount.shared or config.mount.read_only:
        yield None
        return
    patience = config.mount.retry_timeout_seconds
    async with _beside(config, store, patience, LOG_CONNECTIONS) as log:
        reader = LogReader(log)
        async with _lease(config, store, mount_id, known_dead, await _last_epoch(config, reader)) as lease:
            with _as_mount_error(config):
                old = await reader.find(since_epoch=_oldest_log(lease), before_epoch=lease.epoch)
            journal = Journal(log, lease.epoch, older=old.keys)
            committer = Committer(journal, lease, max_log_bytes=config.mount.log_size_bytes)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_forget_old_logs, journal, lease)
                try:
                    yield Term(lease=lease, committer=committer, old=old, reader=reader)
                finally:
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + RELEASE_SECONDS):
                        await lease.release(clean=committer.is_empty)
                    nursery.cancel_scope.cancel()


@asynccontextmanager
async def _beside(
    config: Config, store: OpenStore, patience: float, connections: int
) -> AsyncIterator[ObjectStorage]:
    """Open the mount's store once more, for the block."""
    beside = open_beside(config.store, store, retry_timeout_seconds=patience, connections=connections)
    try:
        yield beside.storage
    finally:
        if beside.backend is not store.backend:
            with trio.CancelScope(shield=True):
                await beside.storage.aclose()


@asynccontextmanager
async def _lease(
    config: Config, store: OpenStore, mount_id: str, known_dead: Collection[str], last_epoch: int
) -> AsyncIterator[Lease]:
    """Take the lease, and have it renewed for the block."""
    options = config.mount
    if not options.lease:
        _log.warning("mounted without a lease: nothing keeps another mount from writing the same prefix")
        yield NoLease(last_epoch + 1)
        return
    claim = Claim(
        identity=Identity(
            holder=mount_id, host=socket.gethostname(), pid=os.getpid(), mountpoint=str(options.mountpoint)
        ),
        term_seconds=options.lease_term_seconds,
        log=IN_BUCKET,
        at_least_epoch=last_epoch + 1,
        known_dead=known_dead,
    )
    patience = longest_call_seconds(options.lease_term_seconds)
    async with _beside(config, store, patience, LEASE_CONNECTIONS) as storage:
        with _as_mount_error(config):
            check_supported(store.storage.capabilities)
            lease = await acquire(storage, claim, clock=SystemClock())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lease.run)
            yield lease
            nursery.cancel_scope.cancel()


async def _last_epoch(config: Config, reader: LogReader) -> int:
    with _as_mount_error(config):
        return await reader.last_epoch()


@contextmanager
def _as_mount_error(config: Config) -> Iterator[None]:
    """Put the URL before what keeps the mount from becoming the only writer."""
    try:
        yield
    except (StorageError, MountError) as error:
        raise MountError(f"{config.store.url}: {error}") from error


def _oldest_log(lease: Lease) -> int:
    """Return the first term whose log counts; where no lease tells, all that there are."""
    if lease.previous is None:
        return 1
    for log in lease.previous.logs:
        if log.place != IN_BUCKET:
            raise MountError(
                f"acknowledged changes are in a log that is not in the bucket but at {log.place}"
            )
    return min((log.since_epoch for log in lease.previous.logs), default=lease.epoch)


async def _forget_old_logs(journal: Journal, lease: Lease) -> None:
    await journal.alone.wait()
    lease.recovered()
