"""A store that denies a mount what it allowed before, or asks it to slow down for an hour: all is there afterwards.

What calls say while a store does not answer is in `test_semantics_of_failures`; here it is also what that costs, and
how it ends.
"""

from __future__ import annotations

import errno
import gc
import math
import os
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from backends.base import MIB, NO_ETAGS, ObjectStorage
from backends.errors import AccessDenied, AuthenticationFailed, StorageError, Throttled, Unavailable
from backends.intercepted import InterceptedStorage, Request, T, Verb
from backends.memory import MemoryStorage
from backends.retrying import RetryingStorage, RetryPolicy
from fusefs.committer import Committer
from fusefs.errno_boundary import errno_of
from fusefs.journal_format import JOURNAL_PREFIX, batch_key, position_of
from fusefs.log_records import Position
from fusefs.log_trimmer import IDLE_SECONDS, TRIM_BATCHES
from fusefs.publisher import PublishOptions
from tests.core.logs import batches, log_objects
from tests.core.mortal import READING
from tests.core.refusing import DELETING
from tests.core.tree import Tree, TreeOptions, open_tree, stored
from tests.support.faulty import FaultyStorage

LOGGED: Final = TreeOptions(logged=True)
HOUR: Final = 3_600.0
PATIENCE: Final = 300.0
"""`retry_timeout`."""

COUNT: Final = 8
DENIED_SIZE: Final = 2 * MIB


class DenyingStorage(InterceptedStorage):
    """Denies what `is_denied` says, as S3 does: of a batch of deletions, each key by itself."""

    def __init__(self, inner: ObjectStorage) -> None:
        super().__init__(inner)
        self.is_denied: Callable[[Request], bool] = lambda request: False
        self.denied: list[Request] = []
        self.error: type[StorageError] = AccessDenied

    def allow(self) -> None:
        self.is_denied = lambda request: False

    async def delete_many(
        self, keys: Iterable[str], *, if_match: Mapping[str, str] = NO_ETAGS
    ) -> Mapping[str, StorageError]:
        wanted = list(keys)
        denied = {key: error for key in wanted if (error := self._refusal(Request(Verb.DELETE_MANY, key)))}
        allowed = [key for key in wanted if key not in denied]
        return {**await self._inner.delete_many(allowed, if_match=if_match), **denied}

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        await trio.sleep(0.02)
        error = self._refusal(request)
        if error is not None:
            raise error
        return await send()

    def _refusal(self, request: Request) -> StorageError | None:
        if not self.is_denied(request):
            return None
        self.denied.append(request)
        return self.error(f"{request.verb} {request.key!r} is denied")


def is_of_log(request: Request) -> bool:
    return request.key.startswith(JOURNAL_PREFIX)


@asynccontextmanager
async def writing(storage: ObjectStorage, where: Path, files: int) -> AsyncIterator[tuple[Tree, list[int]]]:
    """Open a tree with some files in the bucket, which are open."""
    async with open_tree(storage, where, LOGGED) as tree:
        handles = [await tree.create(f"{number}") for number in range(files)]
        for handle in handles:
            await tree.write(handle, 0, b"before")
        await tree.publish_all()
        await trio.sleep(60)
        yield tree, handles


async def end_well(tree: Tree, bucket: MemoryStorage, handles: list[int], expected: bytes) -> None:
    """Everything is published, and nothing is left of the log."""
    for handle in handles:
        await tree.filesystem.release(handle)
    await tree.publish_all()
    assert await stored(bucket) == {f"{number}": expected for number in range(len(handles))}
    await trio.sleep(60)
    assert await batches(bucket) == []


async def test_batches_that_may_not_be_deleted(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """They are asked for now and then, and told of in a line for all of them."""
    bucket = MemoryStorage()
    storage = DenyingStorage(bucket)
    async with writing(storage, tmp_path, 1) as (tree, handles):
        storage.is_denied = lambda request: request.verb in DELETING and is_of_log(request)
        caplog.clear()
        for number in range(300):
            await tree.write(handles[0], 0, b"%06d" % number)
            await tree.filesystem.fsync(handles[0])
            await trio.sleep(1)
        assert len(await log_objects(bucket)) >= 300
        assert len(storage.denied) <= 11 * 301  # every half a minute
        lines = [record for record in caplog.records if "the log is not trimmed" in record.getMessage()]
        assert 1 <= len(lines) <= 11
        storage.allow()
        await end_well(tree, bucket, handles, b"000299")


async def test_batches_of_an_earlier_mount_that_may_not_be_deleted(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The same, while there is something in the log all the time."""
    bucket = MemoryStorage()
    storage = DenyingStorage(bucket)
    never = replace(LOGGED, publish=PublishOptions(delay_seconds=10 * HOUR, interval_seconds=10 * HOUR))
    async with open_tree(storage, tmp_path / "lost", never) as tree:
        handle = await tree.create("0")
        for number in range(2 * TRIM_BATCHES):
            await tree.write(handle, number, b"x")
            await tree.filesystem.fsync(handle)
    storage.is_denied = lambda request: request.verb in DELETING and is_of_log(request)
    async with open_tree(storage, tmp_path / "next", LOGGED) as tree:
        await tree.publish_all()
        handle = await tree.create("1")
        for number in range(120):
            await tree.write(handle, number, b"x")
            await tree.filesystem.fsync(handle)
            await trio.sleep(1)
        lines = [record for record in caplog.records if "the log is not trimmed" in record.getMessage()]
        assert 1 <= len(lines) <= 10
        storage.allow()
        await tree.close(handle)
        await trio.sleep(60)
        assert await batches(bucket) == []


@pytest.mark.parametrize("later_seconds", [0, IDLE_SECONDS / 2])
@pytest.mark.parametrize("verb", [Verb.DELETE_MANY, Verb.PUT])
async def test_the_log_of_an_idle_mount_is_emptied_after_an_outage(
    verb: Verb, later_seconds: float, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Nobody has to change anything for that. It is asked for now and then, with no batch for each time."""
    bucket = MemoryStorage()
    faulty = FaultyStorage(bucket)
    async with writing(faulty, tmp_path, 1) as (tree, handles):
        await tree.write(handles[0], 0, b"behind")
        await tree.filesystem.fsync(handles[0])
        await tree.close(handles[0])
        await tree.publish_all()
        await trio.sleep(later_seconds)
        faulty.fail(Unavailable, verb=verb, times=math.inf)
        await trio.sleep(HOUR)
        assert len(await batches(bucket)) > 0
        assert len(await log_objects(bucket)) <= 3
        faulty.heal()
        await trio.sleep(60)
        assert await batches(bucket) == []


async def test_a_log_with_an_older_last_word_is_not_empty(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Where all was deleted but what had said before that nothing is needed, that is asked for again, too."""
    bucket = MemoryStorage()
    storage = DenyingStorage(bucket)
    async with writing(storage, tmp_path, 1) as (tree, handles):
        assert isinstance(tree.log, Committer)
        (last_word,) = await log_objects(bucket)
        storage.is_denied = lambda request: request.verb in DELETING and request.key == last_word
        await tree.write(handles[0], 0, b"behind")
        await tree.close(handles[0])
        await tree.publish_all()
        await tree.log.finish()
        was_empty = tree.log.is_empty
        storage.allow()
        await tree.log.finish()
        assert (was_empty, tree.log.is_empty) == (False, True)
        await tree.log.remove()
        assert await log_objects(bucket) == {}


async def test_a_log_that_somebody_has_taken_over_is_left_alone(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A mount that learns of that when it has nothing more to tell says so once."""
    bucket = MemoryStorage()
    async with writing(bucket, tmp_path, 1) as (tree, handles):
        await tree.write(handles[0], 0, b"behind")
        await tree.close(handles[0])
        await tree.publish_all()
        last = position_of(list(await log_objects(bucket))[-1])
        assert last is not None
        await bucket.put(batch_key(Position(last.epoch, last.sequence + 1)), b"a seal")
        await trio.sleep(HOUR)
        (told,) = [record.getMessage() for record in caplog.records]
        assert told.startswith("the term of this mount is over")


@pytest.mark.parametrize(
    ("error", "number"), [(AccessDenied, errno.EACCES), (AuthenticationFailed, errno.EIO)]
)
async def test_a_log_that_is_denied_for_an_hour(
    error: type[StorageError],
    number: int,
    tmp_path: Path,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where the store denies the log to a mount (rights that were taken away, credentials that have expired), fsync
    says so at once, EACCES or EIO, and again; no writer waits, and what was written goes into the log when that is
    allowed again.
    """
    bucket = MemoryStorage()
    storage = DenyingStorage(bucket)
    async with writing(storage, tmp_path, 10) as (tree, handles):
        storage.is_denied = lambda request: request.verb is Verb.PUT and is_of_log(request)
        storage.error = error
        caplog.clear()
        for turn in range(int(HOUR) // 10):
            handle = handles[turn % 10]
            with trio.fail_after(2):
                await tree.write(handle, 0, b"behind")
                with pytest.raises(error) as failure:
                    await tree.filesystem.fsync(handle)
            assert errno_of(failure.value) == number
            await trio.sleep(8)
        lines = [record for record in caplog.records if record.name == "fusefs.journal"]
        assert 1 <= len(lines) <= 62
        storage.allow()
        with trio.fail_after(2):
            await tree.filesystem.fsync(handles[0])
        await end_well(tree, bucket, handles, b"behind")


@pytest.mark.parametrize("is_denied", [lambda request: True, lambda request: request.verb not in READING])
async def test_everything_is_denied_for_an_hour(
    is_denied: Callable[[Request], bool], tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Who waits for everything to be published is told so; what was acknowledged, and what was not, follows then."""
    bucket = MemoryStorage()
    storage = DenyingStorage(bucket)
    async with writing(storage, tmp_path, 10) as (tree, handles):
        await tree.write(handles[0], 0, b"behind")
        await tree.filesystem.fsync(handles[0])
        storage.is_denied = is_denied
        for handle in handles:
            await tree.write(handle, 0, b"behind")
        for _ in range(int(HOUR) // 300):
            with trio.fail_after(60), pytest.raises(AccessDenied):
                await tree.publisher.publish_all()
            await trio.sleep(300)
        storage.allow()
        await end_well(tree, bucket, handles, b"behind")


async def test_an_hour_of_slow_down(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Writers do not wait, each fsync is EIO within `retry_timeout`, and the store is asked for less."""
    bucket = MemoryStorage()
    faulty = FaultyStorage(bucket)
    storage = RetryingStorage(faulty, RetryPolicy(timeout_seconds=PATIENCE), rng=Random(0))
    async with writing(storage, tmp_path, 50) as (tree, handles):
        faulty.fail(Throttled, times=math.inf)
        faulty.calls.clear()
        end = trio.current_time() + HOUR

        async def write_and_wait(handle: int) -> None:
            while trio.current_time() < end:
                began_at = trio.current_time()
                await tree.write(handle, 0, b"behind")
                assert trio.current_time() == began_at
                with trio.fail_after(PATIENCE + 1), pytest.raises(Throttled) as failure:
                    await tree.filesystem.fsync(handle)
                assert errno_of(failure.value) == errno.EIO
                await trio.sleep(5)

        async with trio.open_nursery() as nursery:
            for handle in handles:
                nursery.start_soon(write_and_wait, handle)
        assert len(faulty.calls) <= HOUR / 2
        faulty.heal()
        with trio.fail_after(31):
            await tree.filesystem.fsync(handles[0])
        await end_well(tree, bucket, handles, b"behind")


@pytest.mark.parametrize("verb", [Verb.PUT, Verb.HEAD])
@pytest.mark.parametrize("error", [AccessDenied, AuthenticationFailed, Throttled])
async def test_what_is_denied_after_a_lost_answer_is_looked_for(
    error: type[StorageError], verb: Verb, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The object is our own, and nobody else's, whatever the store says when it is asked again, or who has made it."""
    bucket = MemoryStorage()
    faulty = FaultyStorage(bucket)
    storage = RetryingStorage(faulty, RetryPolicy(timeout_seconds=PATIENCE), rng=Random(0))
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        await tree.names()
        faulty.fail(Unavailable, verb=Verb.PUT, key="file", answer_lost=True)
        faulty.fail(error, verb=verb, key="file", call=2 if verb is Verb.PUT else 1, times=math.inf)
        await tree.write_file("file", b"bytes")
        with pytest.raises(error):
            await tree.publish_all()
        faulty.heal()
        await tree.publish_all()
        assert await stored(bucket) == {"file": b"bytes"}
        await tree.write_file("file", b"changed")
        await tree.publish_all()
    found = {key for key in await stored(bucket, ours=True) if not key.startswith(JOURNAL_PREFIX)}
    assert found == {"file"}


async def test_a_log_that_is_denied_is_not_asked_for_each_file(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each attempt would wait for the next batch that is refused: an unmount for hours, with a line for each file."""
    store = DenyingStorage(MemoryStorage())
    async with open_tree(store, tmp_path, LOGGED) as tree:
        await tree.names()
        store.is_denied = lambda request: request.verb not in READING
        for number in range(500):
            await tree.write_file(f"{number}", b"bytes")
        with trio.fail_after(10), pytest.raises(AccessDenied):
            await tree.publisher.publish_all()
        await trio.sleep(100)
        lines = [message for message in caplog.messages if message.startswith("cannot publish")]
        assert len(lines) < 100
        store.allow()
        await trio.sleep(100)
        await tree.publish_all()
        assert len(await stored(store)) == 500


async def test_what_is_denied_is_not_kept_in_memory(autojump_clock: MockClock, tmp_path: Path) -> None:
    """The files are staged on the disk, and why they cannot be published is kept without the bodies of requests."""
    storage = FaultyStorage(MemoryStorage())
    storage.fail(AccessDenied, verb=Verb.PUT, times=math.inf)
    async with open_tree(storage, tmp_path) as tree:
        tracemalloc.start()
        try:
            for number in range(COUNT):
                await tree.write_file(f"{number}", os.urandom(DENIED_SIZE))
                with pytest.raises(AccessDenied):
                    await tree.publisher.publish_all()
            gc.collect()
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < COUNT * DENIED_SIZE / 2
        storage.heal()
        await tree.publish_all()
    assert len(await stored(storage)) == COUNT
