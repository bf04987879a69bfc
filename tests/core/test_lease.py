"""Holding the lease: renewed through failures, lapsed and held again, lost, given back."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from backends.base import ObjectStorage
from backends.errors import PreconditionFailed, StorageError, Throttled, Unavailable
from backends.intercepted import InterceptedStorage, Request, T, Verb
from backends.memory import MemoryStorage
from backends.retrying import RetryingStorage, RetryPolicy
from fusefs.clock import boottime
from fusefs.errors import LeaseHeld, LeaseLapsed, LeaseLost
from fusefs.lease import Lease, NoLease
from fusefs.lease_acquisition import acquire
from fusefs.lease_record import LogEnd, LogPlace
from fusefs.stored_lease import (
    LEASE_KEY,
    MARGIN_SHARE,
    RENEWAL_SHARE,
    StoredLease,
    longest_call_seconds,
)
from tests.core.leases import TERM, WallClock, claim, record_in, take
from tests.support.every_call import at_every_call
from tests.support.faulty import FaultyStorage

PATIENCE: float = 10 * TERM
"""How long a store that does not answer is waited for."""

HELD: float = TERM * (1 - MARGIN_SHARE)
"""How long a lease is held without a renewal."""


def holds(lease: Lease) -> bool:
    """Whether it is held now; mypy takes what a property was for what it is."""
    return lease.is_held


@asynccontextmanager
async def running(lease: Lease) -> AsyncIterator[None]:
    """Renew the lease for the block."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run)
        yield
        nursery.cancel_scope.cancel()


async def test_it_is_renewed_three_times_a_term(autojump_clock: MockClock) -> None:
    storage = FaultyStorage(MemoryStorage())
    lease = await take(storage, "a")
    async with running(lease):
        await trio.sleep(10 * TERM + 1)
        assert lease.is_held
        assert len(storage.calls) == 2 + 30
    statistics = lease.statistics()
    assert (statistics.epoch, statistics.renewals, statistics.failures, statistics.lapses) == (1, 30, 0, 0)
    assert statistics.is_held
    assert statistics.seconds_left == pytest.approx(HELD - 1)


async def test_a_term_that_is_not_renewed_ends_before_others_see_its_end(
    autojump_clock: MockClock,
) -> None:
    lease = await take(MemoryStorage(), "a")
    lease.check()
    await trio.sleep(HELD - 0.001)
    assert lease.is_held
    await trio.sleep(0.002)
    assert not holds(lease)
    assert lease.statistics().seconds_left == 0
    with pytest.raises(LeaseLapsed):
        lease.check()


async def test_a_short_outage_is_not_noticed(autojump_clock: MockClock) -> None:
    storage = FaultyStorage(MemoryStorage())
    lease = await take(storage, "a")
    async with running(lease):
        await trio.sleep(TERM * RENEWAL_SHARE / 2)
        storage.fail(Unavailable, times=math.inf)
        await trio.sleep(TERM / 2)
        storage.heal()
        for _ in range(100):
            await trio.sleep(TERM / 100)
            assert lease.is_held
        assert lease.statistics().failures > 2
        assert lease.statistics().lapses == 0


async def test_an_outage_longer_than_the_term(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Who needs the lease waits as long as for an outage, and is told. When the store is back it is held again: nobody
    has taken it, and the renewal is the proof of that.
    """
    storage = FaultyStorage(MemoryStorage())
    lease = await take(storage, "a")
    async with running(lease):
        storage.fail(Unavailable, times=math.inf)
        await trio.sleep(HELD + 0.001)
        assert (holds(lease), lease.statistics().lapses) == (False, 1)
        for _ in range(2):
            began = trio.current_time()
            with (
                trio.fail_after(2 * PATIENCE),
                pytest.raises(LeaseLapsed, match="in time: injected"),
            ):
                await lease.wait_held(patience_seconds=PATIENCE)
            assert trio.current_time() - began == pytest.approx(PATIENCE)
        assert lease.lost_reason is None
        storage.heal()
        began = trio.current_time()
        await lease.wait_held(patience_seconds=PATIENCE)
        assert lease.is_held
        assert trio.current_time() - began <= TERM / 5
        assert (lease.epoch, lease.statistics().lapses) == (1, 1)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.levelname for record in warnings] == ["WARNING", "ERROR", "WARNING"]
    assert "could not be renewed" in warnings[0].getMessage()
    assert "has lapsed" in warnings[1].getMessage()
    assert "is renewed again" in warnings[2].getMessage()


async def test_a_lease_that_was_taken_is_lost_for_good(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A holder that was stopped for longer than its term, and goes on."""
    storage = FaultyStorage(MemoryStorage())
    lease = await take(storage, "a")
    with trio.move_on_after(TERM):
        await lease.run()
    taken = await take(storage, "b")
    assert not holds(lease)
    assert lease.statistics().lost_reason is None
    async with running(taken):
        with trio.fail_after(TERM):
            await lease.run()
        assert lease.lost_reason == (
            "the prefix was taken over by /mnt/b on host host-b (process 7, since 2023-11-14 22:13:20 UTC)"
        )
        assert lease.lost_reason in caplog.text
        with pytest.raises(LeaseLost, match="may not write any more: the prefix was taken over by /mnt/b"):
            lease.check()
        with pytest.raises(LeaseLost):
            await lease.wait_held(patience_seconds=PATIENCE)
        calls = len(storage.calls)
        await lease.run()
        await lease.release()
        assert len(storage.calls) == calls
        assert not holds(lease)
        assert (lease.statistics().seconds_left, lease.statistics().lapses) == (0, 1)
        await trio.sleep(TERM)
        assert taken.is_held
    assert (await record_in(storage)).identity.holder == "b"


async def test_whoever_waits_for_a_lapsed_lease_hears_that_it_is_lost(autojump_clock: MockClock) -> None:
    storage = MemoryStorage()
    lease = await take(storage, "a")
    await trio.sleep(TERM)
    await take(storage, "b", known_dead={"a"})

    async def wait() -> None:
        with pytest.raises(LeaseLost):
            await lease.wait_held(patience_seconds=PATIENCE)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(lease.run)


@pytest.mark.parametrize("data", [None, b"", b"{}"])
async def test_a_lease_that_was_removed_or_overwritten_is_lost(
    data: bytes | None, autojump_clock: MockClock
) -> None:
    storage = MemoryStorage()
    lease = await take(storage, "a")
    if data is None:
        await storage.delete(LEASE_KEY)
    else:
        await storage.put(LEASE_KEY, data)
    with trio.fail_after(TERM):
        await lease.run()
    assert not holds(lease)
    assert lease.lost_reason is not None
    assert LEASE_KEY in lease.lost_reason


@pytest.mark.parametrize("error", [Unavailable, Throttled, PreconditionFailed])
async def test_a_renewal_whose_answer_is_lost(error: type[StorageError], autojump_clock: MockClock) -> None:
    """The next one finds it; `PreconditionFailed` is what a second attempt below would report."""
    storage = FaultyStorage(MemoryStorage())
    lease = await take(storage, "a")
    async with running(lease):
        for _ in range(3):
            storage.fail(error, verb=Verb.PUT, answer_lost=True)
            for _ in range(100):
                await trio.sleep(TERM / 100)
                assert lease.is_held
        assert lease.statistics().lapses == 0
        assert not storage.faults_left


async def test_every_answer_is_lost_for_some_time(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Renewals arrive, one of many, and nobody hears of it; meanwhile the lease counts as not renewed."""
    storage = FaultyStorage(MemoryStorage())
    lease = await take(storage, "a")
    async with running(lease):
        storage.fail(Unavailable, times=math.inf, answer_lost=True)
        await trio.sleep(2 * TERM)
        assert not holds(lease)
        storage.heal()
        await trio.sleep(TERM / 2)
        assert lease.is_held
        assert lease.statistics().lapses == 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR", "WARNING"]


async def test_a_found_renewal_counts_from_when_it_may_have_been_sent(autojump_clock: MockClock) -> None:
    storage = FaultyStorage(MemoryStorage())
    lease = await take(storage, "a")
    storage.fail(Unavailable, verb=Verb.PUT, answer_lost=True)
    sent_at = TERM * RENEWAL_SHARE
    with trio.move_on_after(sent_at + 0.1):
        await lease.run()
    storage.fail(Unavailable, call=3, times=math.inf)  # the next put conflicts, and is looked for
    await trio.sleep_until(2 * sent_at)
    async with running(lease):
        await trio.sleep_until(sent_at + HELD - 0.001)
        assert lease.is_held
        await trio.sleep(0.002)
        assert not holds(lease)


async def test_a_conflict_without_a_cause(autojump_clock: MockClock) -> None:
    """The store says that another state is there, and shows ours: it is asked again, and not without end at once."""
    storage = FaultyStorage(MemoryStorage())
    lease = await take(storage, "a")
    async with running(lease):
        storage.fail(PreconditionFailed, verb=Verb.PUT, times=5)
        await trio.sleep(TERM)
        assert lease.is_held
        assert len(storage.calls) < 20


async def test_a_paused_holder_does_not_undo_a_taking(autojump_clock: MockClock) -> None:
    """Its renewal was on the way while it was stopped, and arrives when another one holds the lease."""
    store = MemoryStorage()
    storage = FaultyStorage(store)
    lease = await take(storage, "a")
    gate = storage.hold(Verb.PUT)
    async with running(lease):
        await gate.reached.wait()
        taken = await take(store, "b")
        assert taken.is_held
        assert not holds(lease)
        gate.open()
        with pytest.raises(LeaseLost):
            await lease.wait_held(patience_seconds=PATIENCE)
    assert (await record_in(store)).identity.holder == "b"


async def test_a_late_renewal_counts_from_when_it_was_sent(autojump_clock: MockClock) -> None:
    storage = FaultyStorage(MemoryStorage())
    lease = await take(storage, "a")
    gate = storage.hold(Verb.PUT)
    async with running(lease):
        await gate.reached.wait()
        sent_at = trio.current_time()
        await trio.sleep(HELD)
        assert not holds(lease)
        gate.open()
        await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() == pytest.approx(sent_at + HELD)
        await lease.wait_held(patience_seconds=PATIENCE)
        assert lease.statistics().renewals == 2


class Cancelling(InterceptedStorage):
    """A store whose caller is cancelled when a put has taken effect."""

    def __init__(self, inner: ObjectStorage) -> None:
        super().__init__(inner)
        self.caller = trio.CancelScope()

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        result = await send()
        if request.verb is Verb.PUT:
            self.caller.cancel()
            await trio.lowlevel.checkpoint()
        return result


async def test_a_renewal_that_is_cancelled_has_arrived_perhaps(autojump_clock: MockClock) -> None:
    storage = Cancelling(MemoryStorage())
    lease = await take(storage, "a")
    with storage.caller:
        await lease.run()
    assert storage.caller.cancelled_caught
    assert lease.statistics().renewals == 0
    async with running(lease):
        with trio.fail_after(TERM):
            await lease.wait_held(patience_seconds=PATIENCE)
        await trio.sleep(1)
        assert lease.lost_reason is None
    await lease.release()
    assert (await record_in(storage)).released


@pytest.mark.parametrize("clean", [True, False])
async def test_giving_it_back(clean: bool, autojump_clock: MockClock) -> None:
    storage = FaultyStorage(MemoryStorage())
    lease = await take(storage, "a")
    gate = storage.hold(Verb.PUT, call=2)
    async with running(lease):
        await trio.sleep(TERM / 2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: lease.release(clean=clean))
            await gate.reached.wait()
            assert not holds(lease)  # before the store hears of it
            gate.open()
    record = await record_in(storage)
    assert record.released
    assert bool(record.logs) == (not clean)
    assert (await take(storage, "b")).epoch == 2
    assert trio.current_time() == TERM / 2
    await lease.release()
    assert (await record_in(storage)).identity.holder == "b"


async def test_how_far_the_log_is_acknowledged(autojump_clock: MockClock) -> None:
    """Each renewal tells it, with no request more; so does the next holder until it has something to tell itself."""
    storage = FaultyStorage(MemoryStorage())
    lease = await take(storage, "a")
    async with running(lease):
        for sequence in (3, 2):
            lease.acknowledged(sequence)
        assert (await record_in(storage)).logs == (LogPlace("", 1),)
        await trio.sleep(RENEWAL_SHARE * TERM + 1)
        assert (await record_in(storage)).logs == (LogPlace("", 1, end=LogEnd(1, 3)),)
        lease.acknowledged(4, is_needed=False)
        await trio.sleep(RENEWAL_SHARE * TERM)
        assert (await record_in(storage)).logs == (LogPlace("", 1, end=LogEnd(1, 4, is_needed=False)),)
        assert len(storage.calls_of(Verb.PUT)) == 3
        lease.acknowledged(5)
        assert not await lease.release(clean=False)
    crashed = await take(storage, "b")
    assert (await record_in(storage)).logs == (LogPlace("", 1, end=LogEnd(1, 5)),)
    async with running(crashed):
        await trio.sleep(RENEWAL_SHARE * TERM + 1)
        assert (await record_in(storage)).logs == (LogPlace("", 1, end=LogEnd(1, 5)),)
        crashed.acknowledged(1)
        await trio.sleep(RENEWAL_SHARE * TERM)
        assert (await record_in(storage)).logs == (LogPlace("", 1, end=LogEnd(2, 1)),)
    lease = await take(storage, "c", log="s3://fast", known_dead={"b"})
    lease.acknowledged(2)
    lease.recovered()
    async with running(lease):
        await trio.sleep(RENEWAL_SHARE * TERM + 1)
        assert (await record_in(storage)).logs == (LogPlace("s3://fast", 3, end=LogEnd(3, 2)),)
        assert await lease.release()
    assert (await record_in(storage)).logs == ()


async def test_whether_it_says_that_there_is_no_log_any_more(autojump_clock: MockClock) -> None:
    """Where that is not certain, what is left of the log must stay."""
    storage = FaultyStorage(MemoryStorage())
    lease = await take(storage, "a")
    storage.fail(Unavailable, verb=Verb.PUT, answer_lost=True)
    assert not await lease.release()
    lost = await take(storage, "b")
    await take(storage, "c", known_dead={"b"})
    assert not await lost.release()
    for end, is_certain in ((None, True), (LogEnd(1, 1), False)):
        told = replace(await record_in(storage), logs=(LogPlace("", 1, end=end),))
        assert await NoLease(1, previous=told).release() is is_certain
        assert not await NoLease(1, previous=told).release(clean=False)
    assert await NoLease(1).release()


async def test_run_ends_when_it_is_given_back(autojump_clock: MockClock) -> None:
    lease = await take(MemoryStorage(), "a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run)
        await trio.testing.wait_all_tasks_blocked()
        await lease.release()
    assert trio.current_time() == 0
    with pytest.raises(LeaseLost, match="it was given back"):
        lease.check()


async def test_it_is_given_back_after_a_renewal_that_is_on_its_way(autojump_clock: MockClock) -> None:
    storage = FaultyStorage(MemoryStorage())
    lease = await take(storage, "a")
    gate = storage.hold(Verb.PUT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run)
        await gate.reached.wait()
        nursery.start_soon(lease.release)
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
    assert (await record_in(storage)).released


async def test_it_is_given_back_after_a_renewal_without_an_answer(autojump_clock: MockClock) -> None:
    storage = FaultyStorage(MemoryStorage())
    lease = await take(storage, "a")
    storage.fail(Unavailable, verb=Verb.PUT, answer_lost=True)
    with trio.move_on_after(TERM * RENEWAL_SHARE + 0.1):
        await lease.run()
    await lease.release()
    assert (await record_in(storage)).released


@pytest.mark.parametrize("error", [Unavailable, PreconditionFailed])
async def test_it_is_given_back_without_an_answer(
    error: type[StorageError], autojump_clock: MockClock
) -> None:
    storage = FaultyStorage(MemoryStorage())
    lease = await take(storage, "a")
    storage.fail(error, answer_lost=True)
    await lease.release()
    assert not holds(lease)
    assert (await record_in(storage)).released


async def test_it_cannot_be_given_back(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is raised: it ends with its term."""
    storage = FaultyStorage(MemoryStorage())
    lease = await take(storage, "a")
    storage.fail(Unavailable)
    await lease.release()
    assert not holds(lease)
    assert "the lease was perhaps not given back, and then the next mount waits for 30 s" in caplog.text
    await take(storage, "b")
    assert trio.current_time() == pytest.approx(TERM)


@pytest.mark.parametrize("data", [None, b"damaged"])
async def test_it_is_not_there_to_be_given_back(data: bytes | None, autojump_clock: MockClock) -> None:
    storage = MemoryStorage()
    lease = await take(storage, "a")
    if data is None:
        await storage.delete(LEASE_KEY)
    else:
        await storage.put(LEASE_KEY, data)
    await lease.release()
    assert not holds(lease)


async def test_a_lapsed_lease_is_given_back_unless_it_was_taken(autojump_clock: MockClock) -> None:
    storage = MemoryStorage()
    lease = await take(storage, "a")
    await trio.sleep(2 * TERM)
    await lease.release()
    assert (await record_in(storage)).released
    late = await take(storage, "b")
    await trio.sleep(2 * TERM)
    await take(storage, "c", known_dead={"b"})
    await late.release()
    assert (await record_in(storage)).identity.holder == "c"


async def test_each_call_fails_in_turn(autojump_clock: MockClock) -> None:
    """Of a life from taking to giving back, on a store with the patience that it should have."""

    async def fail_once(answer_lost: bool, call: int) -> bool:
        faulty = FaultyStorage(MemoryStorage())
        storage = RetryingStorage(faulty, RetryPolicy(timeout_seconds=longest_call_seconds(TERM)))
        faulty.fail(Unavailable, call=call, answer_lost=answer_lost)
        await _whole_life(storage)
        return not faulty.faults_left

    for answer_lost in (False, True):
        assert await at_every_call(partial(fail_once, answer_lost)) > 4


async def _whole_life(storage: ObjectStorage) -> None:
    lease = await take(storage, "a")
    async with running(lease):
        for _ in range(10):
            await trio.sleep(TERM / 10)
            assert lease.is_held
        await lease.release()
    assert (await record_in(storage)).released
    assert (await take(storage, "b")).epoch == 2


async def test_by_the_clock_of_the_host() -> None:
    """Which nobody can set back."""
    storage = MemoryStorage()
    lease = await acquire(storage, claim("a"), clock=WallClock())
    assert lease.is_held
    assert 0 < lease.statistics().seconds_left <= HELD
    await lease.release()


async def test_suspension_of_the_host_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is one that goes on meanwhile, unlike the one that others are content with."""
    monkeypatch.setattr("fusefs.clock.time.clock_gettime", {time.CLOCK_BOOTTIME: 5.0}.__getitem__)
    assert boottime() == 5.0


async def test_clocks_that_run_apart(autojump_clock: MockClock) -> None:
    """The holder's is slow, and yet it is the first to see the end of its term."""
    storage = MemoryStorage()
    lease = await acquire(storage, claim("a"), clock=WallClock(), now=lambda: trio.current_time() * 0.95)
    await take(storage, "b")
    assert trio.current_time() == pytest.approx(TERM)
    assert not holds(lease)


async def test_a_process_that_exists_twice(autojump_clock: MockClock) -> None:
    """A virtual machine's snapshot was started twice: the two know the same, and one of them loses."""
    storage = MemoryStorage()
    lease = await take(storage, "a")
    with trio.move_on_after(TERM):
        await lease.run()
    leases = [lease, copy.deepcopy(lease, {id(storage): storage})]
    async with trio.open_nursery() as nursery:
        for lease in leases:
            nursery.start_soon(lease.run)
        await trio.sleep(3 * TERM)
        assert sorted(lease.is_held for lease in leases) == [False, True]
        nursery.cancel_scope.cancel()


async def test_a_taking_that_took_long(autojump_clock: MockClock) -> None:
    """The term begins when it was asked for."""
    storage = FaultyStorage(MemoryStorage())
    gate = storage.hold(Verb.PUT)
    leases: list[StoredLease] = []

    async def wait() -> None:
        leases.append(await take(storage, "a"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(TERM / 2)
        gate.open()
    assert leases[0].statistics().seconds_left == pytest.approx(HELD - TERM / 2)


async def test_a_host_that_was_suspended(autojump_clock: MockClock) -> None:
    """Its own time went on and trio's did not."""
    storage = MemoryStorage()
    suspended = 0.0
    lease = await acquire(storage, claim("a"), clock=WallClock(), now=lambda: trio.current_time() + suspended)
    async with running(lease):
        await trio.sleep(TERM)
        assert lease.is_held
        suspended = 3_600.0
        assert not holds(lease)
        await lease.wait_held(patience_seconds=PATIENCE)
        assert lease.statistics().lapses == 1


async def test_doing_without(autojump_clock: MockClock) -> None:
    """What everything else sees is the same."""
    lease: Lease = NoLease(5)
    async with running(lease):
        lease.check()
        await lease.wait_held(patience_seconds=PATIENCE)
        lease.recovered()
        assert (lease.epoch, lease.previous, lease.is_held, lease.lost_reason) == (5, None, True, None)
        await lease.release()
        assert lease.is_held
        assert lease.statistics().is_held


async def test_a_term_without_a_lease_is_later_than_those_with_one(autojump_clock: MockClock) -> None:
    storage = MemoryStorage()
    await (await take(storage, "a", at_least_epoch=7)).release(clean=False)
    before = await record_in(storage)
    lease = NoLease(3, previous=before)
    assert (lease.epoch, lease.previous) == (8, before)
    assert NoLease(12, previous=before).epoch == 12


async def test_two_mounts_of_one_host_by_turns(autojump_clock: MockClock) -> None:
    """Released and taken a hundred times, without a moment of waiting; epochs rise by one."""
    storage = MemoryStorage()
    for epoch in range(1, 101):
        lease: StoredLease = await take(storage, f"mount-{epoch}")
        assert lease.epoch == epoch
        async with running(lease):
            with pytest.raises(LeaseHeld):
                await take(storage, "other")
            await lease.release()
    assert trio.current_time() < 100 * TERM


async def test_a_renewal_that_meets_a_defect_is_one_that_failed(autojump_clock: MockClock) -> None:
    """Whatever it is, it must not end the mount; the next one is in time."""
    storage = MemoryStorage()
    lease = await take(storage, "a")
    put = storage.put

    async def fail_once(*_: object, **__: object) -> str:
        storage.put = put  # type: ignore[method-assign]
        raise RuntimeError("a defect")

    storage.put = fail_once  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run)
        await trio.sleep(2 * TERM)
        assert lease.is_held
        assert lease.statistics().failures == 1
        nursery.cancel_scope.cancel()
