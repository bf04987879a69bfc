"""Becoming the holder of the lease: at once if nobody is, after a whole term if whoever was shows no sign of life.

Time is counted on trio's clock, from when the object's state was first seen, and no clock of the holder's matters. A
holder whose process is known to be gone (`known_dead`) is not waited for. What changes while it is watched has a
holder that is alive.

Nothing is repeated here: the store given has its own patience. But a write whose answer was lost is looked for.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

import trio

from backends.base import CREATE_ONLY, Capabilities, IfMatch, ObjectStorage
from backends.errors import PreconditionFailed, StorageError
from fusefs.clock import Clock, boottime
from fusefs.errors import LeaseHeld, MountError
from fusefs.lease_record import (
    Identity,
    LeaseRecord,
    LogPlace,
    new_mark,
    printable,
    with_log,
)
from fusefs.options import MAX_TERM_SECONDS, MIN_TERM_SECONDS
from fusefs.stored_lease import DISK_KEY, LEASE_KEY, FoundLease, StoredLease, look

_LOOKS_PER_TERM: Final = 12

_PLACE_ON_DISK: Final = re.compile(r"[^:]*:(/.+)/log/[^/]+", re.DOTALL)
"""HOST:CACHE_DIRECTORY/log/DIGEST, as `fusefs.disk_log` names the place of a log for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a mount asks for."""

    identity: Identity
    #: Between `MIN_TERM_SECONDS` and `MAX_TERM_SECONDS`.
    term_seconds: float
    #: Where this mount keeps its log: a name of the place, "" for the prefix itself.
    log: str
    #: The places whose logs this mount reads, and which disk each is on ("" for the prefix itself): where the lease
    #: names another one, it is not taken. Empty for whoever reads none, and so has to see none.
    places: Mapping[str, str] = field(default_factory=dict)
    #: The epoch is no lower, whatever the lease says: somebody may have removed it, and not the logs of its terms.
    at_least_epoch: int = 1
    #: The last term of which there is a log, by place. Of terms without a lease, no lease has told yet.
    found: Mapping[str, int] = field(default_factory=dict)
    #: The last of these that had a lease, by place: behind the term that the lease tells of, it was another one, which
    #: somebody has removed to go on without that log.
    found_leased: Mapping[str, int] = field(default_factory=dict)
    #: Holders whose process is gone for certain.
    known_dead: Collection[str] = ()
    #: How long to wait for a holder that is alive to give the lease back.
    wait_seconds: float = 0.0
    #: What else whoever is refused may do, behind "unmount it there first".
    alternative: str = ""

    def __post_init__(self) -> None:
        if not MIN_TERM_SECONDS <= self.term_seconds <= MAX_TERM_SECONDS:
            raise ValueError(f"a term of {self.term_seconds} s")


def waiting_message(seconds: float, record: LeaseRecord) -> str:
    """Return what to tell whoever waits for `acquire`, in one line."""
    return (
        f"the prefix is mounted read-write at {record.holder_shown}, or was when that mount died;"
        f" it is taken over if nothing is heard of it for {math.ceil(seconds)} s more"
    )


def ignore_waiting(seconds: float, record: LeaseRecord) -> None:
    """Tell nobody."""


def check_supported(capabilities: Capabilities) -> None:
    """Raise `MountError` if a store with these cannot keep two writers apart."""
    missing = [
        name
        for name, is_there in (
            ("If-None-Match", capabilities.create_only),
            ("If-Match", capabilities.if_match),
        )
        if not is_there
    ]
    if missing:
        raise MountError(
            f"the store ignores {' and '.join(missing)} on writes, so two mounts of the prefix cannot be kept apart;"
            " mount with --no-lease if you are sure that there is no other"
        )


def at_hand(logs: Iterable[LogPlace], places: Mapping[str, str]) -> tuple[LogPlace, ...]:
    """Return logs that a lease names, each once and as whoever has `places` (as in `Claim`) names them.

    Raises `MountError` for one that is nowhere among these.
    """
    found: dict[str, LogPlace] = {}
    for log in logs:
        here = _place_of(log, places)
        if here is None:
            raise MountError(_out_of_reach(log, places))
        known = found.setdefault(here, replace(log, place=here, disk=places[here]))
        if log.end is not None and (known.end is None or log.end.epoch > known.end.epoch):
            found[here] = replace(known, end=log.end)
    return tuple(found.values())


def first_untold(previous: LeaseRecord | None, leased_epoch: int) -> int:
    """Return from which term on a log counts in a place that the lease does not name.

    Those after the one that the lease tells of went without one; but for such up to `leased_epoch`, the last one there
    that is known to have had a lease. Where there is no lease, all count.
    """
    return 1 if previous is None else max(previous.epoch, leased_epoch) + 1


def _place_of(log: LogPlace, places: Mapping[str, str]) -> str | None:
    if not log.disk:
        return log.place if log.place in places else None
    return next((place for place, disk in places.items() if disk == log.disk), None)


def _out_of_reach(log: LogPlace, places: Mapping[str, str]) -> str:
    says = f", whose {DISK_KEY} says {log.disk}" if log.disk else ""
    another = ", and the disk that is there now is another one" if log.place in places else ""
    return (
        f"what was confirmed and is not in the bucket yet is in the log at {printable(log.place + says)}{another}:"
        f" mount it there first, with {_cache_shown(log)} and that disk; if it is lost, remove the object"
        f" {LEASE_KEY} to go on without it"
    )


def _cache_shown(log: LogPlace) -> str:
    """Return which cache directory a mount needs to see a log on a disk: as a flag, where its place tells that."""
    found = _PLACE_ON_DISK.fullmatch(log.place)
    return f"--cache-dir {shlex.quote(printable(found[1]))}" if found else "that cache directory"


async def acquire(
    storage: ObjectStorage,
    claim: Claim,
    *,
    clock: Clock,
    on_waiting: Callable[[float, LeaseRecord], None] = ignore_waiting,
    now: Callable[[], float] = boottime,
) -> StoredLease:
    """Become the holder; `fusefs.stored_lease.longest_call_seconds` says what `storage` has to be like.

    `on_waiting` is told, again and again, for how long the record must stay the same until it can be taken. `now` is
    the monotonic clock by which the lease will count. Raises `LeaseHeld`, `LeaseDamaged`, `MountError` where the
    store lacks what it takes or a log cannot be seen, and what the store raises.
    """
    check_supported(storage.capabilities)
    return await _Acquisition(storage, claim, clock, on_waiting, now).run()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """A record that we have asked the store to put, and over what."""

    record: LeaseRecord
    previous: LeaseRecord | None
    asked_at: float


class _Acquisition:
    def __init__(
        self,
        storage: ObjectStorage,
        claim: Claim,
        clock: Clock,
        on_waiting: Callable[[float, LeaseRecord], None],
        now: Callable[[], float],
    ) -> None:
        self._storage: Final = storage
        self._claim: Final = claim
        self._clock: Final = clock
        self._on_waiting: Final = on_waiting
        self._now: Final = now
        self._give_up_at: Final = trio.current_time() + claim.wait_seconds
        self._lowest_epoch = claim.at_least_epoch
        #: By mark. One of them may have taken effect although its answer was another.
        self._attempts: dict[str, _Attempt] = {}
        self._has_looked = False
        #: The state that was seen last, when it was seen first, and whether it came about while we watched.
        self._seen: FoundLease | None = None
        self._seen_at = 0.0
        self._is_alive = False

    async def run(self) -> StoredLease:
        while True:
            found = await look(self._storage)
            lease = self._landed(found)
            if lease is not None:
                return lease
            self._note(found)
            if found is None or self._is_free(found.record):
                lease = await self._take(found)
                if lease is not None:
                    return lease
            else:
                await self._watch(found.record)

    def _note(self, found: FoundLease | None) -> None:
        if found is not None and (self._seen is None or found.etag != self._seen.etag):
            self._is_alive = self._has_looked
            self._seen, self._seen_at = found, trio.current_time()
            self._lowest_epoch = max(self._lowest_epoch, found.record.epoch + 1)
        self._has_looked = True

    def _is_free(self, record: LeaseRecord) -> bool:
        return (
            record.released
            or record.identity.holder in self._claim.known_dead
            or trio.current_time() >= self._seen_at + record.watched_seconds
        )

    async def _watch(self, record: LeaseRecord) -> None:
        """Wait a little, unless it is known that there is no use in it."""
        now = trio.current_time()
        if self._is_alive and now >= self._give_up_at:
            raise LeaseHeld(
                f"the prefix is in use: it is mounted read-write at {record.holder_shown}, and that mount is alive;"
                f" unmount it there first{self._claim.alternative}"
            )
        left = self._seen_at + record.watched_seconds - now
        self._on_waiting(left, record)
        await trio.sleep(min(left, record.watched_seconds / _LOOKS_PER_TERM))

    async def _take(self, found: FoundLease | None) -> StoredLease | None:
        """Put our record over what was found; None if somebody was quicker."""
        attempt = self._next_attempt()
        mode = CREATE_ONLY if found is None else IfMatch(found.etag)
        try:
            etag = await self._storage.put(LEASE_KEY, attempt.record.encode(), mode=mode)
        except PreconditionFailed:
            return None
        except StorageError:
            lease = self._landed(await look(self._storage))
            if lease is None:
                raise
            return lease
        return self._lease(attempt, etag)

    def _next_attempt(self) -> _Attempt:
        claim, epoch = self._claim, self._lowest_epoch
        # Where somebody removes it while we watch, what it said about logs is still true.
        previous = None if self._seen is None else self._seen.record
        record = LeaseRecord(
            epoch=epoch,
            identity=claim.identity,
            since=_shown(self._clock.realtime_ns()),
            term_seconds=claim.term_seconds,
            beat=len(self._attempts) + 1,
            mark=new_mark(),
            logs=self._logs(previous),
        )
        attempt = _Attempt(record=record, previous=previous, asked_at=self._now())
        self._attempts[record.mark] = attempt
        return attempt

    def _logs(self, previous: LeaseRecord | None) -> tuple[LogPlace, ...]:
        """Return where there are logs to be recovered, by later terms if not by this one, and where its own will be.

        Of terms in between, without a lease, too.
        """
        logs = () if previous is None else previous.logs
        if self._claim.places:
            # Before anything is written: a lease that named the log of a mount which was refused would refuse others.
            logs = at_hand(logs, self._claim.places)
        for place, last_epoch in self._claim.found.items():
            since_epoch = first_untold(previous, self._claim.found_leased.get(place, 0))
            if last_epoch >= since_epoch:
                logs = with_log(logs, self._log_place(place, since_epoch))
        own = self._claim.log
        since_epoch = first_untold(previous, self._claim.found_leased.get(own, 0))
        return with_log(logs, self._log_place(own, since_epoch))

    def _log_place(self, place: str, since_epoch: int) -> LogPlace:
        return LogPlace(place, since_epoch, self._claim.places.get(place, ""))

    def _landed(self, found: FoundLease | None) -> StoredLease | None:
        """Return the lease if what was found is ours: a write without an answer has taken effect."""
        attempt = None if found is None else self._attempts.get(found.record.mark)
        return None if found is None or attempt is None else self._lease(attempt, found.etag)

    def _lease(self, attempt: _Attempt, etag: str) -> StoredLease:
        return StoredLease(
            self._storage,
            FoundLease(attempt.record, etag),
            previous=attempt.previous,
            log=self._log_place(self._claim.log, attempt.record.epoch),
            asked_at=attempt.asked_at,
            now=self._now,
        )


def _shown(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
