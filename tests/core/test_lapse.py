"""The store is away for longer than the lease's term: commits wait, for as long as for any outage, and then say so.

What is told here is what a mount does with its log when others may have taken over from it and nobody is known to have.
"""

from __future__ import annotations

import errno
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from backends.base import MIB, ObjectStorage
from backends.errors import Suspended, Unavailable
from backends.gated import GatedStorage
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from backends.retrying import RetryingStorage, RetryPolicy
from fusefs.committer import Committer
from fusefs.errno_boundary import errno_of
from fusefs.errors import LeaseLapsed, LeaseLost
from fusefs.lease import check_before_sending
from fusefs.stored_lease import LEASE_KEY, MARGIN_SHARE, StoredLease, longest_call_seconds
from tests.core.history import History, state_of
from tests.core.leases import TERM, take
from tests.core.losses import difference
from tests.core.tree import NEVER_PUBLISHED, Tree, TreeOptions, open_tree, stored
from tests.support.faulty import FaultyStorage

PATIENCE: Final = 60.0
"""`retry_timeout`."""

HELD: Final = TERM * (1 - MARGIN_SHARE)

RENEWED: Final = TERM / 3
"""The store is back, and the lease is held again, in less than that."""

PUBLISHING: Final = TreeOptions(logged=True, patience_seconds=PATIENCE)
LOG_ALONE: Final = replace(PUBLISHING, publish=NEVER_PUBLISHED)


@dataclass
class Host:
    """A mount whose way to the bucket can be cut."""

    tree: Tree
    history: History
    bucket: MemoryStorage
    #: Where the log is.
    log: MemoryStorage
    #: Under everything that the mount has.
    _storage: FaultyStorage
    _lease: StoredLease

    def has_everything(self) -> bool:
        """Whether the mount could end now, and what was done would be there for the next one."""
        assert isinstance(self.tree.log, Committer)
        return self.tree.log.has_everything

    def cut(self) -> None:
        self._storage.fail(Unavailable, times=math.inf)

    async def cut_until_it_has_lapsed(self) -> None:
        self.cut()
        await trio.sleep(HELD)
        assert not self._lease.is_held

    def let_take_effect(self, verb: Verb) -> None:
        """Let the next request of a kind take effect, and nobody hear of it, nor of those that repeat it."""
        self._storage.fail(Unavailable, verb=verb, answer_lost=True)
        self._storage.fail(Unavailable, verb=verb, call=2, times=math.inf)

    def heal(self) -> None:
        self._storage.heal()

    async def look(self, directory: Path) -> None:
        """Find what was acknowledged in the bucket and the log alone, or raise."""
        where = _copy(self.bucket)
        log = where if self.log is self.bucket else _copy(self.log)
        async with open_tree(where, directory, replace(LOG_ALONE, log_storage=log)) as tree:
            state = await state_of(tree)
        assert self.history.allows(state), difference(self.history, state)


def _copy(storage: MemoryStorage) -> MemoryStorage:
    copy = MemoryStorage()
    copy._objects, copy._keys = dict(storage._objects), list(storage._keys)
    return copy


@asynccontextmanager
async def host(
    directory: Path, options: TreeOptions = LOG_ALONE, *, log: MemoryStorage | None = None
) -> AsyncIterator[Host]:
    """Mount, with a lease that is renewed, on a store with the patience that a mount's has."""
    bucket = MemoryStorage()
    faulty = FaultyStorage(bucket)
    lease = await take(patient(faulty, longest_call_seconds(TERM)), "a")
    gated = patient(GatedStorage(faulty, partial(check_before_sending, lease)), PATIENCE)
    options = replace(options, lease=lease, log_storage=log or patient(faulty, PATIENCE))
    history = History({})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.run)
        async with open_tree(gated, directory / "mount", options) as tree:
            history.attend(tree)
            yield Host(tree, history, bucket, log or bucket, faulty, lease)
        nursery.cancel_scope.cancel()


def patient(storage: ObjectStorage, seconds: float) -> RetryingStorage:
    return RetryingStorage(storage, RetryPolicy(timeout_seconds=seconds), rng=Random(0))


async def fails(call: Callable[[], Awaitable[None]], *, after: float) -> None:
    """Make a call that says EIO after some time, and not much later."""
    began = trio.current_time()
    with trio.fail_after(2 * after), pytest.raises((LeaseLapsed, Suspended, Unavailable)) as failure:
        await call()
    assert errno_of(failure.value) == errno.EIO
    assert trio.current_time() - began >= after - 1


@pytest.mark.parametrize("is_local", [False, True], ids=["in the bucket", "on the local disk"])
async def test_fsync(is_local: bool, tmp_path: Path, autojump_clock: MockClock) -> None:
    """When a mount could not renew its lease for nearly `lease_term`, others may take over. From then on fsync waits
    for the renewal, whether there is something to be told or not, and wherever the log is, and returns EIO after
    `retry_timeout`. What was confirmed before is there.
    """
    async with host(tmp_path, log=MemoryStorage() if is_local else None) as mount:
        handle = await mount.history.create("file")
        await mount.history.write(handle, 0, b"before")
        await mount.history.fsync(handle)
        await mount.cut_until_it_has_lapsed()
        for _ in range(2):
            await fails(lambda: mount.history.fsync(handle), after=PATIENCE)
        assert mount.has_everything()
        await mount.history.write(handle, 0, b"during the lapse")
        for _ in range(2):
            await fails(lambda: mount.history.fsync(handle), after=PATIENCE)
        assert not mount.has_everything()
        await mount.look(tmp_path / "during")
        mount.heal()
        with trio.fail_after(PATIENCE):
            await mount.history.fsync(handle)
        assert mount.history.acknowledged == len(mount.history.states) - 1
        assert mount.has_everything()
        await mount.look(tmp_path / "after")


async def test_a_store_that_comes_back_in_time(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with host(tmp_path) as mount:
        handle = await mount.history.create("file")
        await mount.history.fsync(handle)
        await mount.cut_until_it_has_lapsed()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.history.fsync, handle)
            await trio.sleep(PATIENCE - RENEWED)
            mount.heal()


async def test_a_log_on_the_local_disk_needs_no_store_before(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with host(tmp_path, log=MemoryStorage()) as mount:
        handle = await mount.history.create("file")
        mount.cut()
        began = trio.current_time()
        await trio.sleep(TERM / 2)
        await mount.history.write(handle, 0, b"bytes")
        await mount.history.fsync(handle)
        assert trio.current_time() - began < TERM / 2 + 0.1
        await mount.look(tmp_path / "look")


@pytest.mark.parametrize("is_given_up", [False, True], ids=["taken over", "given up"])
async def test_a_log_on_the_local_disk_of_which_nobody_reads_more(
    is_given_up: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A mount of the same host has emptied it: a batch arrives there, and nobody will read it.

    Or somebody has removed the lease, and goes on without that log: it keeps nobody away, so nothing is confirmed.
    """
    async with host(tmp_path, log=MemoryStorage()) as mount:
        handle = await mount.history.create("file")
        await mount.history.fsync(handle)
        await mount.cut_until_it_has_lapsed()
        if is_given_up:
            await mount.bucket.delete(LEASE_KEY)
        await take(mount.bucket, "b", places={"": ""} if is_given_up else {})
        await mount.history.write(handle, 0, b"bytes")
        await fails(lambda: mount.history.fsync(handle), after=PATIENCE)
        mount.heal()
        with trio.fail_after(RENEWED), pytest.raises(LeaseLost):
            await mount.history.fsync(handle)
        assert not mount.has_everything()


async def test_publishing_what_is_in_the_log(tmp_path: Path, autojump_clock: MockClock) -> None:
    """It ends, and says that it did not succeed; and it is done when the store is back."""
    async with host(tmp_path) as mount:
        handle = await mount.history.create("removed")
        await mount.history.close(handle)
        await mount.tree.publish_all()
        handle = await mount.history.create("file")
        await mount.history.write(handle, 0, b"bytes")
        await mount.history.fsync(handle)
        await mount.cut_until_it_has_lapsed()
        await fails(mount.tree.publisher.publish_all, after=PATIENCE)
        await mount.history.unlink("removed")
        await fails(mount.tree.publisher.publish_all, after=PATIENCE)
        mount.heal()
        await mount.tree.publish_all()
        assert await stored(mount.bucket) == {"file": b"bytes"}


@pytest.mark.parametrize("names", [["removed"], ["removed", "removed too"]])
async def test_a_deletion_of_which_nobody_heard(
    names: list[str], tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It was ours: where nothing is left, nobody else has changed anything."""
    async with host(tmp_path) as mount:
        for name in names:
            await mount.history.close(await mount.history.create(name))
        await mount.tree.publish_all()
        mount.let_take_effect(Verb.DELETE if len(names) == 1 else Verb.DELETE_MANY)
        for name in names:
            await mount.history.unlink(name)
        await trio.sleep(1)
        assert await stored(mount.bucket) == {}
        await mount.cut_until_it_has_lapsed()
        await fails(mount.tree.publisher.publish_all, after=PATIENCE - HELD - 1)
        mount.heal()
        await mount.tree.publish_all()
        assert await stored(mount.bucket) == {}
        assert "somebody else" not in caplog.text


@pytest.mark.parametrize("kind", ["file", "large file", "symlink", "further name", "directory"])
async def test_a_name_that_is_used_again_after_such_a_deletion(
    kind: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """What was to be replaced is not there any more: nobody else has changed it, and the file stays what it is."""
    key = "name/" if kind == "directory" else "name"
    async with host(tmp_path) as mount:
        tree = mount.tree
        await (tree.mkdir("name") if kind == "directory" else tree.write_file("name", b"before"))
        await tree.write_file("other", b"bytes")
        await tree.publish_all()
        mount.let_take_effect(Verb.DELETE)
        await (tree.rmdir("name") if kind == "directory" else tree.unlink("name"))
        await trio.sleep(1)
        assert await stored(mount.bucket) == {"other": b"bytes"}
        await mount.cut_until_it_has_lapsed()
        await fails(tree.publisher.publish_all, after=PATIENCE - HELD - 1)
        body = b"bytes"
        match kind:
            case "file" | "large file":
                body = b"bytes" * (1 if kind == "file" else 3 * MIB)
                handle = await tree.create("name")
                await tree.write(handle, 0, body)
                await tree.close(handle)
            case "symlink":
                await tree.symlink("name", body)
            case "further name":
                await tree.link("other", "name")
            case "directory":
                body = b""
                await tree.mkdir("name")
        mount.heal()
        await tree.publish_all()
        assert tree.publisher.statistics().conflicts == 0
        assert await stored(mount.bucket) == {key: body, "other": b"bytes"}
        assert await tree.names() == ["name", "other"]
        if kind == "further name":
            assert (await tree.find("name")).link_count == 2
