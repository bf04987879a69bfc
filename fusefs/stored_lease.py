"""The lease as the object `.fusefs/lease`: renewed, found lost, given back.

The holder renews it three times a term. Another mount has to see it unchanged for a whole term before it takes it
(`fusefs.lease_acquisition`). Each counts on a monotonic clock of its own, and no clock is compared with another's:
the holder counts from before it sends a renewal, the other from after it has seen it. So the holder's term ends
first, and earlier by a margin, in which clocks may run apart. Every write of the object is conditional on its ETag.

A renewal that succeeds after the term has ended proves that nobody has taken the lease: every taking changes the
object, and no state of it comes back. So an outage is waited out, and only what somebody else has put there, or has
removed, is a loss.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import trio

from backends.base import IfMatch, ObjectStorage
from backends.errors import NotFound, PreconditionFailed, StorageError
from fusefs.errors import LeaseDamaged
from fusefs.keys import RESERVED_PREFIX
from fusefs.lease import Lease, LeaseStatistics
from fusefs.lease_record import LeaseRecord, LogEnd, LogPlace, new_mark, with_end

_log = logging.getLogger(__name__)

LEASE_KEY: Final = f"{RESERVED_PREFIX}lease"

DISK_KEY: Final = f"{RESERVED_PREFIX}disk"
"""In the directory of a log on a local disk: what the lease says of it as `LogPlace.disk`."""

MARGIN_SHARE: Final = 0.1
"""Of the term: how much earlier than others its holder takes it for ended."""

RENEWAL_SHARE: Final = 1 / 3
"""Of the term: from one renewal to the next."""

REPEAT_SHARE: Final = 1 / 20
"""Of the term: from a renewal that failed to the next one."""

LAPSED_REPEAT_SHARE: Final = 1 / 6
"""The same once it is too late to be in time."""


def longest_call_seconds(term_seconds: float) -> float:
    """Return how long a call of the store given to a lease may take, its retries included, to leave time for others.

    The lease's requests must not queue behind the mount's own: it is given a store with connections of its own.
    """
    return term_seconds / 6


@dataclass(frozen=True, slots=True)
class FoundLease:
    """A lease object, and which version of it."""

    record: LeaseRecord
    etag: str


async def look(storage: ObjectStorage) -> FoundLease | None:
    """Return what the lease object says now; None if there is none. Raises `LeaseDamaged`."""
    try:
        found = await storage.get_range(LEASE_KEY)
    except NotFound:
        return None
    try:
        return FoundLease(LeaseRecord.decode(found.data), found.etag)
    except LeaseDamaged as damage:
        raise LeaseDamaged(
            f"the object {LEASE_KEY} says who writes this prefix, and cannot be read: {damage}"
        ) from damage


class StoredLease(Lease):
    """The lease of one term, from its taking on; `fusefs.lease_acquisition.acquire` makes it.

    Invariant: the object was in the state `_record`, `_etag`, which we put there by a call that began at `_asked_at` or
    later. If it is in another state now, this one is ours exactly if it carries `_mark`.
    """

    def __init__(
        self,
        storage: ObjectStorage,
        taken: FoundLease,
        *,
        previous: LeaseRecord | None,
        log: LogPlace,
        asked_at: float,
        now: Callable[[], float],
    ) -> None:
        """`asked_at` is the time, of `now`, before the request was made that put `taken` there."""
        self._storage: Final = storage
        self._now: Final = now
        self._previous: Final = previous
        self._log: Final = log
        self._term: Final = taken.record.term_seconds
        #: Whoever writes the object has it.
        self._turn: Final = trio.Lock()
        self._stopped: Final = trio.Event()
        self._end_reason: str | None = None
        #: Or has been, or was given up: behind a renewal that hangs nobody waits twice.
        self._is_being_released = False
        #: Replaced after each renewal.
        self._renewed = trio.Event()
        # Under the invariant.
        self._record = taken.record
        self._etag = taken.etag
        self._asked_at = asked_at
        self._beat = taken.record.beat
        self._mark = taken.record.mark
        #: When the first of the requests was made that may have taken effect without an answer.
        self._in_doubt_since: float | None = None
        self._logs = taken.record.logs
        #: Of this term's own log.
        self._end: LogEnd | None = None
        self._trouble: str | None = None
        # What the log was told: since when renewals fail, and that it has lapsed.
        self._trouble_since: float | None = None
        self._has_told_lapse = False
        self._renewals = 0
        self._failures = 0
        #: But for the one that lasts.
        self._lapses = 0

    @property
    def epoch(self) -> int:
        return self._record.epoch

    @property
    def previous(self) -> LeaseRecord | None:
        return self._previous

    @property
    def is_held(self) -> bool:
        return self._end_reason is None and self._now() < self._holds_until

    @property
    def lost_reason(self) -> str | None:
        return self._end_reason

    @property
    def trouble(self) -> str | None:
        return self._trouble

    @property
    def _is_lapsed(self) -> bool:
        return self._end_reason is None and self._now() >= self._holds_until

    @property
    def _holds_until(self) -> float:
        return self._asked_at + self._term * (1 - MARGIN_SHARE)

    def statistics(self) -> LeaseStatistics:
        return LeaseStatistics(
            epoch=self.epoch,
            is_held=self.is_held,
            seconds_left=max(0.0, self._holds_until - self._now()) if self._end_reason is None else 0.0,
            renewals=self._renewals,
            failures=self._failures,
            lapses=self._lapses + self._is_lapsed,
            lost_reason=self._end_reason,
        )

    async def wait_held(self, *, patience_seconds: float) -> None:
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(patience_seconds):
            while self._end_reason is None:
                if self.is_held:
                    return
                await self._renewed.wait()
        self.check()

    def recovered(self) -> None:
        self._logs = (self._log,)

    def acknowledged(self, sequence: int, *, is_needed: bool = True) -> None:
        if self._end is None or sequence >= self._end.sequence:
            self._end = LogEnd(self.epoch, sequence, is_needed)

    async def run(self) -> None:
        while not self._stopped.is_set():
            with trio.move_on_after(self._pause_seconds()):
                await self._stopped.wait()
            try:
                await self._renew()
            except Exception as error:  # of any kind: nothing may end the nursery of the whole mount
                self._note_failure(error)

    def _pause_seconds(self) -> float:
        if self._trouble is not None:
            return self._term * (REPEAT_SHARE if self.is_held else LAPSED_REPEAT_SHARE)
        return max(0.0, self._asked_at + self._term * RENEWAL_SHARE - self._now())

    async def _renew(self) -> None:
        """Renew it once, or find out why that cannot be. Raises `StorageError` where that remains unknown."""
        async with self._turn:
            if self._stopped.is_set():
                return
            asked_at = self._now()
            record = self._next_record(asked_at)
            try:
                etag = await self._put(record)
            except PreconditionFailed as conflict:
                await self._find_out(conflict)
            else:
                self._note_renewal(FoundLease(record, etag), asked_at)

    def _next_record(self, asked_at: float) -> LeaseRecord:
        self._beat += 1
        if self._in_doubt_since is None:
            self._mark, self._in_doubt_since = new_mark(), asked_at
        logs = with_end(self._logs, self._log.place, self._end)
        return replace(self._record, beat=self._beat, mark=self._mark, logs=logs)

    async def _put(self, record: LeaseRecord) -> str:
        return await self._storage.put(LEASE_KEY, record.encode(), mode=IfMatch(self._etag))

    async def _find_out(self, conflict: PreconditionFailed) -> None:
        """Look who has changed the object: a request of our own that was not answered, or somebody else."""
        try:
            found = await look(self._storage)
        except LeaseDamaged as damage:
            self._lose(str(damage))
            return
        if found is None:
            self._lose(f"somebody has removed {LEASE_KEY}")
        elif found.etag == self._etag:
            raise conflict
        elif found.record.mark == self._mark:
            assert self._in_doubt_since is not None
            # It may have been any of them.
            self._note_renewal(found, self._in_doubt_since)
        else:
            self._lose(f"the prefix was taken over by {found.record.holder_shown}")

    def _note_renewal(self, found: FoundLease, asked_at: float) -> None:
        had_lapsed = self._is_lapsed
        self._record, self._etag, self._asked_at = found.record, found.etag, asked_at
        # What was asked for before depends on a state that is gone, and cannot take effect any more.
        self._in_doubt_since = None
        self._trouble = None
        self._renewals += 1
        if self.is_held:  # and not over already, because it was found late
            self._lapses += had_lapsed
            self._note_end_of_trouble()
            self._wake()

    def _note_failure(self, error: Exception) -> None:
        self._failures += 1
        self._trouble = str(error)
        if self._trouble_since is None:
            self._trouble_since = self._now()
            left = max(self._holds_until - self._trouble_since, 0.0)
            _log.warning("the lease could not be renewed, %.1f s of it are left: %s", left, error)
        if not self.is_held and not self._has_told_lapse:
            self._has_told_lapse = True
            _log.error("the lease has lapsed; whatever needs it waits for a renewal: %s", error)

    def _note_end_of_trouble(self) -> None:
        if self._trouble_since is not None:
            _log.warning("the lease is renewed again, after %.1f s", self._now() - self._trouble_since)
        self._trouble_since = None
        self._has_told_lapse = False

    def _lose(self, reason: str) -> None:
        _log.error("the lease is lost, and this mount writes no more: %s", reason)
        self._stop(reason)

    def _stop(self, reason: str) -> None:
        self._lapses += self._is_lapsed
        self._end_reason = reason
        self._stopped.set()
        self._wake()

    def _wake(self) -> None:
        self._renewed.set()
        self._renewed = trio.Event()

    async def release(self, *, clean: bool = True) -> bool:
        if self._is_being_released:
            return False
        self._is_being_released = True
        async with self._turn:
            if self._stopped.is_set():
                return False
            # Before the request: once that has arrived, others do not wait.
            self._stop("it was given back")
            try:
                await self._give_back(clean)
            except (StorageError, LeaseDamaged) as error:
                _log.warning(
                    "the lease was perhaps not given back, and then the next mount waits for %.0f s: %s",
                    self._term,
                    error,
                )
                return False
            return clean

    async def _give_back(self, clean: bool) -> None:
        record = replace(self._next_record(self._now()), released=True)
        if clean:
            record = replace(record, logs=())
        try:
            await self._put(record)
        except PreconditionFailed:
            found = await look(self._storage)
            if found is None or found.record.mark != self._mark:
                raise
            self._etag = found.etag
            await self._put(record)
