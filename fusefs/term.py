"""The term of a mount that is the only writer: from taking the lease to giving it back, with the log between.

The lease says where the log is, and a mount recovers what earlier terms have left in any place (`log_places`). The log
and the lease have connections of their own, so that a commit, or a renewal, does not wait behind uploads.
"""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final

import trio

from backends.base import ObjectStorage
from backends.errors import StorageError
from fusefs.clock import SystemClock
from fusefs.committer import Committer
from fusefs.config import Config
from fusefs.disk_log import DiskLog, open_disk_log
from fusefs.errors import LeaseDamaged, MountError
from fusefs.journal import Journal
from fusefs.lease import Lease, NoLease
from fusefs.lease_acquisition import Claim, acquire, waiting_message
from fusefs.lease_record import Identity
from fusefs.log_places import IN_BUCKET, LogPlaces, log_is_on_disk, places_here, set_aside_given_up
from fusefs.log_reader import OldLog
from fusefs.log_room import LogRoom
from fusefs.old_logs import READ_AT_ONCE, find_logs
from fusefs.stage_budget import StageBudget
from fusefs.start_progress import StartProgress
from fusefs.stored_lease import longest_call_seconds, look
from fusefs.stores import OpenStore, above, open_beside

_log = logging.getLogger(__name__)

LOG_CONNECTIONS: Final = READ_AT_ONCE
"""As many as batches of earlier terms are read at once: more than are on their way of this one, and some that trim."""

LEASE_CONNECTIONS: Final = 2

RELEASE_SECONDS: Final = 10.0
"""How long giving the lease back may hold up the end of a mount."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """What a mount has as long as it is the only writer."""

    lease: Lease
    committer: Committer
    #: What the log needs of the local disk, if it is there.
    log_room: LogRoom | None
    #: What earlier terms have left, wherever their logs are.
    old: list[OldLog]

    @property
    def follows_crash(self) -> bool:
        """Whether the mount before has not ended well, whoever else may have had the lease since."""
        previous = self.lease.previous
        if previous is not None and not (previous.released and not previous.logs):
            return True
        return any(log.keys for log in self.old)  # of a mount without a lease


@asynccontextmanager
async def open_term(
    config: Config,
    store: OpenStore,
    *,
    mount_id: str,
    known_dead: Collection[str],
    budget: StageBudget,
    progress: StartProgress,
) -> AsyncIterator[Term | None]:
    """Be the only writer for the block; None for mounts that are not. Raises `MountError`.

    What `budget` counts shares the disk with a log that is there.
    """
    if config.mount.shared or config.mount.read_only:
        yield None
        return
    patience = config.mount.retry_timeout_seconds
    async with _beside(config, store, patience, LOG_CONNECTIONS) as beside, open_disk_log(config) as on_disk:
        own_disk = on_disk if log_is_on_disk(config) else None
        places = LogPlaces.of(beside, on_disk)
        who = identity(mount_id, str(config.mount.mountpoint))
        claim = await _claim(config, who, places, own_disk, known_dead)
        claim = replace(claim, alternative=", or mount with --read-only")
        async with hold_lease(config, store, claim, progress) as lease:
            old = await _end_earlier(config, lease, places, claim, on_disk)
            journal = Journal(
                places.readers[claim.log].storage,
                lease.epoch,
                older=[(log.reader.storage, log.keys) for log in old],
                is_leased=config.mount.lease,
                make_room=budget.give_back_all if own_disk is not None else None,
            )
            committer = Committer(
                journal,
                lease,
                patience_seconds=patience,
                max_log_bytes=config.mount.log_size_bytes,
                is_on_disk=own_disk is not None,
            )
            log_room = LogRoom(own_disk.directory, budget, journal) if own_disk is not None else None
            async with _given_back(lease, journal, committer):
                yield Term(lease=lease, committer=committer, log_room=log_room, old=old)


async def _claim(
    config: Config,
    who: Identity,
    places: LogPlaces,
    own_disk: DiskLog | None,
    known_dead: Collection[str] = (),
) -> Claim:
    """Return what somebody asks for, by what there is of logs. Raises `MountError`."""
    with _as_mount_error(config):
        found = await places.last_epochs()
        found_leased = await places.last_leased_epochs()
    return Claim(
        identity=who,
        term_seconds=config.mount.lease_term_seconds,
        log=own_disk.place if own_disk is not None else IN_BUCKET,
        places=places.disks,
        at_least_epoch=max(found.values()) + 1,
        found=found,
        found_leased=found_leased,
        known_dead=known_dead,
    )


async def _end_earlier(
    config: Config, lease: Lease, places: LogPlaces, claim: Claim, on_disk: DiskLog
) -> list[OldLog]:
    """End the logs of earlier terms, and return what counts of them. Raises `MountError`."""
    with _as_mount_error(config):
        await set_aside_given_up(lease, places, claim.found_leased, on_disk)
        return await find_logs(
            places.old_parts(lease.previous, claim.found_leased),
            before_epoch=lease.epoch,
            empty_too=lease.previous is not None,
        )


@asynccontextmanager
async def _given_back(lease: Lease, journal: Journal, committer: Committer) -> AsyncIterator[None]:
    """Tell the lease when old logs are gone; at the end of the block give it back, and then remove the log's end."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_forget_old_logs, journal, lease)
        try:
            yield
        finally:
            with _release_time():
                # In this order: whoever begins when we have died in between would miss what the lease tells of.
                if await lease.release(clean=committer.is_empty):
                    await committer.remove()
            nursery.cancel_scope.cancel()


def _release_time() -> trio.CancelScope:
    return trio.CancelScope(shield=True, deadline=trio.current_time() + RELEASE_SECONDS)


async def _forget_old_logs(journal: Journal, lease: Lease) -> None:
    await journal.alone.wait()
    lease.recovered()


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
async def alone_for(
    what: str, config: Config, store: OpenStore, progress: StartProgress
) -> AsyncIterator[Lease]:
    """Keep every mount of the prefix away for the block; what is in logs stays to be recovered. Raises `MountError`.

    Of a log on the disk that no lease tells of, this one does: the next mount would take it for one that was given up.
    """
    async with places_here(config, store.storage) as places:
        claim = await _claim(config, identity(uuid.uuid4().hex[:12], what), places, own_disk=None)
    if len(places.disks) == 1:
        claim = replace(claim, places={})  # there is none of a disk: it may go on where a lease names one
    async with hold_lease(config, store, claim, progress) as lease:
        yield lease


def identity(holder: str, what: str) -> Identity:
    """Return how this process names itself in a lease; `what` is a mount point, or a command."""
    return Identity(holder=holder, host=socket.gethostname(), pid=os.getpid(), mountpoint=what)


@asynccontextmanager
async def hold_lease(
    config: Config,
    store: OpenStore,
    claim: Claim,
    progress: StartProgress,
) -> AsyncIterator[Lease]:
    """Take the lease, have it renewed for the block, and give it back. Raises `MountError`.

    What is in logs is still needed then, unless the block has given it back itself.
    """
    if not config.mount.lease:
        _log.warning("mounted without a lease: nothing keeps another mount from writing the same prefix")
        with _as_mount_error(config):
            before = await look(store.storage)
        yield NoLease(claim.at_least_epoch, previous=before.record if before is not None else None)
        return
    patience = longest_call_seconds(claim.term_seconds)
    async with _beside(config, store, patience, LEASE_CONNECTIONS) as storage:
        with _as_mount_error(config):
            lease = await acquire(
                storage,
                claim,
                clock=SystemClock(),
                on_waiting=lambda seconds, record: progress.note(
                    "waiting for the lease", waiting_message(seconds, record)
                ),
            )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lease.run)
            try:
                yield lease
            finally:  # also where a mount is refused: nobody should have to wait for it
                with _release_time():
                    await lease.release(clean=False)
            nursery.cancel_scope.cancel()


async def warn_of_mounts_above(config: Config, store: OpenStore) -> None:
    """Say which mounts of prefixes above this one there are: the lease keeps neither of the two away.

    Where that cannot be read (these credentials may not, the store does not answer) nothing is said.
    """
    for url, storage in above(config.store, store):
        with suppress(StorageError, LeaseDamaged):
            found = await look(storage)
            if found is not None and not found.record.released:
                _log.warning(
                    "%s, which has this prefix in it, is mounted read-write at %s, or was when that mount died:"
                    " what the one changes here is a conflict to the other; mount prefixes beside each other",
                    url,
                    found.record.holder_shown,
                )


@contextmanager
def _as_mount_error(config: Config) -> Iterator[None]:
    """Put the URL before what keeps the mount from becoming the only writer."""
    try:
        yield
    except (StorageError, MountError) as error:
        raise MountError(f"{config.store.url}: {error}") from error
