"""The term of a mount that is the only writer: from taking the lease to giving it back, with the log between.

The log is in the mounted prefix, or (`ack_after_upload = false`) on the local disk; the lease says where. A mount
recovers what earlier terms have left in either place. The log and the lease have connections of their own, so that a
commit, or a renewal, does not wait behind uploads.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import uuid
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
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
from fusefs.options import BucketStore
from fusefs.stored_lease import LEASE_KEY, longest_call_seconds, look
from fusefs.stores import OpenStore, open_beside, open_local

_log = logging.getLogger(__name__)

LOG_CONNECTIONS: Final = 6
"""As many as there are batches on their way at once, and some that trim or read."""

LEASE_CONNECTIONS: Final = 2

IN_BUCKET: Final = ""
"""The name of the place of a log that is in the mounted prefix itself."""

NOTHING_FOUND: Final[Mapping[str, int]] = MappingProxyType({})

RELEASE_SECONDS: Final = 10.0
"""How long giving the lease back may hold up the end of a mount."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """What a mount has as long as it is the only writer."""

    lease: Lease
    committer: Committer
    #: What earlier terms have left, wherever their logs are.
    old: list[OldLog]

    @property
    def follows_crash(self) -> bool:
        """Whether the mount before has not given its lease back."""
        previous = self.lease.previous
        return previous is not None and not previous.released


@asynccontextmanager
async def open_term(
    config: Config, store: OpenStore, *, mount_id: str, known_dead: Collection[str]
) -> AsyncIterator[Term | None]:
    """Be the only writer for the block; None for mounts that are not. Raises `MountError`."""
    if config.mount.shared or config.mount.read_only:
        yield None
        return
    patience = config.mount.retry_timeout_seconds
    async with _beside(config, store, patience, LOG_CONNECTIONS) as beside, _on_disk(config) as on_disk:
        readers = {IN_BUCKET: LogReader(beside), place_on_disk(config): LogReader(on_disk)}
        with _as_mount_error(config):
            found = {place: await reader.last_epoch() for place, reader in readers.items()}
        async with hold_lease(
            config,
            store,
            identity(mount_id, str(config.mount.mountpoint)),
            known_dead=known_dead,
            found=found,
        ) as lease:
            with _as_mount_error(config):
                old = [
                    await readers[place].find(since_epoch=since_epoch, before_epoch=lease.epoch)
                    for place, since_epoch in _old_places(lease, readers)
                ]
            older = [(log.reader.storage, log.keys) for log in old]
            journal = Journal(readers[_own_place(config)].storage, lease.epoch, older=older)
            committer = Committer(journal, lease, max_log_bytes=config.mount.log_size_bytes)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_forget_old_logs, journal, lease)
                try:
                    yield Term(lease=lease, committer=committer, old=old)
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
async def alone_for(what: str, config: Config, store: OpenStore) -> AsyncIterator[None]:
    """Keep every mount of the prefix away for the block; what is in logs stays to be recovered. Raises `MountError`."""
    async with hold_lease(config, store, identity(uuid.uuid4().hex[:12], what)) as lease:
        try:
            yield
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + RELEASE_SECONDS):
                await lease.release(clean=False)


async def log_begins(storage: ObjectStorage) -> int:
    """Return since which term a mount reads the log in the prefix. Raises `LeaseDamaged`, and what the store raises."""
    found = await look(storage)
    if found is None:
        return 1
    places = {log.place: log.since_epoch for log in found.record.logs}
    return places.get(IN_BUCKET, found.record.epoch + 1)


def identity(holder: str, what: str) -> Identity:
    """Return how this process names itself in a lease; `what` is a mount point, or a command."""
    return Identity(holder=holder, host=socket.gethostname(), pid=os.getpid(), mountpoint=what)


@asynccontextmanager
async def hold_lease(
    config: Config,
    store: OpenStore,
    identity: Identity,
    *,
    known_dead: Collection[str] = (),
    found: Mapping[str, int] = NOTHING_FOUND,
) -> AsyncIterator[Lease]:
    """Take the lease, and have it renewed for the block. `found` is the last term in each place of logs.

    Raises `MountError`.
    """
    options = config.mount
    at_least_epoch = max(found.values(), default=0) + 1
    if not options.lease:
        _log.warning("mounted without a lease: nothing keeps another mount from writing the same prefix")
        with _as_mount_error(config):
            before = await look(store.storage)
        yield NoLease(at_least_epoch, previous=before.record if before is not None else None)
        return
    claim = Claim(
        identity=identity,
        term_seconds=options.lease_term_seconds,
        log=_own_place(config),
        at_least_epoch=at_least_epoch,
        found=found,
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


def place_on_disk(config: Config) -> str:
    """Return the name of the place of a log on the local disk, for people and for the mounts of this host."""
    return f"{socket.gethostname()}:{_directory(config)}"


def _directory(config: Config) -> Path:
    digest = hashlib.sha256(config.store.identity.encode()).hexdigest()
    return config.mount.cache_dir / "log" / digest[:16]


def log_place(config: Config) -> str:
    """Return where a mount keeps its log, for people."""
    return _own_place(config) or "the bucket"


def _own_place(config: Config) -> str:
    is_local = isinstance(config.store, BucketStore) and not config.store.ack_after_upload
    return place_on_disk(config) if is_local else IN_BUCKET


@asynccontextmanager
async def _on_disk(config: Config) -> AsyncIterator[ObjectStorage]:
    """Open the store of logs on the local disk. Raises `MountError`."""
    directory = _directory(config)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        storage = open_local(directory)
        await storage.probe()
    except (OSError, StorageError) as error:
        raise MountError(f"there can be no log in {directory}: {error}") from error
    try:
        yield storage
    finally:
        with trio.CancelScope(shield=True):
            await storage.aclose()


@contextmanager
def _as_mount_error(config: Config) -> Iterator[None]:
    """Put the URL before what keeps the mount from becoming the only writer."""
    try:
        yield
    except (StorageError, MountError) as error:
        raise MountError(f"{config.store.url}: {error}") from error


def _old_places(lease: Lease, known: Collection[str]) -> list[tuple[str, int]]:
    """Return where earlier terms have kept logs, and from which term on; where no lease tells, all that there are.

    Of terms without a lease, which are later than the one that it tells of, there may be a log in every place.
    """
    if lease.previous is None:
        return [(place, 1) for place in known]
    for log in lease.previous.logs:
        if log.place not in known:
            raise MountError(
                f"what was confirmed and is not in the bucket yet is in the log at {log.place}: mount it there first,"
                f" with that cache directory; if it is lost, remove the object {LEASE_KEY} to go on without it"
            )
    told = {log.place: log.since_epoch for log in lease.previous.logs}
    return [(place, told.get(place, lease.previous.epoch + 1)) for place in known]


async def _forget_old_logs(journal: Journal, lease: Lease) -> None:
    await journal.alone.wait()
    lease.recovered()
