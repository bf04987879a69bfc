"""Streams of any length and in flushes of any size arrive whole, in legal parts, or not at all."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from itertools import count, takewhile
from random import Random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from backends.base import (
    CREATE_ONLY,
    GIB,
    MIB,
    NO_METADATA,
    OVERWRITE,
    Data,
    IfMatch,
    Limits,
    Metadata,
    ObjectStorage,
    PutMode,
)
from backends.byte_budget import ByteBudget
from backends.errors import AccessDenied, PreconditionFailed, StorageError, Unavailable
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from backends.multipart import (
    ABORT_TIMEOUT_SECONDS,
    BufferedMultipartWriter,
    SentPart,
    open_writer,
)
from backends.part_sizes import PartSizes
from tests.support.every_call import at_every_call
from tests.support.faulty import FaultyStorage

PART = 5 * MIB
DATA = Random(3).randbytes(4 * PART + 17)
METADATA = {"mode": "33188"}


@pytest.fixture
def memory() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def faulty(memory: MemoryStorage) -> FaultyStorage:
    return FaultyStorage(memory)


def in_flushes(data: bytes, sizes: Iterable[int]) -> Iterable[bytes]:
    """Cut `data` into flushes of these sizes, and what is left into a last one."""
    start = 0
    for size in sizes:
        yield data[start : start + size]
        start += size
    yield data[start:]


async def upload(
    storage: ObjectStorage,
    chunks: Iterable[Data],
    *,
    metadata: Metadata = NO_METADATA,
    mode: PutMode = OVERWRITE,
) -> str:
    """Write chunks one after the other as the object `k`, and return its ETag."""
    async with open_writer(storage, "k", metadata=metadata, part_size=PART) as writer:
        for chunk in chunks:
            await writer.write(chunk)
        return await writer.close(mode)


async def assert_nothing_is_left(storage: ObjectStorage) -> None:
    """Neither an object nor an upload."""
    assert (await storage.list_prefix()).objects == ()
    assert await storage.list_multipart_uploads() == []


class SmallParts(MemoryStorage):
    """A store whose least part is a few bytes, so that many parts can be tried."""

    @property
    def limits(self) -> Limits:
        return Limits(
            min_part_size=4, max_part_size=400, max_part_number=100, max_object_size=4_000, max_put_size=400
        )


# Sizes


@given(size=st.integers(0, 1_000), flushes=st.lists(st.integers(0, 120), max_size=20))
@settings(max_examples=150)
def test_any_flushes_make_parts_of_the_ladder(size: int, flushes: list[int]) -> None:
    """Part k has the size of the ladder's part k, whatever the flushes were; nothing is begun below one part."""
    data = DATA[:size]

    async def main() -> None:
        faulty = FaultyStorage(SmallParts())
        async with open_writer(faulty, "k", part_size=8) as writer:
            for flush in in_flushes(data, flushes):
                await writer.write(flush)
            await writer.flush()
            sent = writer.sent
        sizes = PartSizes(8, faulty.limits)
        if size < 8:
            assert sent == ()
            assert faulty.calls == []
            return
        expected = list(takewhile(lambda part: part.start < size, map(sizes.part, count(1))))
        expected[-1] = expected[-1]._replace(end=size)
        assert sent == tuple(SentPart(*part) for part in expected)
        assert sorted(request.bytes_sent for request in faulty.calls_of(Verb.UPLOAD_PART)) == sorted(
            part.end - part.start for part in expected
        )

    trio.run(main)


@pytest.mark.parametrize(
    "flushes",
    [
        [len(DATA)],
        [PART, PART, PART, PART],
        [PART - 1, 2, PART, 1],
        [PART + 1, 3 * PART],
        [MIB] * 20,
        [0, 7, 0, PART],
    ],
    ids=["one", "parts", "around parts", "over parts", "many", "with empty ones"],
)
async def test_what_was_written_arrives(faulty: FaultyStorage, flushes: list[int]) -> None:
    async with open_writer(faulty, "k", metadata=METADATA, part_size=PART) as writer:
        for flush in in_flushes(DATA, flushes):
            await writer.write(flush)
        etag = await writer.close()
    stored = await faulty.get_range("k")
    assert stored.data == DATA
    info = await faulty.head("k")
    assert (info.etag, info.metadata) == (etag, METADATA)
    assert len(faulty.calls_of(Verb.UPLOAD_PART)) == 5
    assert await faulty.list_multipart_uploads() == []


@pytest.mark.parametrize("size", [0, 1, PART - 1])
async def test_what_stays_below_one_part_is_a_single_put(faulty: FaultyStorage, size: int) -> None:
    async with open_writer(faulty, "k", metadata=METADATA, part_size=PART) as writer:
        await writer.write(DATA[:size])
        assert faulty.calls == []
        await writer.close()
    assert [call.verb for call in faulty.calls] == [Verb.PUT]
    assert (await faulty.get_range("k")).data == DATA[:size]
    assert (await faulty.head("k")).metadata == METADATA


async def test_one_full_part_needs_no_empty_one_after_it(faulty: FaultyStorage) -> None:
    await upload(faulty, [DATA[:PART]])
    assert [call.verb for call in faulty.calls] == [Verb.CREATE_MULTIPART, Verb.UPLOAD_PART, Verb.COMPLETE]
    assert (await faulty.head("k")).size == PART


async def test_what_was_written_may_be_changed_by_the_caller_afterwards(faulty: FaultyStorage) -> None:
    gate = faulty.hold(Verb.UPLOAD_PART)
    changing = bytearray(DATA[:PART])
    async with open_writer(faulty, "k", part_size=PART) as writer:
        await writer.write(changing)
        await gate.reached.wait()
        changing[:] = bytes(PART)
        gate.open()
        await writer.close()
    assert (await faulty.get_range("k")).data == DATA[:PART]


async def test_chunks_of_every_kind(memory: MemoryStorage) -> None:
    chunks: list[Data] = [DATA[:10], bytearray(DATA[10:PART]), memoryview(DATA)[PART:]]
    etag = await upload(memory, chunks, metadata=METADATA)
    info = await memory.head("k")
    assert (info.etag, info.size, info.metadata) == (etag, len(DATA), METADATA)
    assert (await memory.get_range("k")).data == DATA


@pytest.mark.parametrize("size", [3, PART + 3], ids=["put", "parts"])
async def test_conditions_hold_for_both_ways(memory: MemoryStorage, size: int) -> None:
    first = await upload(memory, [DATA[:size]], mode=CREATE_ONLY)
    with pytest.raises(PreconditionFailed):
        await upload(memory, [DATA[:size]], mode=CREATE_ONLY)
    await upload(memory, [b"new"], mode=IfMatch(first))
    assert (await memory.get_range("k")).data == b"new"
    assert await memory.list_multipart_uploads() == []


async def test_a_part_size_that_the_store_refuses_is_a_value_error(memory: MemoryStorage) -> None:
    """Not one in an ExceptionGroup."""
    with pytest.raises(ValueError, match="a part has"):
        async with open_writer(memory, "k", part_size=PART - 1):
            pass


# Parts under way


async def test_parts_go_up_at_the_same_time_up_to_a_bound(faulty: FaultyStorage) -> None:
    """Then `write` waits, so that no more than one part more is in memory."""
    gate = faulty.hold(Verb.UPLOAD_PART, times=math.inf)
    written = 0

    async def write_on() -> None:
        nonlocal written
        for part in range(4):
            await writer.write(DATA[part * PART : (part + 1) * PART])
            written += 1
        await writer.close()

    async with (
        open_writer(faulty, "k", part_size=PART, in_flight=ByteBudget(2 * PART)) as writer,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(write_on)
        await wait_all_tasks_blocked()
        assert (written, len(faulty.calls_of(Verb.UPLOAD_PART))) == (2, 2)
        gate.open()
    assert (await faulty.head("k")).size == 4 * PART


async def test_writers_can_share_a_bound(faulty: FaultyStorage) -> None:
    gate = faulty.hold(Verb.UPLOAD_PART, times=math.inf)
    shared = ByteBudget(3 * PART)

    async def store(key: str) -> None:
        async with open_writer(faulty, key, part_size=PART, in_flight=shared) as writer:
            await writer.write(DATA)
            await writer.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store, "one")
        nursery.start_soon(store, "other")
        await wait_all_tasks_blocked()
        assert len(faulty.calls_of(Verb.UPLOAD_PART)) == 3
        gate.open()
    assert [info.size for info in (await faulty.list_prefix()).objects] == [len(DATA)] * 2
    assert shared.used == 0


# Parts that are sent again


@pytest.mark.parametrize("is_reserved", [False, True])
@pytest.mark.parametrize("size", [0, 100, PART])
async def test_a_writer_gives_back_what_it_has_got_of_a_bound(
    memory: MemoryStorage, size: int, is_reserved: bool, autojump_clock: MockClock
) -> None:
    """Not more either, be it no bytes: bodies are counted, too."""
    budget = ByteBudget(GIB, max_bodies=1)
    with trio.fail_after(1):
        async with open_writer(memory, "key", part_size=PART, in_flight=budget) as writer:
            if is_reserved:
                await writer.reserve(size)
            await writer.write(bytes(size))
            await writer.close()
    async with budget.hold(1):
        with trio.move_on_after(0) as waited:
            await budget.acquire(1)
    assert waited.cancelled_caught


async def test_a_part_that_was_sent_can_be_replaced(faulty: FaultyStorage) -> None:
    async with open_writer(faulty, "k", part_size=PART) as writer:
        await writer.write(bytes(2 * PART + 5))
        await writer.flush()
        assert [(part.start, part.end) for part in writer.sent] == [
            (0, PART),
            (PART, 2 * PART),
            (2 * PART, 2 * PART + 5),
        ]
        await writer.rewrite(1, DATA[:PART])
        await writer.rewrite(3, DATA[2 * PART : 3 * PART])
        with pytest.raises(ValueError, match="part 2 has"):
            await writer.rewrite(2, b"too short")
        await writer.write(DATA[3 * PART :])
        await writer.close()
    assert (await faulty.get_range("k")).data == DATA[:PART] + bytes(PART) + DATA[2 * PART :]
    assert len(faulty.calls_of(Verb.CREATE_MULTIPART)) == 1


async def test_full_sizes_tell_how_long_the_last_part_may_become(memory: MemoryStorage) -> None:
    async with open_writer(memory, "k", part_size=PART) as writer:
        assert (writer.next_part_size, writer.full_size(1)) == (PART, PART)
        assert writer.full_size(1_001) > PART


# Failures


@pytest.mark.parametrize("answer_lost", [False, True], ids=["lost call", "lost answer"])
async def test_any_call_may_fail_and_nothing_is_left(answer_lost: bool) -> None:
    """The error reaches the caller as it is, and neither an object nor an upload stays, for each call in turn."""

    async def fail(call: int) -> bool:
        store = MemoryStorage()
        faulty = FaultyStorage(store)
        faulty.fail(Unavailable, call=call, answer_lost=answer_lost)
        try:
            await upload(faulty, in_flushes(DATA, [MIB] * 20))
        except Unavailable:
            left = (len((await store.list_prefix()).objects), len(await store.list_multipart_uploads()))
            # What an answer would have told of stays behind: an upload without a name, an object without an ETag.
            is_unknown = answer_lost and faulty.calls[call - 1].verb in (Verb.CREATE_MULTIPART, Verb.COMPLETE)
            assert sum(left) == is_unknown
            return True
        assert faulty.faults_left
        return False

    assert await at_every_call(fail) == 1 + 5 + 1


async def write_in_two(writer: BufferedMultipartWriter) -> None:
    """Write once, let the parts go up, and write again."""
    await writer.write(DATA[: 2 * PART])
    await wait_all_tasks_blocked()
    await writer.write(DATA[2 * PART :])


@pytest.mark.parametrize("verb", [Verb.CREATE_MULTIPART, Verb.UPLOAD_PART])
async def test_a_failure_is_raised_by_every_call_that_follows(faulty: FaultyStorage, verb: Verb) -> None:
    """An object with a hole cannot be closed, even by a caller who has caught the failure once."""
    faulty.fail(AccessDenied, verb=verb)
    async with open_writer(faulty, "k", part_size=PART) as writer:
        with pytest.raises(AccessDenied):
            await write_in_two(writer)
        for again in (writer.write(b"more"), writer.flush(), writer.close()):
            with pytest.raises(AccessDenied):
                await again
    await assert_nothing_is_left(faulty)


async def test_a_failure_nobody_foresaw_comes_as_it_is(faulty: FaultyStorage) -> None:
    """A defect of the store is no ExceptionGroup either."""
    faulty.fail(ZeroDivisionError, verb=Verb.UPLOAD_PART)
    with pytest.raises(ZeroDivisionError):
        await upload(faulty, [DATA])
    await assert_nothing_is_left(faulty)


class CallersMistake(Exception):
    """Something that has nothing to do with the store."""


async def write_and_fail(storage: ObjectStorage, size: int) -> None:
    async with open_writer(storage, "k", part_size=PART) as writer:
        await writer.write(DATA[:size])
        raise CallersMistake


@pytest.mark.parametrize("size", [3, 3 * PART])
async def test_an_exception_of_the_caller_aborts(faulty: FaultyStorage, size: int) -> None:
    with pytest.raises(CallersMistake):
        await write_and_fail(faulty, size)
    await assert_nothing_is_left(faulty)


async def test_a_writer_that_is_not_closed_leaves_nothing(faulty: FaultyStorage) -> None:
    async with open_writer(faulty, "k", part_size=PART) as writer:
        await writer.write(DATA)
    await assert_nothing_is_left(faulty)


async def test_a_cancelled_stream_is_aborted(faulty: FaultyStorage) -> None:
    """The abort itself is not cancelled."""
    gate = faulty.hold(Verb.UPLOAD_PART, call=2)
    with trio.CancelScope() as scope:
        async with open_writer(faulty, "k", part_size=PART) as writer:
            await writer.write(DATA[: 2 * PART])
            await gate.reached.wait()
            scope.cancel()
            await writer.close()
    assert scope.cancelled_caught
    await assert_nothing_is_left(faulty)


@pytest.mark.parametrize("verb", [Verb.CREATE_MULTIPART, Verb.UPLOAD_PART])
async def test_a_cancelled_write_leaves_no_object_with_a_hole(faulty: FaultyStorage, verb: Verb) -> None:
    faulty.hold(verb)
    async with open_writer(faulty, "k", part_size=PART, in_flight=ByteBudget(PART)) as writer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.write, DATA)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        with pytest.raises(RuntimeError, match="cancelled"):
            await writer.close()
    await assert_nothing_is_left(faulty)


async def test_an_abort_that_fails_is_logged_and_the_first_error_raised(
    faulty: FaultyStorage, caplog: pytest.LogCaptureFixture
) -> None:
    faulty.fail(AccessDenied, verb=Verb.UPLOAD_PART)
    faulty.fail(Unavailable, verb=Verb.ABORT)
    with pytest.raises(AccessDenied):
        await upload(faulty, [DATA])
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "cannot abort" in caplog.text


async def test_an_abort_does_not_hold_up_a_cancellation_for_ever(
    faulty: FaultyStorage, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    faulty.hold(Verb.ABORT)
    began = trio.current_time()
    with pytest.raises(CallersMistake):
        await write_and_fail(faulty, len(DATA))
    assert trio.current_time() - began == pytest.approx(ABORT_TIMEOUT_SECONDS)
    assert "gave up aborting" in caplog.text


async def test_a_closed_writer_takes_nothing_more(memory: MemoryStorage) -> None:
    async with open_writer(memory, "k", part_size=PART) as writer:
        await writer.close()
        with pytest.raises(RuntimeError, match="closed"):
            await writer.write(b"late")
    assert (await memory.head("k")).size == 0


async def test_a_completion_that_failed_can_be_made_again(faulty: FaultyStorage) -> None:
    """The upload lives on after a failed condition; the caller may decide to overwrite after all."""
    await faulty.put("k", b"theirs")
    async with open_writer(faulty, "k", part_size=PART) as writer:
        await writer.write(DATA)
        with pytest.raises(StorageError):
            await writer.close(CREATE_ONLY)
        await writer.close()
    assert (await faulty.get_range("k")).data == DATA
