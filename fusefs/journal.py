"""The objects of the log: batches that are appended in order, several at a time, and removed when they are not needed.

A batch is a PUT that succeeds only if nothing is under its key. It is *acknowledged* when it and all before it are in
the store. If somebody else has put something there, the term of this mount is over (`fusefs.lease`): nothing is
acknowledged any more.

A batch that could not be stored is stored again, the same bytes under the same key, until it is: what follows it
may be in the store already, and counts only when there is no gap. Whoever waits learns of each failure.

Each batch says which ones before it are not needed any more (its cutoff), so that they can be deleted in any order:
a reader leaves out what is before the last cutoff. When nothing is needed, a last batch says so (`finish`), and the
others are deleted. That one stays until there are others, or the lease says that the term has ended: it says where the
log goes on, so that whoever takes over can occupy just that place. So the last commit is always there; the lease tells
which one that is (`Lease.acknowledged`), and whoever does not find it knows that somebody else has removed it.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

import trio

from backends.base import CREATE_ONLY, ObjectStorage
from backends.errors import NotFound, PreconditionFailed, QuotaExceeded, StorageError
from fusefs.errors import LeaseLost
from fusefs.journal_format import batch_key, encode
from fusefs.log_records import LEASED, Batch, Position, Record

_log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 1.0
"""Pause after a batch could not be stored for good (the store's outages are retried below, in `backends.retrying`)."""

TOLD_SECONDS: Final = 60.0
"""At most one failure is told in this time: as long as it lasts there is one for each batch after each pause."""

MAX_IN_FLIGHT: Final = 4
"""Batches on their way at once: while a long one goes up, short ones need not wait for its end to be sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalStatistics:
    """The log at one moment."""

    batches: int
    size_bytes: int
    #: Since when the oldest of them is there; 0 if there is none.
    age_seconds: float
    #: Appended, and not in the store with all before them.
    unacknowledged: int
    #: Batches of earlier terms that are not deleted yet.
    older_batches: int


class Journal:
    """The log of one term. `older` are the batches of earlier terms, to be removed when they are not needed.

    `is_leased` says whether the term has the lease. `make_room` is asked where there is none for a batch, and returns
    whether there may be some now.
    """

    def __init__(
        self,
        storage: ObjectStorage,
        epoch: int,
        *,
        older: Iterable[tuple[ObjectStorage, Sequence[str]]] = (),
        is_leased: bool = True,
        make_room: Callable[[], bool] | None = None,
    ) -> None:
        self._storage = storage
        self._epoch = epoch
        self._flags = LEASED if is_leased else 0
        self._make_room = make_room
        self._older = [(store, list(keys)) for store, keys in older if keys]

        self._next = 1
        #: Sequences and bytes of the batches that may be needed, in their order.
        self._needed = deque[tuple[int, int]]()
        self._needed_bytes = 0
        #: Of those before them that are not deleted yet, which may be very many where the store denies that.
        self._unneeded: dict[int, int] = {}
        self._unneeded_bytes = 0
        #: Of both: when they were appended.
        self._appended_at: dict[int, float] = {}
        #: The batch that said last that nothing is needed; the same, when it is in the store with no other.
        self._last_word: int | None = None
        self._closing: int | None = None
        self._stored: set[int] = set()
        self._acknowledged = 0
        self._in_flight = 0
        self._failures = 0
        self._failure: Exception | None = None
        self._quiet_until = -math.inf
        self._lost: LeaseLost | None = None
        self._changed = trio.lowlevel.ParkingLot()
        self._trimming = trio.Lock()
        self._bytes_in_flight = 0
        #: Set when nothing of earlier terms is left.
        self.alone = trio.Event()
        if not self._older:
            self.alone.set()

    @property
    def next_position(self) -> Position:
        """Where the next batch will be."""
        return Position(self._epoch, self._next)

    @property
    def last_sequence(self) -> int:
        """The sequence of the last batch that was appended; 0 if there was none."""
        return self._next - 1

    @property
    def failure(self) -> Exception | None:
        """Why a batch could not be stored when that has failed last."""
        return self._failure

    @property
    def size_bytes(self) -> int:
        """Bytes of the batches of this term that are not deleted yet."""
        return self._needed_bytes + self._unneeded_bytes

    @property
    def bytes_in_flight(self) -> int:
        """Bytes of the batches that are on their way."""
        return self._bytes_in_flight

    def size_from(self, cutoff: Position) -> int:
        """Return the bytes of the batches of this term that may be needed, but for those before `cutoff`."""
        return self._needed_bytes - sum(size for _, size in self._before(cutoff))

    def statistics(self) -> JournalStatistics:
        """Return the counts of this moment."""
        now = trio.current_time()
        return JournalStatistics(
            batches=len(self._needed) + len(self._unneeded),
            size_bytes=self.size_bytes,
            age_seconds=now - min(self._appended_at.values(), default=now),
            unacknowledged=self._next - 1 - self._acknowledged,
            older_batches=sum(len(keys) for _, keys in self._older),
        )

    async def wait_for_slot(self) -> None:
        """Return when another batch may go on its way. Raises the failure of an attempt that ended after this call."""
        failures = self._failures
        while self._in_flight >= MAX_IN_FLIGHT:
            self._check_failures_since(failures)
            await self._changed.park()

    def append(
        self, nursery: trio.Nursery, records: tuple[Record, ...], *, cutoff: Position, flags: int = 0
    ) -> int:
        """Send a batch on its way and return its sequence; `acknowledged` waits for it."""
        position = self.next_position
        batch = Batch(
            position=position,
            cutoff=cutoff,
            acknowledged=self._acknowledged,
            records=records,
            flags=flags | self._flags,
        )
        data = encode(batch)
        self._next += 1
        self._in_flight += 1
        self._bytes_in_flight += len(data)
        self._needed.append((position.sequence, len(data)))
        self._needed_bytes += len(data)
        self._appended_at[position.sequence] = trio.current_time()
        nursery.start_soon(self._store, position, data)
        return position.sequence

    async def acknowledged(self, sequence: int) -> None:
        """Return when a batch and all before it are in the store.

        Raises the failure of an attempt that ended after this call, and `LeaseLost`.
        """
        failures = self._failures
        while self._acknowledged < sequence:
            self.check()
            self._check_failures_since(failures)
            await self._changed.park()
        self.check()

    def _check_failures_since(self, failures: int) -> None:
        if self._failures > failures and self._failure is not None:
            raise self._failure

    def check(self) -> None:
        """Raise `LeaseLost` if somebody else goes on with the log."""
        if self._lost is not None:
            raise self._lost

    async def trim(self, cutoff: Position) -> bool:
        """Delete the batches before `cutoff`, which a batch in the store names; return whether none of them is left.

        Raises nothing; what fails stays.
        """
        async with self._trimming:
            if cutoff.epoch != self._epoch:
                return True
            await self._delete_older()
            self.note_unneeded(cutoff)
            unneeded = list(self._unneeded)
            if self._closing is not None and self._closing < cutoff.sequence:
                unneeded.append(self._closing)
            sequences = {batch_key(Position(self._epoch, each)): each for each in unneeded}
            failed = await _delete(self._storage, list(sequences))
            for key in sequences.keys() - set(failed):
                self._forget(sequences[key])
            self._changed.unpark_all()
            return not failed and not self._older

    def note_unneeded(self, cutoff: Position) -> None:
        """Note that a batch in the store names `cutoff`, which only rises: what is before it counts no more."""
        for sequence, size in list(self._before(cutoff)):
            self._needed.popleft()
            self._needed_bytes -= size
            self._unneeded[sequence] = size
            self._unneeded_bytes += size

    def _forget(self, sequence: int) -> None:
        if sequence == self._closing:
            self._closing = None
        else:
            self._unneeded_bytes -= self._unneeded.pop(sequence)
            del self._appended_at[sequence]

    @property
    def is_empty(self) -> bool:
        """Whether there is no batch, of this term or of another, but for one that says so."""
        return not (self._needed or self._unneeded or self._older)

    async def finish(self, nursery: trio.Nursery) -> None:
        """Delete the log, of which nothing is needed, but for a batch that says so.

        What cannot be deleted stays, for a later call. Raises `LeaseLost`, and what the store raises.
        """
        if self.is_empty:
            return
        if self._last_word != self.last_sequence:
            self._last_word = self.append(nursery, (), cutoff=self.next_position)
        last = self.last_sequence
        await self.acknowledged(last)
        await self.trim(Position(self._epoch, last))
        is_alone = not (self._unneeded or self._older or self._closing is not None)
        if is_alone and [sequence for sequence, _ in self._needed] == [last]:
            self.note_unneeded(self.next_position)
            self._forget(last)
            self._closing = last

    async def remove(self) -> None:
        """Delete what `finish` has left, if nothing was appended since; nothing may be appended any more."""
        if self.is_empty:
            await self.trim(self.next_position)

    def count_before(self, cutoff: Position) -> int:
        """Return how many batches a trim to `cutoff`, which is no lower than one that was noted, would delete."""
        if cutoff.epoch != self._epoch:
            return 0  # nor those of earlier terms
        older = sum(len(keys) for _, keys in self._older)
        return len(self._unneeded) + sum(1 for _ in self._before(cutoff)) + older

    def _before(self, cutoff: Position) -> Iterator[tuple[int, int]]:
        """Yield what may be needed of this term and is before `cutoff`: few of any log, since that is soon noted."""
        if cutoff.epoch == self._epoch:
            yield from takewhile(lambda batch: batch[0] < cutoff.sequence, self._needed)

    async def _delete_older(self) -> None:
        """Delete the batches of earlier terms."""
        left = []
        for store, keys in self._older:
            failed = await _delete(store, keys) if await self._is_told_in(store) else keys
            if failed:
                left.append((store, failed))
        self._older = left
        if not left:
            self.alone.set()

    async def _is_told_in(self, store: ObjectStorage) -> bool:
        """Return whether a store has a batch of this term that says that nothing before it is needed, or needs none.

        A term without a lease is told of nowhere but in its log, which another mount may not see: that would miss what
        the lease of an earlier term says to be in this store.
        """
        if store is self._storage or self._flags & LEASED:
            return True
        begin = Position(self._epoch, 1)
        try:
            await store.put(batch_key(begin), encode(Batch(position=begin, cutoff=begin)), mode=CREATE_ONLY)
        except PreconditionFailed:
            pass  # it is told already: by an earlier call, or by one whose answer was lost
        except StorageError as failure:
            _log.warning("the log is not trimmed: %s", failure)
            return False
        return True

    async def _store(self, position: Position, data: bytes) -> None:
        is_in_doubt = False
        try:
            while self._lost is None:
                try:
                    await self._put(batch_key(position), data, is_in_doubt=is_in_doubt)
                except PreconditionFailed:
                    self._lose(f"batch {position.sequence} of epoch {position.epoch} is somebody else's")
                except Exception as error:  # of any kind: nothing may end the nursery of the whole mount
                    is_in_doubt = True
                    if not self._has_room_after(error):
                        await self._fail(position, error)
                else:
                    self._note_stored(position.sequence)
                    return
        finally:
            self._in_flight -= 1
            self._bytes_in_flight -= len(data)
            self._changed.unpark_all()

    def _has_room_after(self, error: Exception) -> bool:
        return isinstance(error, QuotaExceeded) and self._make_room is not None and self._make_room()

    async def _put(self, key: str, data: bytes, *, is_in_doubt: bool) -> None:
        """Store a batch; where it is there already, an earlier attempt may have put it there without an answer."""
        try:
            await self._storage.put(key, data, mode=CREATE_ONLY)
        except PreconditionFailed:
            if not is_in_doubt or not await self._has_landed(key, data):
                raise

    async def _has_landed(self, key: str, data: bytes) -> bool:
        try:
            return (await self._storage.get_range(key)).data == data
        except NotFound:
            return False  # somebody has removed it, which we have not

    def _lose(self, why: str) -> None:
        _log.error("the term of this mount is over: %s", why)
        self._lost = LeaseLost(f"another mount has taken over: {why}")

    async def _fail(self, position: Position, error: Exception) -> None:
        if trio.current_time() >= self._quiet_until:
            self._quiet_until = trio.current_time() + TOLD_SECONDS
            _log.error("batch %d of the log cannot be stored, trying again: %s", position.sequence, error)
        self._failure = error
        self._failures += 1
        self._changed.unpark_all()
        await trio.sleep(RETRY_SECONDS)

    def _note_stored(self, sequence: int) -> None:
        self._stored.add(sequence)
        while self._acknowledged + 1 in self._stored:
            self._acknowledged += 1
            self._stored.remove(self._acknowledged)


async def _delete(storage: ObjectStorage, keys: list[str]) -> list[str]:
    """Delete batches, and return those that are still there."""
    if not keys:
        return []
    try:
        failed = await storage.delete_many(keys)
    except Exception as failure:  # of any kind: nothing may end the nursery of the whole mount
        _log.warning("the log is not trimmed: %s", failure)
        return keys
    if failed:
        error = next(iter(failed.values()))
        _log.warning("the log is not trimmed, %d of its objects stay for now: %s", len(failed), error)
    return [key for key in keys if key in failed]
