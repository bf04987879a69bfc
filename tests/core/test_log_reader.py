"""Which batches of a log count, whatever else is there."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from math import inf
from typing import Final

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from backends.base import CREATE_ONLY, ObjectStorage
from backends.errors import NotFound, PreconditionFailed
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from fusefs import old_logs
from fusefs.errors import LogDamaged
from fusefs.journal_format import SEAL_SIZES, batch_key, decode, encode, position_of
from fusefs.log_reader import LOOKS, LogReader, OldLog
from fusefs.log_records import CONTINUED, SEAL, Batch, LeftoverRecord, Position, Record
from fusefs.old_logs import KEPT_SEALS, READ_AT_ONCE, LogPart, batches, find_logs, places
from fusefs.versions import Version
from tests.support.faulty import FaultyStorage, Gate

SOMETHING: Final = (LeftoverRecord(Version("key", "etag", 1)),)


async def put(
    storage: ObjectStorage,
    position: tuple[int, int],
    cutoff: tuple[int, int] = (1, 1),
    *,
    flags: int = 0,
    records: tuple[Record, ...] = SOMETHING,
    acknowledged: int = 0,
) -> None:
    batch = Batch(
        position=Position(*position),
        cutoff=Position(*cutoff),
        acknowledged=acknowledged,
        flags=flags,
        records=records,
    )
    await storage.put(batch_key(batch.position), encode(batch), mode=CREATE_ONLY)


async def find(storage: ObjectStorage, before_epoch: int = 9) -> OldLog:
    (log,) = await find_logs([LogPart(LogReader(storage))], before_epoch=before_epoch)
    return log


def counting(*logs: OldLog) -> list[tuple[int, int]]:
    return [(position.epoch, position.sequence) for position, _ in places(logs)]


def sequences(epoch: int, numbers: Iterable[int]) -> list[tuple[int, int]]:
    return [(epoch, number) for number in numbers]


async def is_sealed(storage: MemoryStorage, position: tuple[int, int]) -> bool:
    data = (await storage.get_range(batch_key(Position(*position)))).data
    return decode(data, Position(*position)).is_seal


async def test_all_that_there_is_counts() -> None:
    storage = MemoryStorage()
    for number in (1, 2, 3):
        await put(storage, (1, number))
    assert counting(await find(storage)) == sequences(1, (1, 2, 3))
    assert await is_sealed(storage, (1, 4))


async def test_what_is_before_the_cutoff_does_not_count() -> None:
    """Some of it is deleted, in any order."""
    storage = MemoryStorage()
    for number in (1, 3, 5, 6):
        await put(storage, (1, number), (1, 5) if number == 6 else (1, 1))
    assert counting(await find(storage)) == sequences(1, (5, 6))


async def test_what_overtook_another_batch_does_not_count() -> None:
    storage = MemoryStorage()
    for number in (1, 2, 4, 5):
        await put(storage, (1, number))
    assert counting(await find(storage)) == sequences(1, (1, 2))
    assert await is_sealed(storage, (1, 3))


async def test_a_seal_does_not_join_what_it_came_between() -> None:
    """A recovery that was cut short has put its seal into the gap; the next one finds the same."""
    storage = MemoryStorage()
    for number in (1, 2, 4, 5):
        await put(storage, (1, number))
    first = counting(await find(storage))
    assert counting(await find(storage)) == first == sequences(1, (1, 2))


async def test_what_arrives_behind_a_seal_does_not_count() -> None:
    """Not even what builds on nothing before it."""
    storage = MemoryStorage()
    await put(storage, (1, 1))
    first = counting(await find(storage))
    await put(storage, (1, 3), (1, 3))
    assert counting(await find(storage)) == first == sequences(1, [1])


async def test_a_batch_that_was_begun_counts_for_nothing() -> None:
    storage = MemoryStorage()
    await put(storage, (1, 1))
    await put(storage, (1, 2), flags=CONTINUED)
    await put(storage, (1, 3), flags=CONTINUED)
    assert counting(await find(storage)) == sequences(1, [1])
    with pytest.raises(PreconditionFailed):
        await put(storage, (1, 4))  # the writer still lives, and wants to end it
    assert counting(await find(storage)) == sequences(1, [1])


async def test_a_writer_that_is_quicker_than_the_seal() -> None:
    """What it has written counts, and its next batch is refused."""
    storage = MemoryStorage()
    await put(storage, (1, 1))
    faulty = FaultyStorage(storage)
    gate = faulty.hold(Verb.PUT)
    found: list[OldLog] = []

    async def look() -> None:
        found.append(await find(faulty))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await gate.reached.wait()
        await put(storage, (1, 2))
        gate.open()
    assert counting(*found) == sequences(1, (1, 2))
    assert await is_sealed(storage, (1, 3))


async def test_nothing_but_parts_of_a_batch() -> None:
    storage = MemoryStorage()
    await put(storage, (1, 2), (1, 1))
    assert counting(await find(storage)) == []


@pytest.mark.parametrize(
    ("there", "late"),
    [((2,), 1), ((2, 3), 1), ((3,), 2), ((3, 5), 1), ((2, 4), 3)],
)
async def test_where_nothing_counts_nothing_that_arrives_late_does(there: tuple[int, ...], late: int) -> None:
    """The first batches of a term were on their way when it was ended, and later ones were there."""
    storage = MemoryStorage()
    for number in there:
        await put(storage, (1, number))
    assert counting(await find(storage)) == []
    with suppress(PreconditionFailed):
        await put(storage, (1, late))
    assert counting(await find(storage)) == []


async def test_a_late_end_of_what_was_begun() -> None:
    storage = MemoryStorage()
    await put(storage, (1, 1), flags=CONTINUED)
    await put(storage, (1, 3))
    assert counting(await find(storage)) == []
    with pytest.raises(PreconditionFailed):
        await put(storage, (1, 2))
    assert counting(await find(storage)) == []


async def test_the_last_term_says_what_is_needed_of_those_before() -> None:
    storage = MemoryStorage()
    for number in (1, 2, 3):
        await put(storage, (1, number))
    await put(storage, (3, 1), (1, 2))
    assert counting(await find(storage)) == [(1, 2), (1, 3), (3, 1)]
    await put(storage, (5, 1), (5, 1))
    assert counting(await find(storage)) == [(5, 1)]


async def test_a_later_term_in_another_store_says_so_too() -> None:
    """What is left of the log that it was deleting when it died is not taken for a damaged one."""
    bucket, disk = MemoryStorage(), MemoryStorage()
    for number in (2, 4):
        await put(disk, (1, number), acknowledged=number - 1)
    await put(disk, (1, 6), (1, 6), flags=SEAL, records=(), acknowledged=5)
    await put(bucket, (2, 1), (2, 1))
    parts = [LogPart(LogReader(bucket)), LogPart(LogReader(disk))]
    found = await find_logs(parts, before_epoch=9)
    assert counting(*found) == [(2, 1)]
    assert found[1].keys == [batch_key(Position(1, number)) for number in (2, 4)]
    assert found[1].seals == [batch_key(Position(1, 6))]


async def test_a_term_that_has_lost_its_first_batch() -> None:
    """It builds on terms before, and so on all of its own."""
    storage = MemoryStorage()
    await put(storage, (1, 1))
    await put(storage, (2, 2), (1, 1))
    assert counting(await find(storage)) == [(1, 1)]


async def test_every_key_is_named() -> None:
    """Remains and strays are deleted with the rest, and the seal is not."""
    storage = MemoryStorage()
    for number in (1, 3, 4, 6):
        await put(storage, (1, number), (1, 3) if number == 4 else (1, 1))
    log = await find(storage)
    assert sorted(log.keys) == [batch_key(Position(1, number)) for number in (1, 3, 4, 6)]
    assert log.seals == [batch_key(Position(1, 5))]
    assert (await find(storage)).seals == log.seals


async def test_batches_without_records_are_not_kept_in_the_place_of_seals() -> None:
    """A term may have left any number of them, and those of the terms before have still ended who writes there."""
    storage = MemoryStorage()
    for epoch in range(1, KEPT_SEALS):
        await put(storage, (epoch, 2), (epoch, 2), flags=SEAL, records=())
    for number in range(1, KEPT_SEALS):
        await put(storage, (KEPT_SEALS, number), (KEPT_SEALS, number), records=())
    await put(storage, (KEPT_SEALS, KEPT_SEALS), (KEPT_SEALS, KEPT_SEALS), flags=SEAL, records=())
    await put(storage, (KEPT_SEALS + 1, 1), (KEPT_SEALS + 1, 1))
    log = await find(storage, KEPT_SEALS + 2)
    ends = [*((epoch, 2) for epoch in range(2, KEPT_SEALS)), (KEPT_SEALS, KEPT_SEALS), (KEPT_SEALS + 1, 2)]
    assert log.seals == [batch_key(Position(*end)) for end in ends]
    assert set(sequences(KEPT_SEALS, range(1, KEPT_SEALS))) < {position_of(key) for key in log.keys}
    await storage.put(batch_key(Position(KEPT_SEALS, 1)), bytes(SEAL_SIZES[0]))  # nobody needs it
    assert counting(await find(storage, KEPT_SEALS + 2)) == [(KEPT_SEALS + 1, 1)]


@given(lost=st.sets(st.integers(1, 8)), continued=st.sets(st.integers(1, 8)))
async def test_looking_twice_finds_the_same(lost: set[int], continued: set[int]) -> None:
    """What counts ends with a commit, has no gap, and is all that the commit builds on."""
    storage = MemoryStorage()
    there = [number for number in range(1, 9) if number not in lost]
    for number in there:
        await put(storage, (1, number), flags=CONTINUED if number in continued else 0)
    found = counting(await find(storage))
    whole = 0
    for number in range(1, 9):
        if number in lost:
            break
        whole = whole if number in continued else number
    assert found == sequences(1, range(1, whole + 1))
    assert counting(await find(storage)) == found


@given(place=st.integers(0, 400), bit=st.integers(0, 7), which=st.integers(1, 3))
async def test_damage_is_told_and_nothing_applied(place: int, bit: int, which: int) -> None:
    storage = MemoryStorage()
    for number in (1, 2, 3):
        await put(storage, (1, number))
    key = batch_key(Position(1, which))
    data = bytearray((await storage.get_range(key)).data)
    data[place % len(data)] ^= 1 << bit
    await storage.put(key, data)
    with pytest.raises(LogDamaged, match=key):
        _ = [batch async for batch in batches([await find(storage)])]


@pytest.mark.parametrize("length", [0, 10, 60, 70])
async def test_a_batch_that_was_cut_short(length: int) -> None:
    storage = MemoryStorage()
    await put(storage, (1, 1))
    key = batch_key(Position(1, 1))
    await storage.put(key, (await storage.get_range(key)).data[:length])
    with pytest.raises(LogDamaged, match=key):
        await find(storage)


async def test_a_damaged_seal() -> None:
    storage = MemoryStorage()
    await put(storage, (1, 1))
    await put(storage, (1, 2), flags=SEAL, records=())
    await storage.put(batch_key(Position(1, 2)), b"x" * 60)
    with pytest.raises(LogDamaged):
        await find(storage)


async def test_a_writer_that_deletes_its_log_meanwhile(autojump_clock: MockClock) -> None:
    """It had asked for that before it was paused: what it deletes, nobody needs."""
    for call in range(1, 9):
        storage = MemoryStorage()
        for number in (1, 2, 3):
            await put(storage, (1, number))
        await put(storage, (1, 4), (1, 4), records=())
        faulty = FaultyStorage(storage)
        gate = faulty.hold(call=call)

        async def end(gate: Gate = gate, storage: MemoryStorage = storage) -> None:
            await gate.reached.wait()
            await storage.delete_many([batch_key(Position(1, number)) for number in (1, 2, 3, 4)])
            gate.open()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(end)
            found = await find(faulty)
            assert [batch async for batch in batches([found])] == []
            nursery.cancel_scope.cancel()


async def test_a_batch_that_counts_and_is_gone() -> None:
    storage = MemoryStorage()
    await put(storage, (1, 1))
    await put(storage, (1, 2))
    found = await find(storage)
    await storage.delete(batch_key(Position(1, 1)))
    with pytest.raises(LogDamaged, match="it is not there any more"):
        _ = [batch async for batch in batches([found])]


async def read_into(read: list[tuple[int, int]], log: OldLog) -> None:
    """Read the batches that count, and note which ones have come."""
    async for batch in batches([log]):
        read.append((batch.position.epoch, batch.position.sequence))


@pytest.mark.parametrize("sized", [1, 2, READ_AT_ONCE, 2 * READ_AT_ONCE])
async def test_many_batches_are_read_at_once(sized: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no more than go into memory together, which are `sized` of them here."""
    storage = FaultyStorage(MemoryStorage())
    for number in range(1, 2 * READ_AT_ONCE + 1):
        await put(storage, (1, number))
    found = await find(storage)
    monkeypatch.setattr(old_logs, "READ_SIZE", sized * found.sizes[Position(1, 1)])
    before = len(storage.calls_of(Verb.GET_RANGE))
    gate = storage.hold(Verb.GET_RANGE, times=inf)
    read: list[tuple[int, int]] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_into, read, found)
        await wait_all_tasks_blocked()
        assert len(storage.calls_of(Verb.GET_RANGE)) - before == min(sized, READ_AT_ONCE)
        gate.open()
    assert read == counting(found)


async def test_of_batches_that_are_read_at_once_the_first_damaged_one_is_told() -> None:
    """Although a later one comes before it, and what is before both is read."""
    storage = FaultyStorage(MemoryStorage())
    for number in range(1, 8):
        await put(storage, (1, number))
    found = await find(storage)
    for number in (3, 5):
        await storage.put(batch_key(Position(1, number)), b"damaged")
    gate = storage.hold(Verb.GET_RANGE, key=batch_key(Position(1, 3)))
    read: list[tuple[int, int]] = []

    async def let_it_come_last() -> None:
        await wait_all_tasks_blocked()
        gate.open()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(let_it_come_last)
        with pytest.raises(LogDamaged, match=batch_key(Position(1, 3))):
            await read_into(read, found)
    assert read == sequences(1, (1, 2))


async def test_a_store_that_lists_what_is_not_there() -> None:
    storage = FaultyStorage(MemoryStorage())
    await put(storage, (1, 1))
    storage.fail(NotFound, verb=Verb.GET_RANGE, times=LOOKS - 1)
    assert counting(await find(storage)) == sequences(1, [1])
    await put(storage, (2, 1))
    storage.fail(NotFound, verb=Verb.GET_RANGE, times=LOOKS)
    with pytest.raises(LogDamaged, match="that are not there"):
        await find(storage)
