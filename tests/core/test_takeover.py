"""Another mount takes over while requests of the one before are on their way, and arrive afterwards."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from backends.errors import Unavailable
from backends.gated import GatedStorage
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from backends.retrying import RetryingStorage
from fusefs.committer import Committer
from fusefs.errno_boundary import errno_of
from fusefs.errors import LeaseLost
from fusefs.journal_format import JOURNAL_PREFIX, batch_key
from fusefs.lease import check_before_sending
from fusefs.log_records import Position
from fusefs.old_logs import KEPT_SEALS
from fusefs.publish_queue import RETRY_SECONDS
from fusefs.stored_lease import LEASE_KEY, StoredLease
from tests.core.changes import CHANGES
from tests.core.leases import TERM, take
from tests.core.logs import batches, log_objects
from tests.core.tree import NEVER_PUBLISHED, Tree, TreeOptions, open_tree, stored
from tests.support.faulty import FaultyStorage

PUBLISHING: Final = TreeOptions(logged=True)
LOG_ALONE: Final = replace(PUBLISHING, publish=NEVER_PUBLISHED)
FIRST_EPOCH: Final = 1
LOST: Final = os.strerror(errno.EROFS)


@dataclass
class Host:
    """A mount that holds, or held, the lease."""

    tree: Tree
    lease: StoredLease
    #: Its way to the bucket.
    storage: FaultyStorage
    outcome: str = "none yet"

    async def fsync(self, handle: int) -> None:
        """Note what a process is told that has asked for an fsync."""
        self.outcome = "waits"
        try:
            await self.tree.filesystem.fsync(handle)
        except LeaseLost as error:
            self.outcome = os.strerror(errno_of(error))
        else:
            self.outcome = "done"


@asynccontextmanager
async def host(
    bucket: MemoryStorage, name: str, directory: Path, options: TreeOptions = LOG_ALONE
) -> AsyncIterator[Host]:
    """Mount; the lease is not renewed unless the test has it renewed, as if the process were stopped."""
    storage = FaultyStorage(bucket)
    lease = await take(storage, name)
    gated = RetryingStorage(GatedStorage(storage, partial(check_before_sending, lease)), rng=Random(0))
    options = replace(options, lease=lease, mount_id=name, log_storage=storage)
    async with open_tree(gated, directory / name, options) as tree:
        yield Host(tree, lease, storage)


@pytest.mark.parametrize("ends", [False, True], ids=["goes on", "has ended"])
async def test_a_batch_that_arrives_late(ends: bool, tmp_path: Path, autojump_clock: MockClock) -> None:
    """It meets the seal; or, where the new mount has emptied the log, nothing, and counts for nobody all the same."""
    bucket = MemoryStorage()
    async with host(bucket, "a", tmp_path) as old, trio.open_nursery() as nursery:
        handle = await old.tree.create("file")
        await old.tree.write(handle, 0, b"confirmed")
        await old.tree.filesystem.fsync(handle)
        gate = old.storage.hold(Verb.PUT, key=batch_key(Position(FIRST_EPOCH, 2)))
        await old.tree.write(handle, 0, b"on its way")
        nursery.start_soon(old.fsync, handle)
        await gate.reached.wait()
        async with host(bucket, "b", tmp_path, PUBLISHING if ends else LOG_ALONE) as new:
            assert await new.tree.read_file("file") == b"confirmed"
            if ends:
                await new.tree.publish_all()
                await trio.sleep(60)
                assert await batches(bucket) == []
            gate.open()
            await wait_all_tasks_blocked()
            assert old.outcome != "done"
            nursery.start_soon(old.lease.run)  # it goes on
            await trio.sleep(2)
            assert old.outcome == LOST
            with pytest.raises(LeaseLost):
                await old.tree.mkdir("another")
            assert await new.tree.names() == ["file"]
        async with host(bucket, "c", tmp_path) as last:
            assert await last.tree.read_file("file") == b"confirmed"
        nursery.cancel_scope.cancel()


async def test_batches_that_arrive_in_another_order(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The second is there when the term is ended, the first is not: neither counts, whenever it comes."""
    bucket = MemoryStorage()
    async with host(bucket, "a", tmp_path) as old, trio.open_nursery() as nursery:
        first, second = await old.tree.create("first"), await old.tree.create("second")
        gate = old.storage.hold(Verb.PUT, key=batch_key(Position(FIRST_EPOCH, 1)))
        nursery.start_soon(old.fsync, first)
        await gate.reached.wait()
        await old.tree.write(second, 0, b"bytes")
        nursery.start_soon(old.fsync, second)
        await wait_all_tasks_blocked()
        assert await batches(bucket) == [batch_key(Position(FIRST_EPOCH, 2))]
        async with host(bucket, "b", tmp_path) as new:
            assert await new.tree.names() == []
            gate.open()
            await wait_all_tasks_blocked()
            assert old.outcome == LOST
        async with host(bucket, "c", tmp_path) as last:
            assert await last.tree.names() == []
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("verb", [Verb.PUT, Verb.DELETE])
async def test_a_publication_that_arrives_late(verb: Verb, tmp_path: Path, autojump_clock: MockClock) -> None:
    """It finds another object than it was to replace, or to remove, and leaves it."""
    bucket = MemoryStorage()
    await bucket.put("file", b"old")
    async with host(bucket, "a", tmp_path, PUBLISHING) as old:
        gate = old.storage.hold(verb, key="file")
        if verb is Verb.PUT:
            await old.tree.write_file("file", b"by the first")
        else:
            await old.tree.unlink("file")
        await gate.reached.wait()
        async with host(bucket, "b", tmp_path, PUBLISHING) as new:
            await new.tree.write_file("file", b"by the second")
            await new.tree.publish_all()
            gate.open()
            await trio.sleep(60)
            assert (await stored(bucket))["file"] == b"by the second"
            assert await new.tree.read_file("file") == b"by the second"


async def test_a_host_that_was_suspended(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Its clock has gone on: nothing is confirmed until a renewal has shown that nobody has taken over."""
    bucket = MemoryStorage()
    storage = FaultyStorage(bucket)
    suspended = 0.0
    lease = await take(storage, "a")
    lease._now = lambda: trio.current_time() + suspended  # type: ignore[misc]
    async with (
        open_tree(storage, tmp_path, replace(LOG_ALONE, lease=lease)) as tree,
        trio.open_nursery() as nursery,
    ):
        old = Host(tree, lease, storage)
        handle = await tree.create("file")
        await old.fsync(handle)
        assert old.outcome == "done"
        suspended = 10 * TERM
        await tree.write(handle, 0, b"bytes")
        nursery.start_soon(old.fsync, handle)
        await trio.sleep(1)
        assert old.outcome == "waits"
        assert len(await batches(bucket)) == 2
        nursery.start_soon(lease.run)
        await trio.sleep(1)
        assert old.outcome == "done"
        nursery.cancel_scope.cancel()


async def _write_nothing(tree: Tree) -> None:
    """Leave no log at all."""


async def _commit(tree: Tree) -> None:
    await tree.mkdir("before")
    await tree.log.commit()


async def _publish(tree: Tree) -> None:
    """Leave a log that was emptied."""
    await tree.mkdir("before")
    await tree.publish_all()
    await trio.sleep(60)
    assert await batches(tree.storage) == []


@pytest.mark.parametrize("others", [1, 2, KEPT_SEALS])
@pytest.mark.parametrize("act", [_write_nothing, _commit, _publish])
async def test_a_host_whose_clock_stood_still(
    act: Callable[[Tree], Awaitable[None]], others: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """That holds for a machine that was paused so that its clock stood still (a virtual machine that is stopped and
    resumed), too, when no more than 16 others have taken over meanwhile, and whatever has become of its log.
    """
    bucket = MemoryStorage()
    async with host(bucket, "paused", tmp_path, PUBLISHING) as old:
        await act(old.tree)
        before = trio.current_time()
        old.lease._asked_at = before  # it has just been renewed
        old.lease._now = lambda: before  # type: ignore[misc]
        names = [] if act is _write_nothing else ["before"]
        for number in range(others):
            async with host(bucket, f"other-{number}", tmp_path, PUBLISHING) as new:
                assert await new.tree.names() == names
                await new.tree.publish_all()
                await trio.sleep(60)
                assert await batches(bucket) == []
        assert old.lease.is_held
        handle = await old.tree.create("lost")
        await old.fsync(handle)
        assert old.outcome == LOST
        with pytest.raises(LeaseLost):
            await old.tree.mkdir("another")
        await trio.sleep(60)
        async with host(bucket, "last", tmp_path) as last:
            assert await last.tree.names() == names


async def test_what_takeovers_leave_is_bounded(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A seal for each of the last terms, and one more request for each takeover at most."""
    bucket = MemoryStorage()
    for number in range(KEPT_SEALS + 5):
        async with host(bucket, f"{number}", tmp_path, PUBLISHING) as mount:
            calls = [call for call in mount.storage.calls if call.key.startswith(JOURNAL_PREFIX)]
            assert [call.verb for call in calls].count(Verb.PUT) == (number > 0)
            assert [call.verb for call in calls].count(Verb.GET_RANGE) <= 2
            mount.lease.recovered()
            await mount.lease._renew()
            await trio.sleep(60)
        assert len(await log_objects(bucket)) <= KEPT_SEALS + 1


async def test_a_lease_that_was_given_back_needs_no_seal(tmp_path: Path, autojump_clock: MockClock) -> None:
    bucket = MemoryStorage()
    for name in ("a", "b"):
        async with host(bucket, name, tmp_path, PUBLISHING) as mount:
            await mount.tree.write_file(name, b"bytes")
            await mount.tree.publish_all()
            assert isinstance(mount.tree.log, Committer)
            await mount.tree.log.finish()
            assert await mount.lease.release(clean=mount.tree.log.is_empty)
            await mount.tree.log.remove()
            assert await log_objects(bucket) == {}
    assert set(await stored(bucket, ours=True)) == {"a", "b", LEASE_KEY}


@pytest.mark.parametrize("name", CHANGES)
async def test_every_change_is_refused_when_the_lease_is_lost(
    name: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    bucket = MemoryStorage()
    async with host(bucket, "a", tmp_path) as old, trio.open_nursery() as nursery:
        await old.tree.mkdir("d")
        handle = await old.tree.create("f")
        await old.fsync(handle)
        file = await old.tree.find("f")
        log = old.tree.log
        assert isinstance(log, Committer)
        had_everything = log.has_everything
        async with host(bucket, "b", tmp_path):
            nursery.start_soon(old.lease.run)
            await trio.sleep(2)
            assert (had_everything, log.has_everything) == (True, False)  # for all that this mount knows
            before = file.attributes
            with pytest.raises(LeaseLost):
                await CHANGES[name](old.tree, file.number, handle)
            assert (await old.tree.find("f"), file.attributes, file.size) == (file, before, 0)
            assert await old.tree.names() == ["d", "f"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("knows", [False, True], ids=["has lapsed", "is lost"])
@pytest.mark.parametrize("key", ["name", "name/"])
async def test_a_deletion_that_is_not_repeated(
    key: str, knows: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The store has not answered, and when it does others have made again what is to be deleted, byte for byte: it
    could not tell the two apart.
    """

    async def make(tree: Tree) -> None:
        await (tree.mkdir("name") if key.endswith("/") else tree.write_file("name", b""))
        await tree.publish_all()

    bucket = MemoryStorage()
    async with host(bucket, "a", tmp_path, PUBLISHING) as old, trio.open_nursery() as nursery:
        await make(old.tree)
        old.storage.fail(Unavailable, verb=Verb.DELETE, times=math.inf)
        await (old.tree.rmdir("name") if key.endswith("/") else old.tree.unlink("name"))
        async with host(bucket, "b", tmp_path, PUBLISHING) as new:
            assert old.storage.calls_of(Verb.DELETE)
            assert await new.tree.names() == []
            await new.tree.publish_all()
            assert key not in await stored(bucket)
            await make(new.tree)
            old.storage.heal()
            if knows:
                nursery.start_soon(old.lease.run)
            await trio.sleep(600)
            assert key in await stored(bucket)
        nursery.cancel_scope.cancel()


async def test_a_lost_lease_is_told_once_for_all_that_is_pending(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """And not for each file every time: a mount that nobody ends goes on for days."""
    bucket = MemoryStorage()
    async with host(bucket, "a", tmp_path, PUBLISHING) as old, trio.open_nursery() as nursery:
        for number in range(200):
            await old.tree.write_file(f"removed-{number}", b"bytes")
        await old.tree.publish_all()
        old.storage.fail(Unavailable, times=math.inf)
        for number in range(200):
            await old.tree.unlink(f"removed-{number}")
            handle = await old.tree.create(f"new-{number}")
            await old.tree.close(handle)
        await trio.sleep(TERM)
        await take(bucket, "b")
        old.storage.heal()
        nursery.start_soon(old.lease.run)
        await trio.sleep(300)
        assert old.lease.lost_reason is not None
        caplog.clear()
        await trio.sleep(300)
        at_once, times = old.tree.publisher._workers + 1, 300 / RETRY_SECONDS
        assert len(caplog.records) <= 2 * at_once * times
        nursery.cancel_scope.cancel()
