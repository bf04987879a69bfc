"""What nobody needs of the log goes away."""

from __future__ import annotations

import math
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock

from backends.errors import Unavailable
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from fusefs.attributes import fresh
from fusefs.inodes import ROOT_NUMBER, Directory, Inode
from fusefs.journal import RETRY_SECONDS, Journal
from fusefs.journal_format import batch_key
from fusefs.lease import NoLease
from fusefs.log_needs import LogNeeds
from fusefs.log_records import Position
from fusefs.log_trimmer import IDLE_SECONDS, TRIM_BATCHES, TRIM_RETRY_SECONDS, LogTrimmer
from fusefs.unlogged import Unlogged
from fusefs.versions import Version
from tests.core.logs import log_objects
from tests.support.faulty import FaultyStorage

OBJECT = Version("k", "e", 1)


class Lease(NoLease):
    """Notes what it is told of the log: the last commit, and whether anything of it is needed."""

    def __init__(self) -> None:
        super().__init__(1)
        self.told: list[tuple[int, bool]] = []

    def acknowledged(self, sequence: int, *, is_needed: bool = True) -> None:
        self.told.append((sequence, is_needed))


class Log:
    """A log of one term, to which batches are added that tell of nothing."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.bucket = MemoryStorage()
        self.faulty = FaultyStorage(self.bucket)
        self.lease = Lease()
        self.journal = Journal(self.faulty, self.lease.epoch)
        self.needs = LogNeeds(max_log_bytes=math.inf)
        self.unlogged = Unlogged()
        self.trimmer = LogTrimmer(self.journal, self.lease, self.needs, self.unlogged)
        nursery.start_soon(self.trimmer.run, nursery)

    async def append(self, cutoff: Position) -> None:
        sequence = self.journal.append(self._nursery, (), cutoff=cutoff)
        await self.trimmer.note_cutoff(sequence, cutoff)

    async def count(self) -> int:
        return len(await log_objects(self.bucket))

    def is_empty(self) -> bool:
        return self.trimmer.is_empty

    def position(self, sequence: int) -> Position:
        return Position(self.lease.epoch, sequence)


@asynccontextmanager
async def open_log() -> AsyncIterator[Log]:
    async with trio.open_nursery() as nursery:
        yield Log(nursery)
        nursery.cancel_scope.cancel()


def new_inode() -> Inode:
    return Directory(number=ROOT_NUMBER, attributes=fresh(mode=stat.S_IFDIR, uid=0, gid=0, now_ns=0))


async def test_batches_before_the_cutoff_go_when_they_are_worth_a_request(autojump_clock: MockClock) -> None:
    async with open_log() as log:
        log.needs.need(OBJECT, log.position(1))
        for _ in range(TRIM_BATCHES):
            await log.append(log.position(1))
        assert log.trimmer.cutoff == log.position(1)
        await log.append(log.position(TRIM_BATCHES))
        await trio.sleep(1)
        assert await log.count() == TRIM_BATCHES + 1
        await log.append(log.position(TRIM_BATCHES + 1))
        await trio.sleep(1)
        assert await log.count() == 2
        assert log.trimmer.cutoff == log.position(TRIM_BATCHES + 1)


async def test_a_cutoff_does_not_fall(autojump_clock: MockClock) -> None:
    """Batches may be acknowledged to whoever waits for them in any order."""
    async with open_log() as log:
        await log.append(log.position(1))
        await log.append(log.position(2))
        await log.trimmer.note_cutoff(1, log.position(1))
        assert log.trimmer.cutoff == log.position(2)


async def test_an_idle_log_is_emptied_but_for_its_last_word(autojump_clock: MockClock) -> None:
    async with open_log() as log:
        log.needs.need(OBJECT, log.position(1))
        log.trimmer.restored()
        await log.append(log.position(1))
        log.needs.forget(OBJECT)
        log.trimmer.look_for_end()
        await trio.sleep(IDLE_SECONDS / 2)
        assert not log.is_empty()
        await trio.sleep(IDLE_SECONDS)
        assert log.is_empty()
        assert log.trimmer.cutoff == log.position(2)
        assert log.lease.told == [(1, True), (2, False)]
        assert await log.count() == 1


async def test_what_is_needed_or_has_to_be_told_keeps_the_log(autojump_clock: MockClock) -> None:
    async with open_log() as log:
        await log.append(log.position(1))
        log.unlogged.changed(new_inode())
        log.trimmer.restored()
        await trio.sleep(60)
        assert not log.trimmer.is_idle
        assert log.journal.last_sequence == 1
        log.unlogged.clear()
        log.trimmer.look_for_end()
        await trio.sleep(IDLE_SECONDS / 2)
        log.needs.need(OBJECT, log.position(1))
        await trio.sleep(60)
        assert log.journal.last_sequence == 1


async def test_as_long_as_not_everything_is_restored_the_log_is_kept(autojump_clock: MockClock) -> None:
    async with open_log() as log:
        await log.append(log.position(1))
        log.trimmer.look_for_end()
        await trio.sleep(60)
        assert not log.trimmer.is_idle
        assert log.journal.last_sequence == 1
        log.trimmer.restored()
        await trio.sleep(60)
        assert log.is_empty()


async def test_what_cannot_be_deleted_is_tried_again(autojump_clock: MockClock) -> None:
    async with open_log() as log:
        log.faulty.fail(Unavailable, verb=Verb.DELETE_MANY, times=math.inf)
        await log.append(log.position(1))
        log.trimmer.restored()
        await trio.sleep(10 * TRIM_RETRY_SECONDS)
        assert not log.is_empty()
        assert await log.count() == 2
        log.faulty.heal()
        await trio.sleep(TRIM_RETRY_SECONDS + 2 * IDLE_SECONDS)
        assert log.is_empty()
        assert await log.count() == 1


async def test_a_batch_says_what_it_does_when_it_arrives(autojump_clock: MockClock) -> None:
    """Not before, and however often that has failed: there may be no later one for long."""
    async with open_log() as log, trio.open_nursery() as nursery:
        await log.append(log.position(1))
        log.faulty.fail(Unavailable, verb=Verb.PUT, times=math.inf)
        nursery.start_soon(log.append, log.position(2))
        await trio.sleep(10 * RETRY_SECONDS)
        assert log.trimmer.cutoff == log.position(1)
        assert log.lease.told == [(1, True)]
        log.faulty.heal()
        await trio.sleep(2 * RETRY_SECONDS)
        assert log.trimmer.cutoff == log.position(2)
        assert log.lease.told == [(1, True), (2, True)]


async def test_a_batch_in_the_place_of_which_is_another_says_nothing(autojump_clock: MockClock) -> None:
    async with open_log() as log:
        await log.append(log.position(1))
        await log.bucket.put(batch_key(log.position(2)), b"somebody else's")
        await log.append(log.position(2))
        assert log.trimmer.cutoff == log.position(1)
        assert log.lease.told == [(1, True)]


async def test_a_last_word_goes_when_there_are_later_batches(autojump_clock: MockClock) -> None:
    """Or a mount that has something to tell now and then would leave one each time."""
    async with open_log() as log:
        log.trimmer.restored()
        for _ in range(3):
            await log.append(Position(log.lease.epoch, log.journal.last_sequence + 1))
            log.trimmer.look_for_end()
            await trio.sleep(60)
            assert log.is_empty()
            assert await log.count() == 1
