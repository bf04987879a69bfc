"""Becoming the holder: one of many, at once or after a term, whatever the store answers."""

from __future__ import annotations

import math
import re

import pytest
import trio
from trio.testing import MockClock

from backends.base import Capabilities
from backends.errors import AccessDenied, PreconditionFailed, StorageError, Unavailable
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from fusefs.errors import LeaseDamaged, LeaseHeld, MountError
from fusefs.lease_acquisition import acquire, at_hand, check_supported, waiting_message
from fusefs.lease_record import LeaseRecord, LogEnd, LogPlace
from fusefs.stored_lease import LEASE_KEY, StoredLease
from tests.core.leases import TERM, WallClock, claim, record_in, take
from tests.support.faulty import FaultyStorage


async def test_the_first_holder(autojump_clock: MockClock) -> None:
    storage = MemoryStorage()
    lease = await take(storage, "a")
    assert (lease.epoch, lease.previous, lease.is_held) == (1, None, True)
    record = await record_in(storage)
    assert (record.epoch, record.identity.holder, record.released) == (1, "a", False)
    assert record.logs == (LogPlace("", 1),)
    assert trio.current_time() == 0


async def test_what_was_given_back_is_taken_at_once(autojump_clock: MockClock) -> None:
    storage = MemoryStorage()
    first = await take(storage, "a")
    await first.release()
    second = await take(storage, "b")
    assert trio.current_time() == 0
    assert second.epoch == 2
    assert second.previous is not None
    assert (second.previous.identity.holder, second.previous.released) == ("a", True)
    assert not first.is_held


async def test_the_holder_of_a_dead_process_is_not_waited_for(autojump_clock: MockClock) -> None:
    storage = MemoryStorage()
    await take(storage, "a")
    lease = await take(storage, "b", known_dead={"a", "x"})
    assert trio.current_time() == 0
    assert lease.epoch == 2
    assert lease.previous is not None
    assert not lease.previous.released


async def test_a_silent_holder_is_watched_for_its_whole_term(autojump_clock: MockClock) -> None:
    """Its own, not that of whoever watches; from when it was seen first."""
    storage = FaultyStorage(MemoryStorage())
    await take(storage, "a", term_seconds=40)
    await trio.sleep(25)
    began = trio.current_time()
    told: list[float] = []
    lease = await acquire(
        storage,
        claim("b", term_seconds=5),
        clock=WallClock(),
        now=trio.current_time,
        on_waiting=lambda seconds, record: told.append(seconds),
    )
    assert trio.current_time() - began == pytest.approx(40)
    assert told[0] == 40
    assert told == sorted(told, reverse=True)
    assert lease.epoch == 2
    assert len(storage.calls) < 20


async def test_whoever_waits_is_told_why() -> None:
    storage = MemoryStorage()
    await take(storage, "a")
    record = await record_in(storage)
    assert waiting_message(29.3, record) == (
        "the prefix is mounted read-write at /mnt/a on host host-a (process 7, since 2023-11-14 22:13:20 UTC), or was"
        " when that mount died; it is taken over if nothing is heard of it for 30 s more"
    )


async def test_the_wait_counts_from_the_answer(autojump_clock: MockClock) -> None:
    """A state that was asked for long ago may have come about since."""
    storage = FaultyStorage(MemoryStorage())
    await take(storage, "a")
    gate = storage.hold(Verb.GET_RANGE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, storage, "b")
        await trio.sleep(1_000)
        gate.open()
        await trio.sleep(TERM * 0.99)
        assert (await record_in(storage)).identity.holder == "a"
    assert (await record_in(storage)).identity.holder == "b"


async def test_a_holder_that_is_alive_is_left_alone(autojump_clock: MockClock) -> None:
    storage = MemoryStorage()
    async with trio.open_nursery() as nursery:
        holder = await take(storage, "a")
        nursery.start_soon(holder.run)
        await trio.sleep(100)
        began = trio.current_time()
        with pytest.raises(LeaseHeld) as refusal:
            await take(storage, "b")
        assert trio.current_time() - began < TERM / 2
        assert str(refusal.value) == (
            "the prefix is in use: it is mounted read-write at /mnt/a on host host-a (process 7, since"
            " 2023-11-14 22:13:20 UTC), and that mount is alive; unmount it there first"
        )
        assert holder.is_held
        nursery.cancel_scope.cancel()


async def test_waiting_for_a_holder_that_ends(autojump_clock: MockClock) -> None:
    storage = MemoryStorage()
    async with trio.open_nursery() as nursery:
        holder = await take(storage, "a")
        nursery.start_soon(holder.run)
        leases: list[StoredLease] = []

        async def wait() -> None:
            leases.append(await take(storage, "b", wait_seconds=600))

        nursery.start_soon(wait)
        await trio.sleep(300)
        assert not leases
        await holder.release()
        await trio.sleep(TERM / 10)
        assert [lease.epoch for lease in leases] == [2]


async def test_waiting_in_vain(autojump_clock: MockClock) -> None:
    storage = MemoryStorage()
    async with trio.open_nursery() as nursery:
        holder = await take(storage, "a")
        nursery.start_soon(holder.run)
        with pytest.raises(LeaseHeld):
            await take(storage, "b", wait_seconds=100)
        assert 100 <= trio.current_time() < 110
        nursery.cancel_scope.cancel()


async def test_waiting_for_a_holder_that_dies(autojump_clock: MockClock) -> None:
    """It counts from its last sign of life."""
    storage = MemoryStorage()
    holder = await take(storage, "a")
    with trio.move_on_after(95):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(holder.run)
    lease = await take(storage, "b", wait_seconds=math.inf)
    assert lease.epoch == 2
    assert trio.current_time() == pytest.approx(95 + TERM)


@pytest.mark.parametrize("before", ["nothing", "released", "dead"])
@pytest.mark.parametrize("held_call", [1, 2, 3, 4])
async def test_of_two_that_race_one_wins(before: str, held_call: int, autojump_clock: MockClock) -> None:
    """Each of the calls of both together waits in turn until the other one is through."""
    storage = FaultyStorage(MemoryStorage())
    if before != "nothing":
        old = await take(storage, "old")
        if before == "released":
            await old.release()
    gate = storage.hold(call=held_call)
    winners: list[StoredLease] = []
    refusals: list[LeaseHeld] = []

    async with trio.open_nursery() as holding:

        async def race(name: str) -> None:
            try:
                winners.append(await take(storage, name, known_dead={"old"}))
            except LeaseHeld as refusal:
                refusals.append(refusal)
            else:
                holding.start_soon(winners[0].run)

        async with trio.open_nursery() as racing:
            racing.start_soon(race, "b")
            racing.start_soon(race, "c")
            await trio.testing.wait_all_tasks_blocked()
            gate.open()
        assert (len(winners), len(refusals)) == (1, 1)
        assert winners[0].is_held
        record = await record_in(storage)
        assert record.epoch == winners[0].epoch == (1 if before == "nothing" else 2)
        assert trio.current_time() < TERM
        holding.cancel_scope.cancel()


async def test_a_take_over_that_comes_too_late(autojump_clock: MockClock) -> None:
    """The holder renews between the last look and the write: it keeps the lease."""
    storage = FaultyStorage(MemoryStorage())
    holder = await take(storage, "a")
    gate = storage.hold(Verb.PUT)
    async with trio.open_nursery() as nursery:

        async def refused() -> None:
            with pytest.raises(LeaseHeld):
                await take(storage, "b")

        nursery.start_soon(refused)
        await gate.reached.wait()
        nursery.start_soon(holder.run)
        await trio.sleep(1)
        assert holder.statistics().renewals == 1
        gate.open()
        await trio.sleep(TERM)
        assert holder.is_held
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("before", ["nothing", "released", "dead"])
async def test_an_answer_that_is_lost(before: str, autojump_clock: MockClock) -> None:
    storage = FaultyStorage(MemoryStorage())
    if before != "nothing":
        old = await take(storage, "old")
        if before == "released":
            await old.release()
    storage.fail(Unavailable, verb=Verb.PUT, answer_lost=True)
    lease = await take(storage, "b")
    assert lease.is_held
    assert (lease.previous is None) == (before == "nothing")
    assert lease.epoch == (1 if before == "nothing" else 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run)
        await trio.sleep(3 * TERM)
        assert lease.is_held
        assert lease.statistics().failures == 0
        nursery.cancel_scope.cancel()


async def test_an_answer_that_is_lost_and_asked_for_again_below(autojump_clock: MockClock) -> None:
    """The store's own second attempt meets the first one, and calls it a conflict."""
    storage = FaultyStorage(MemoryStorage())
    storage.fail(PreconditionFailed, verb=Verb.PUT, answer_lost=True)
    lease = await take(storage, "b")
    assert (lease.epoch, lease.is_held, lease.previous) == (1, True, None)


@pytest.mark.parametrize("error", [Unavailable, AccessDenied])
async def test_a_store_that_fails(error: type[StorageError], autojump_clock: MockClock) -> None:
    """Each call in turn: it is the store's own patience that counts, and nothing is left behind."""
    for call in (1, 2):
        storage = FaultyStorage(MemoryStorage())
        storage.fail(error, call=call)
        with pytest.raises(error):
            await take(storage, "a")
        assert (await take(storage, "b")).epoch == 1


async def test_the_epoch_is_above_every_log(autojump_clock: MockClock) -> None:
    """Somebody has removed the lease, and not the logs of its terms."""
    storage = MemoryStorage()
    assert (await take(storage, "a", at_least_epoch=8)).epoch == 8
    assert (await take(storage, "b", at_least_epoch=3, known_dead={"a"})).epoch == 9
    assert (await take(storage, "c", at_least_epoch=20, known_dead={"b"})).epoch == 20


async def test_logs_of_terms_without_a_lease_stay_to_be_recovered(autojump_clock: MockClock) -> None:
    """Those after the last lease, which says nothing of them; also by the next mount, if this one dies first."""
    storage = MemoryStorage()
    await (await take(storage, "a", at_least_epoch=5)).release()
    await take(storage, "b", at_least_epoch=9)
    assert (await record_in(storage)).logs == (LogPlace("", 6),)
    lease = await take(storage, "c", known_dead={"b"})
    assert lease.previous is not None
    assert (lease.epoch, lease.previous.logs) == (10, (LogPlace("", 6),))


async def test_a_lease_that_is_removed_while_it_is_watched(autojump_clock: MockClock) -> None:
    """What it said is still true."""
    storage = MemoryStorage()
    await take(storage, "a", at_least_epoch=5, log="file:///log on a")
    async with trio.open_nursery() as nursery:
        leases: list[StoredLease] = []

        async def wait() -> None:
            leases.append(await take(storage, "b"))

        nursery.start_soon(wait)
        await trio.sleep(TERM / 2)
        await storage.delete(LEASE_KEY)
    assert leases[0].epoch == 6
    assert leases[0].previous is not None
    assert leases[0].previous.logs == (LogPlace("file:///log on a", 1),)


async def test_no_log_is_forgotten_before_it_is_recovered(autojump_clock: MockClock) -> None:
    """A crash after a crash, before the first one's log was recovered; then a clean end."""
    storage = MemoryStorage()
    await take(storage, "a", log="file:///log on a")
    crashed = await take(storage, "b", known_dead={"a"})
    assert crashed.previous is not None
    assert crashed.previous.logs == (LogPlace("file:///log on a", 1),)
    unclean = await take(storage, "c", known_dead={"b"})
    assert unclean.previous is not None
    assert unclean.previous.logs == (LogPlace("file:///log on a", 1), LogPlace("", 2))
    await unclean.release(clean=False)
    lease = await take(storage, "d", log="s3://fast")
    assert lease.previous is not None
    assert lease.previous.logs == (LogPlace("file:///log on a", 1), LogPlace("", 2))
    lease.recovered()
    with trio.move_on_after(TERM / 2):
        await lease.run()
    assert (await record_in(storage)).logs == (LogPlace("s3://fast", 4),)
    await lease.release()
    assert (await record_in(storage)).logs == ()


@pytest.mark.parametrize("realtime_ns", [0, 4_000_000_000_000_000_000])
async def test_wall_clocks_decide_nothing(realtime_ns: int, autojump_clock: MockClock) -> None:
    """The two hosts are decades apart."""
    storage = MemoryStorage()
    clock = WallClock(realtime_ns)
    async with trio.open_nursery() as nursery:
        holder = await take(storage, "a")
        nursery.start_soon(holder.run)
        with pytest.raises(LeaseHeld):
            await acquire(storage, claim("b"), clock=clock, now=trio.current_time)
        nursery.cancel_scope.cancel()
    began = trio.current_time()
    await acquire(storage, claim("b"), clock=clock, now=trio.current_time)
    assert trio.current_time() - began == pytest.approx(TERM)


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        (b"", "remove it if nothing is mounted there read-write"),
        (b"{}", "remove it if nothing is mounted there read-write"),
        (b'{"version": 2}', "use the version that has written it"),
    ],
)
async def test_an_object_that_is_no_lease(data: bytes, advice: str) -> None:
    storage = MemoryStorage()
    await storage.put(LEASE_KEY, data)
    with pytest.raises(LeaseDamaged) as refusal:
        await take(storage, "a")
    assert re.fullmatch(
        f"the object .fusefs/lease says who writes this prefix, and cannot be read: .*; {advice}",
        str(refusal.value),
    )
    assert (await storage.get_range(LEASE_KEY)).data == data


@pytest.mark.parametrize(
    ("capabilities", "named"),
    [
        (Capabilities(create_only=False), "If-None-Match on"),
        (Capabilities(if_match=False), "If-Match on"),
        (Capabilities(create_only=False, if_match=False), "If-None-Match and If-Match on"),
    ],
)
async def test_stores_without_conditions(capabilities: Capabilities, named: str) -> None:
    storage = FaultyStorage(MemoryStorage(capabilities=capabilities))
    with pytest.raises(MountError) as refusal:
        await take(storage, "a")
    assert str(refusal.value) == (
        f"the store ignores {named} writes, so two mounts of the prefix cannot be kept apart;"
        " mount with --no-lease if you are sure that there is no other"
    )
    assert storage.calls == []
    check_supported(
        Capabilities(conditional_copy=False, conditional_complete=False, conditional_delete=False)
    )


@pytest.mark.parametrize("seconds", [0.5, 4_000, math.nan])
def test_a_term_that_others_would_not_wait_for(seconds: float) -> None:
    with pytest.raises(ValueError, match="a term of"):
        claim("a", term_seconds=seconds)


async def test_an_absurd_term_of_somebody_else(autojump_clock: MockClock) -> None:
    storage = MemoryStorage()
    await take(storage, "a")
    body = (await storage.get_range(LEASE_KEY)).data
    await storage.put(LEASE_KEY, body.replace(b'"term_seconds": 30.0', b'"term_seconds": 1e99'))
    assert LeaseRecord.decode((await storage.get_range(LEASE_KEY)).data).term_seconds == 1e99
    await take(storage, "b")
    assert trio.current_time() == pytest.approx(3_600)


PLACES = {"": "", "here:/log": "d1"}


@pytest.mark.parametrize(
    ("logs", "named"),
    [
        ((), ()),
        ((LogPlace("", 3),), (LogPlace("", 3),)),
        ((LogPlace("here:/log", 3, "d1"),), (LogPlace("here:/log", 3, "d1"),)),
        (
            (LogPlace("there:/log", 3, "d1", LogEnd(3, 7)),),
            (LogPlace("here:/log", 3, "d1", LogEnd(3, 7)),),
        ),
        (
            (LogPlace("here:/log", 3, end=LogEnd(3, 7)), LogPlace("there:/log", 5, "d1", LogEnd(6, 1))),
            (LogPlace("here:/log", 3, "d1", LogEnd(6, 1)),),
        ),
        (
            (LogPlace("here:/log", 3, end=LogEnd(3, 7)), LogPlace("there:/log", 5, "d1")),
            (LogPlace("here:/log", 3, "d1", LogEnd(3, 7)),),
        ),
        ((LogPlace("there:/log", 3, "d1"),), (LogPlace("here:/log", 3, "d1"),)),
        # Of an earlier version.
        ((LogPlace("here:/log", 3),), (LogPlace("here:/log", 3, "d1"),)),
        # The same place twice, which is read from the first term on.
        (
            (LogPlace("here:/log", 3), LogPlace("", 4), LogPlace("there:/log", 5, "d1")),
            (LogPlace("here:/log", 3, "d1"), LogPlace("", 4)),
        ),
    ],
)
def test_logs_have_the_names_of_whoever_reads_them(
    logs: tuple[LogPlace, ...], named: tuple[LogPlace, ...]
) -> None:
    assert at_hand(logs, PLACES) == named


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (LogPlace("there:/log", 3), "at there:/log: mount"),
        (LogPlace("there:/log", 3, "d2"), "at there:/log, whose .fusefs/disk says d2: mount"),
        (LogPlace("here:/log", 3, "d2"), "says d2, and the disk that is there now is another one: mount"),
        (LogPlace("a\nb", 3, "d\n2"), "at a?b, whose .fusefs/disk says d?2: mount"),
        (LogPlace("there:/log", 3, "d2"), "first, with that cache directory and that disk;"),
        (
            LogPlace("there:/a b/log/c\nd/log/0f", 3, "d2"),
            "first, with --cache-dir '/a b/log/c?d' and that disk;",
        ),
        (LogPlace("", 3, "d2"), "says d2"),
    ],
)
async def test_whoever_cannot_read_a_log_does_not_become_the_holder(
    log: LogPlace, told: str, autojump_clock: MockClock
) -> None:
    """The lease is as it was, so that it names no log of a mount that never was."""
    storage = MemoryStorage()
    await (await take(storage, "a", log=log.place, places={log.place: log.disk})).release(clean=False)
    before = await record_in(storage)
    assert before.logs == (LogPlace(log.place, 1, log.disk),)
    with pytest.raises(MountError, match=re.escape(told)) as refused:
        await take(storage, "b", places=PLACES)
    assert str(refused.value).isprintable()
    assert await record_in(storage) == before
