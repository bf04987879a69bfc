"""Where the logs of a prefix are for a mount on this host: in the prefix itself, and on the local disk.

The log of a mount is in one of the two (`ack_after_upload`), and what earlier terms have left may be in both. The lease
says where; a log that was given up, because somebody has removed the lease that named it, is kept and not applied.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from backends.base import ObjectStorage
from fusefs.config import Config
from fusefs.disk_log import DiskLog, has_disk_log, open_disk_log, place_on_disk
from fusefs.errors import LogDamaged
from fusefs.lease import Lease
from fusefs.lease_acquisition import at_hand, first_untold
from fusefs.lease_record import LeaseRecord, LogPlace
from fusefs.log_reader import LogReader
from fusefs.log_records import Position
from fusefs.log_repair import DAMAGED_PREFIX, set_aside
from fusefs.old_logs import LogPart
from fusefs.options import BucketStore
from fusefs.stored_lease import look

_log = logging.getLogger(__name__)

IN_BUCKET: Final = ""
"""The name of the place of a log that is in the mounted prefix itself."""


def log_place(config: Config) -> str:
    """Return where a mount keeps its log, for people."""
    return place_on_disk(config) if log_is_on_disk(config) else "the bucket"


def log_is_on_disk(config: Config) -> bool:
    """Return whether a mount keeps its log on the local disk, beside a bucket."""
    return isinstance(config.store, BucketStore) and not config.store.ack_after_upload


@dataclass(frozen=True, slots=True)
class LogPlaces:
    """Where a mount here finds logs; all is by the names of the places."""

    readers: Mapping[str, LogReader]
    #: Which disk each is on; "" for the prefix itself.
    disks: Mapping[str, str]

    @classmethod
    def of(cls, bucket: ObjectStorage, on_disk: DiskLog | None) -> LogPlaces:
        """Return the places of a mount of `bucket`, with the log that is open on this host's disk, if one is."""
        readers, disks = {IN_BUCKET: LogReader(bucket)}, {IN_BUCKET: ""}
        if on_disk is not None:
            readers[on_disk.place] = LogReader(on_disk.storage, where=str(on_disk.directory))
            disks[on_disk.place] = on_disk.disk
        return cls(readers, disks)

    async def last_epochs(self) -> dict[str, int]:
        """Return the last term that has left anything, 0 if none has. Raises what the stores raise."""
        return {place: await reader.last_epoch() for place, reader in self.readers.items()}

    async def last_leased_epochs(self) -> dict[str, int]:
        """Return the last of these that had the lease. Raises what the stores raise.

        Not of the prefix, where terms do not begin again: they are later than all that there are.
        """
        return {
            place: await reader.last_leased_epoch()
            for place, reader in self.readers.items()
            if place != IN_BUCKET
        }

    def old_parts(self, previous: LeaseRecord | None, found_leased: Mapping[str, int]) -> list[LogPart]:
        """Return what earlier terms have left of logs; where no lease tells, all that there is.

        Of terms without a lease, which are later than the one that it tells of, there may be a log in every place.

        Raises `MountError` for a log that is in none of them; where the lease was taken, that was looked at before.
        """
        if previous is None:
            return [LogPart(reader) for reader in self.readers.values()]
        told = {log.place: log for log in at_hand(previous.logs, self.disks)}
        untold = {
            place: LogPlace(place, first_untold(previous, found_leased.get(place, 0))) for place in self.disks
        }
        logs = [told.get(place, untold[place]) for place in self.disks]
        return [LogPart(self.readers[log.place], log.since_epoch, log.end) for log in logs]


@asynccontextmanager
async def places_here(config: Config, storage: ObjectStorage) -> AsyncIterator[LogPlaces]:
    """Open for the block where there are logs for whoever needs none of his own: no directory is made for one."""
    async with AsyncExitStack() as stack:
        on_disk = await stack.enter_async_context(open_disk_log(config)) if has_disk_log(config) else None
        yield LogPlaces.of(storage, on_disk)


@asynccontextmanager
async def old_log_parts(
    config: Config, storage: ObjectStorage, lease: Lease | None = None
) -> AsyncIterator[list[LogPart]]:
    """Open the logs for the block that a mount here would read: in the prefix, and on the disk if there is one.

    Which these are is what `lease` has found when it was taken, or else what the one says that is there. Raises
    `MountError` where that names one that is elsewhere, or cannot be read, and what the store raises.
    """
    if lease is not None:
        previous = lease.previous
    else:
        found = await look(storage)
        previous = found.record if found is not None else None
    async with places_here(config, storage) as places:
        yield places.old_parts(previous, await places.last_leased_epochs())


async def set_aside_given_up(
    lease: Lease, places: LogPlaces, found_leased: Mapping[str, int], disk: DiskLog
) -> None:
    """Keep elsewhere what a log on the disk has of terms whose lease somebody has removed, to go on without it."""
    if lease.previous is None:
        return
    reader = places.readers[disk.place]
    given_up = await _untold(reader, lease.previous, disk)
    given_up += [
        position
        for position in await reader.positions()
        if lease.previous.epoch < position.epoch <= found_leased[disk.place]
    ]
    if given_up:
        for position in reversed(given_up):
            await set_aside(reader.storage, position)
        _log.warning(
            "the log in %s was given up when the lease that named it was removed: it is kept below %s and not applied",
            disk.directory,
            DAMAGED_PREFIX,
        )


async def _untold(reader: LogReader, previous: LeaseRecord, disk: DiskLog) -> list[Position]:
    """Return the batches of terms on the disk from before those of which the lease tells, as far as they are needed.

    A lease ceases to tell of a log when that has been emptied, but for a batch that says so. So another one has told
    of these, and was removed.
    """
    told_since = (log.since_epoch for log in previous.logs if _is_of(log, disk))
    since_epoch = min(told_since, default=previous.epoch + 1)
    found = [position for position in await reader.positions() if position.epoch < since_epoch]
    needed = {epoch for epoch in {position.epoch for position in found} if await _is_needed(reader, epoch)}
    return [position for position in found if position.epoch in needed]


def _is_of(log: LogPlace, disk: DiskLog) -> bool:
    """Return whether a lease tells of a disk's log; that of an earlier version names no disk."""
    return log.disk == disk.disk if log.disk else log.place == disk.place


async def _is_needed(reader: LogReader, epoch: int) -> bool:
    """Return whether anything of a term counts, or may."""
    try:
        log, _ = await reader.look(epoch)
    except LogDamaged:
        return True
    return bool(log.positions)
