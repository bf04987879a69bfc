"""What publishing does for each of many files does not grow with how many there are."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

from backends.base import ObjectStorage
from backends.errors import AccessDenied
from backends.intercepted import InterceptedStorage, Request, T, Verb
from backends.memory import MemoryStorage
from fusefs import sweeper
from fusefs.filesystem import RENAME_EXCHANGE, FilesystemOptions
from fusefs.inodes import Inode
from fusefs.placement import Placement
from fusefs.turns import Turns
from fusefs.versions import Version
from fusefs.waits import Waits
from tests.core.tree import Tree, TreeOptions, open_tree
from tests.support.faulty import FaultyStorage

FEW: Final = 60
MANY: Final = 4 * FEW


class DistantStorage(InterceptedStorage):
    """A store whose answers take 10 to 30 ms, and come in another order than they were asked for."""

    def __init__(self, inner: ObjectStorage) -> None:
        super().__init__(inner)
        self._random = Random(0)

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        await trio.sleep(self._random.uniform(0.01, 0.03))
        return await send()


async def replace_each(tree: Tree, count: int) -> None:
    """As rsync, git and others do: a new file, renamed over the one that is there."""
    for each in range(count):
        await tree.write_file(f"one/.{each}", b"new")
        await tree.rename(f"one/.{each}", f"one/{each}")


async def replace_all(tree: Tree, count: int) -> None:
    """As deployments do: a directory makes way for another one."""
    await tree.rename("one", "old")
    await tree.rename("two", "one")


async def exchange_all(tree: Tree, count: int) -> None:
    await tree.rename("one", "two", RENAME_EXCHANGE)


async def renumber_all(tree: Tree, count: int) -> None:
    """As logrotate does: each waits for the key of the next."""
    for each in reversed(range(count)):
        await tree.rename(f"one/{each}", f"one/{each + 1}")


async def renumber_below_a_new_directory(tree: Tree, count: int) -> None:
    """The last one of those waits for the directory."""
    await tree.mkdir("old")
    await tree.rename(f"one/{count - 1}", "old/last")
    await renumber_all(tree, count - 1)


async def renumber_in_a_ring(tree: Tree, count: int) -> None:
    await tree.rename(f"one/{count - 1}", "spare")
    await renumber_all(tree, count - 1)
    await tree.rename("spare", "one/0")


async def remove_and_write_again(tree: Tree, count: int) -> None:
    for each in range(count):
        await tree.unlink(f"one/{each}")
    await trio.sleep(0.06)
    for each in range(count):
        await tree.write_file(f"one/{each}", b"new")


async def put_a_link_in_its_place(tree: Tree, count: int) -> None:
    await tree.rename("one", "old")
    await tree.symlink("one", b"two")


async def work(count: int, act: Callable[[Tree, int], Awaitable[None]], where: Path) -> Counter[str]:
    """Return how often was asked what somebody waits for, while the store was made what the tree is."""
    bucket, done = MemoryStorage(), Counter[str]()
    for directory in ("one", "two"):
        for each in range(count):
            await bucket.put(f"{directory}/{each}", b"body")

    def counted(patch: pytest.MonkeyPatch, kind: type, name: str) -> None:
        original = getattr(kind, name)

        def count_and_call(self: object, *arguments: Any) -> Any:
            done[name] += 1
            return original(self, *arguments)

        patch.setattr(kind, name, count_and_call)

    async with open_tree(DistantStorage(bucket), where, TreeOptions(logged=True)) as tree:
        for directory in ("one", "two"):
            for name in await tree.names(directory):
                await tree.find(f"{directory}/{name}")
        with pytest.MonkeyPatch.context() as patch:
            counted(patch, Turns, "look_at")
            counted(patch, Turns, "_waited_for_by")
            counted(patch, Waits, "awaited_by")
            counted(patch, Placement, "departing_from")
            await act(tree, count)
            await tree.publish_all()
        assert not tree.publisher.pending_inodes()
        names = (
            {f"{each}" for each in await tree.names("one")} if act is not put_a_link_in_its_place else set()
        )
        assert {f"one/{name}" for name in names} <= {
            info.key for info in (await bucket.list_prefix("one/")).objects
        }
    return done


@pytest.mark.parametrize(
    "act",
    [
        replace_each,
        replace_all,
        exchange_all,
        renumber_all,
        renumber_below_a_new_directory,
        renumber_in_a_ring,
        remove_and_write_again,
        put_a_link_in_its_place,
    ],
)
async def test_four_times_as_many_files_are_about_four_times_the_work(
    act: Callable[[Tree, int], Awaitable[None]], tmp_path: Path, autojump_clock: MockClock
) -> None:
    few = await work(FEW, act, tmp_path / "few")
    many = await work(MANY, act, tmp_path / "many")
    assert many.total() < 8 * few.total(), (few, many)
    assert many.total() < 30 * MANY, many


async def test_what_may_not_be_deleted_is_looked_at_once_for_each_time_that_it_is_tried(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """And not whenever anything else is published."""
    faulty, wanted = FaultyStorage(MemoryStorage()), 0
    for each in range(FEW):
        await faulty.put(f"one/{each}", b"body")
    is_wanted = Placement._is_wanted

    def count_and_call(self: Placement, key: str) -> bool:
        nonlocal wanted
        wanted += key.startswith("one/")
        return is_wanted(self, key)

    async with open_tree(faulty, tmp_path, TreeOptions(logged=True)) as tree:
        await tree.names("one")
        faulty.fail(AccessDenied, verb=Verb.DELETE_MANY, times=math.inf)
        for each in range(FEW):
            await tree.unlink(f"one/{each}")
        await trio.sleep(1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Placement, "_is_wanted", count_and_call)
            for each in range(20):
                await tree.write_file(f"other-{each}", b"body")
                await trio.sleep(0.1)
            assert wanted == 0
            await trio.sleep(sweeper.RETRY_SECONDS)
            assert wanted >= FEW - 1
        faulty.heal()
        await tree.publish_all()


async def test_a_long_look_through_what_is_left_over_is_not_taken_again_at_once(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is all done in the end, and takes a tenth of the time at most."""
    storage = MemoryStorage()
    for each in range(FEW):
        await storage.put(f"file-{each}", b"body")
    deletable, looks = Placement.deletable, list[float]()

    def slow(self: Placement, **how: Any) -> Iterator[Version]:
        looks.append(trio.current_time())
        passed[0] += 0.5
        return deletable(self, **how)

    passed = [0.0]
    monkeypatch.setattr(Placement, "deletable", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: passed[0])
    async with open_tree(storage, tmp_path, TreeOptions(logged=True)) as tree:
        await tree.names()
        await trio.sleep(100)
        looks.clear()
        for each in range(FEW):
            await tree.unlink(f"file-{each}")
            await trio.sleep(0.2)
        await trio.sleep(100)
        assert not tree.placement._leftovers
    assert 1 < len(looks) < 10, looks
    assert all(after - before >= 5 for before, after in pairwise(looks))


async def test_whose_objects_leave_a_directory_is_looked_for_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Among all that there are; and not again for what belongs to nobody, and is deleted soon."""
    storage, looks = MemoryStorage(), 0
    for each in range(FEW):
        await storage.put(f"{each}/file", b"body")

    class Counted(dict[str, Inode]):
        def items(self) -> Any:
            nonlocal looks
            looks += 1
            return super().items()

    async with open_tree(DistantStorage(storage), tmp_path, TreeOptions(logged=True)) as tree:
        await tree.mkdir("old")
        for each in range(FEW):
            await tree.find(f"{each}/file")
        tree.placement._owners = Counted(tree.placement._owners)
        for each in range(FEW):
            await tree.rename(f"{each}", f"old/{each}")
            await tree.symlink(f"{each}", b"old")
        await tree.publish_all()
        assert FEW <= looks < 2 * FEW
        assert not tree.placement._left_below
        assert not tree.publisher.pending_inodes()


@pytest.mark.parametrize("later", [0, 0.3])
async def test_what_is_below_a_new_directory_does_not_wait_for_all_that_leaves_the_one_before(
    later: float, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Its marker has to be written by itself; while others are moved away and deleted, there is a moment for that."""
    inner = MemoryStorage()
    for each in range(50 * FEW):
        await inner.put(f"one/{each}", b"body")
    options = TreeOptions(logged=True, filesystem=FilesystemOptions(wait_on_close=True))
    async with open_tree(DistantStorage(inner), tmp_path, options) as tree:
        await tree.rename("one", "two")
        await tree.publish_all()
        await tree.rename("two", "one")
        await trio.sleep(later)
        await tree.mkdir("two")
        handle = await tree.create("two/file")
        began = trio.current_time()
        await tree.close(handle)
        assert trio.current_time() - began < 0.5
        assert len(tree.publisher.pending_inodes()) > 30 * FEW
        await tree.publish_all()
