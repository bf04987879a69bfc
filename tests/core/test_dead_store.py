"""Whoever waits for a publication hears of a failure while the store is away, whatever waits for what."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from backends.errors import AccessDenied, Unavailable
from backends.intercepted import InterceptedStorage, Request, T, Verb
from backends.memory import MemoryStorage
from backends.retrying import RetryingStorage, RetryPolicy
from tests.core.tree import Tree, TreeOptions, open_tree, stored
from tests.support.faulty import FaultyStorage

PATIENCE: Final = 60.0
"""`retry_timeout`: how long it takes until a call of the dead store fails."""

ONE_ATTEMPT: Final = PATIENCE + 1
#: One that was under way when the call came, and one that began after it.
TWO_ATTEMPTS: Final = 2 * PATIENCE + 1


@dataclass(frozen=True)
class Host:
    tree: Tree
    bucket: MemoryStorage
    faulty: FaultyStorage

    def cut(self) -> None:
        self.faulty.fail(Unavailable, times=math.inf)


@asynccontextmanager
async def host(directory: Path, *, logged: bool = False) -> AsyncIterator[Host]:
    """Open a tree over a store with the patience that a mount's has."""
    bucket = MemoryStorage()
    faulty = FaultyStorage(bucket)
    storage = RetryingStorage(faulty, RetryPolicy(timeout_seconds=PATIENCE), rng=Random(0))
    log = MemoryStorage() if logged else None  # on the local disk: it does not fail
    async with open_tree(storage, directory, TreeOptions(logged=logged, log_storage=log)) as tree:
        await tree.names()  # so that new names need no request
        yield Host(tree, bucket, faulty)


async def make_nested(tree: Tree, depth: int, files: int = 1, *, top: str = "d") -> dict[str, bytes]:
    """Make directories in each other, with files in each; return the objects that these are."""
    objects: dict[str, bytes] = {}
    path = ""
    for level in range(depth):
        path += top if level == 0 else "d"
        await tree.mkdir(path)
        path += "/"
        objects[path] = b""
        if level == depth - 1 or files > 1:
            for number in range(files):
                await tree.write_file(f"{path}{number}", path.encode())
                objects[f"{path}{number}"] = path.encode()
    return objects


async def fails_within(tree: Tree, seconds: float) -> None:
    with trio.fail_after(seconds), pytest.raises(Unavailable):
        await tree.publisher.publish_all()


@pytest.mark.parametrize("logged", [False, True])
@pytest.mark.parametrize("depth", range(1, 7))
async def test_new_directories_in_each_other(
    depth: int, logged: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The call ends with the first directory that cannot be written: everything below has failed with it."""
    async with host(tmp_path, logged=logged) as mount:
        mount.cut()
        objects = await make_nested(mount.tree, depth)
        await fails_within(mount.tree, ONE_ATTEMPT)
        for _ in range(2):
            await trio.sleep(45)
            await fails_within(mount.tree, TWO_ATTEMPTS)
        mount.faulty.heal()
        await mount.tree.publish_all()
        assert await stored(mount.bucket) == objects


async def test_several_files_in_several_nested_directories(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with host(tmp_path) as mount:
        mount.cut()
        objects: dict[str, bytes] = {}
        for top in ("a", "b", "c"):
            objects |= await make_nested(mount.tree, 4, files=3, top=top)
            await trio.sleep(20)  # so that attempts begin and end at different times
        for _ in range(3):
            await fails_within(mount.tree, TWO_ATTEMPTS)
        mount.faulty.heal()
        await mount.tree.publish_all()
        assert await stored(mount.bucket) == objects


@pytest.mark.parametrize("logged", [False, True])
async def test_many_more_than_are_on_their_way_at_once(
    logged: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """An outage is told once, and not by every few of them: the end of a mount would take days."""
    async with host(tmp_path, logged=logged) as mount:
        mount.cut()
        objects = {f"{number}": b"%d" % number for number in range(200)}
        for key, data in objects.items():
            await mount.tree.write_file(key, data)
        await fails_within(mount.tree, ONE_ATTEMPT)
        await trio.sleep(45)
        await fails_within(mount.tree, TWO_ATTEMPTS)
        mount.faulty.heal()
        await mount.tree.publish_all()
        assert await stored(mount.bucket) == objects


class _Slow(InterceptedStorage):
    """A store that takes ten seconds for each object."""

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        if request.verb is Verb.PUT:
            await trio.sleep(10)
        return await send()


async def test_one_key_without_an_answer_is_no_outage(tmp_path: Path, autojump_clock: MockClock) -> None:
    """What has had no turn yet when that fails does not fail with it; what is below such a directory does."""
    bucket = MemoryStorage()
    faulty = FaultyStorage(_Slow(bucket))
    storage = RetryingStorage(faulty, RetryPolicy(timeout_seconds=PATIENCE), rng=Random(0))
    async with open_tree(storage, tmp_path) as tree:
        await tree.names()
        faulty.fail(Unavailable, key="d/", times=math.inf)
        faulty.fail(Unavailable, key="d/d/", times=math.inf)
        await make_nested(tree, 3)
        objects = {f"{number}": b"%d" % number for number in range(300)}
        for key, data in objects.items():
            await tree.write_file(key, data)
        with trio.fail_after(300), pytest.raises(Unavailable):
            await tree.publisher.publish_all()
        assert await stored(bucket) == objects
        for key in objects:
            assert (await tree.find(key)).state.failure is None
            assert (await tree.find(key)).state.attempts == 1
        faulty.heal()
        await tree.publish_all()


@pytest.mark.parametrize("depth", [1, 2, 6])
async def test_fsync_of_a_file_in_new_directories(
    depth: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Without a log it waits for the directories above, and fails with the first."""
    async with host(tmp_path) as mount:
        mount.cut()
        objects = await make_nested(mount.tree, depth)
        path = max(objects, key=len)
        handle = await mount.tree.open(path)
        for _ in range(3):
            with trio.fail_after(2 * TWO_ATTEMPTS), pytest.raises(Unavailable):
                await mount.tree.filesystem.fsync(handle)
        mount.faulty.heal()
        with trio.fail_after(TWO_ATTEMPTS):
            await mount.tree.filesystem.fsync(handle)
        assert await stored(mount.bucket) == objects


async def test_a_directory_that_is_made_under_the_old_name_of_one_that_cannot_move(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The new one fails with the old one, and whatever is below the new one is not kept back by that."""
    async with host(tmp_path) as mount:
        await mount.tree.mkdir("d")
        await mount.tree.publish_all()
        mount.faulty.fail(AccessDenied, verb=Verb.COPY, times=math.inf)
        mount.faulty.fail(AccessDenied, verb=Verb.PUT, key="moved/", times=math.inf)
        await mount.tree.rename("d", "moved")
        await mount.tree.mkdir("d")
        await mount.tree.mkdir("d/e")
        await mount.tree.write_file("d/e/file", b"bytes")
        for _ in range(2):
            with trio.fail_after(10), pytest.raises(AccessDenied):
                await mount.tree.publisher.publish_all()
            assert (await stored(mount.bucket))["d/e/file"] == b"bytes"
        mount.faulty.heal()
        await mount.tree.publish_all()
        assert set(await stored(mount.bucket)) == {"moved/", "d/", "d/e/", "d/e/file"}


async def test_deletions_that_began_at_different_times(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Each is tried again before the other one has failed: there is no moment when both have."""
    async with host(tmp_path) as mount:
        for name in ("a", "b", "c"):
            await mount.tree.write_file(name, b"bytes")
        await mount.tree.publish_all()
        mount.cut()
        for name in ("a", "b", "c"):
            await mount.tree.unlink(name)
            await trio.sleep(10)
        for _ in range(3):
            await fails_within(mount.tree, TWO_ATTEMPTS)
            await trio.sleep(35)
        assert mount.tree.publisher.statistics().leftovers == 3
        mount.faulty.heal()
        await mount.tree.publish_all()
        assert await stored(mount.bucket) == {}


async def lose_the_answer(host: Host, name: str) -> None:
    """Store what a file has by now, and hear neither of that nor of anything else."""
    host.faulty.fail(Unavailable, verb=Verb.PUT, key=name, answer_lost=True)
    put = host.faulty.hold(Verb.PUT, key=name)

    async def publish() -> None:
        with pytest.raises(Unavailable):
            await host.tree.publisher.publish_all()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        await put.reached.wait()
        host.cut()
        put.open()


@pytest.mark.parametrize("logged", [False, True])
@pytest.mark.parametrize("is_new", [True, False])
async def test_a_file_whose_request_had_no_answer_is_replaced(
    is_new: bool, logged: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """What may have become of the old one is looked at when the store is back: it is nobody else's."""
    async with host(tmp_path, logged=logged) as away:
        if not is_new:
            await away.tree.write_file("file", b"first")
            await away.tree.publish_all()
        await away.tree.write_file("file", b"old")
        await lose_the_answer(away, "file")
        await away.tree.write_file("new", b"new")
        await away.tree.rename("new", "file")
        await trio.sleep(20 * PATIENCE)  # many looks fail
        away.faulty.heal()

        await away.tree.publish_all()

        assert await stored(away.bucket) == {"file": b"new"}
        assert away.tree.publisher.statistics().conflicts == 0


@pytest.mark.parametrize("logged", [False, True])
async def test_a_file_whose_request_had_no_answer_is_removed(
    logged: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """While nobody knows whether it has an object, nobody is told that everything is published."""
    async with host(tmp_path, logged=logged) as away:
        await away.tree.write_file("file", b"file")
        await lose_the_answer(away, "file")
        await away.tree.unlink("file")
        await trio.sleep(20 * PATIENCE)
        await fails_within(away.tree, TWO_ATTEMPTS)
        assert await stored(away.bucket) == {"file": b"file"}
        away.faulty.heal()

        await away.tree.publish_all()

        assert await stored(away.bucket) == {}


@pytest.mark.parametrize("logged", [False, True])
async def test_what_is_removed_fails_no_close_when_the_store_is_back(
    logged: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Nothing is to be published of it any more."""
    async with host(tmp_path, logged=logged) as away:
        handle = await away.tree.create("file")
        await away.tree.write(handle, 0, b"file")
        await lose_the_answer(away, "file")
        await away.tree.unlink("file")
        await trio.sleep(20 * PATIENCE)
        away.faulty.heal()
        await away.tree.publish_all()
        assert await stored(away.bucket) == {}
        await away.tree.close(handle)
