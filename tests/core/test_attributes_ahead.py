"""Attributes come ahead of whoever goes through a directory: a rolling window, which nobody waits for as a whole."""

from __future__ import annotations

import gc
import math
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from backends.errors import AccessDenied, Unavailable
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from fusefs.filesystem import FilesystemOptions
from fusefs.inodes import Directory, File
from fusefs.listed import ListedObject
from fusefs.look_ahead import MAX_GAP, MAX_WINDOW
from fusefs.namespace import Outline
from fusefs.resolver import RESOLVE_TASKS
from tests.core.tree import Tree, TreeOptions, open_tree
from tests.support.faulty import FaultyStorage

Clock = trio.testing.MockClock
FILES = [f"f{number:03d}" for number in range(400)]


async def filled() -> FaultyStorage:
    storage = FaultyStorage(MemoryStorage())
    for name in FILES:
        await storage.put(name, b"x")
    return storage


def asked_for(storage: FaultyStorage) -> list[str]:
    return [call.key for call in storage.calls_of(Verb.HEAD)]


async def read_with_attributes(tree: Tree, storage: FaultyStorage) -> int:
    """Return a handle of which the first ten entries were read, and one of them looked up."""
    handle = await tree.filesystem.opendir(1)
    await tree.filesystem.readdir(handle, 0, 10)
    await tree.filesystem.lookup(1, b"f000")
    await wait_all_tasks_blocked()
    storage.calls.clear()
    return handle


async def test_a_slow_answer_holds_up_only_who_waits_for_it(autojump_clock: Clock, tmp_path: Path) -> None:
    """The next requests do not wait for it, and go on as far as a window reaches."""
    storage = await filled()
    async with open_tree(storage, tmp_path) as tree, trio.open_nursery() as nursery:
        handle = await read_with_attributes(tree, storage)
        slow = storage.hold(Verb.HEAD, key="f015")
        nursery.start_soon(tree.filesystem.readdir, handle, 10, 10)
        await slow.reached.wait()
        await wait_all_tasks_blocked()
        assert sorted(asked_for(storage)) == FILES[10 : 20 + MAX_WINDOW]
        slow.open()


async def test_what_was_read_ahead_is_asked_for_once(autojump_clock: Clock, tmp_path: Path) -> None:
    storage = await filled()
    async with open_tree(storage, tmp_path) as tree:
        handle, position = await read_with_attributes(tree, storage), 10
        while entries := await tree.filesystem.readdir(handle, position, 10):
            assert all(isinstance(entry, File) for _, entry, _ in entries)
            position = entries[-1][2]
        assert sorted(asked_for(storage)) == FILES[10:]


async def test_as_many_are_under_way_as_before_and_they_end_with_the_reader(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    storage = await filled()
    async with open_tree(storage, tmp_path) as tree:
        handle = await read_with_attributes(tree, storage)
        ahead = storage.hold(Verb.HEAD, call=11, times=math.inf)
        await tree.filesystem.readdir(handle, 10, 10)
        await wait_all_tasks_blocked()
        assert len(asked_for(storage)) == 10 + RESOLVE_TASKS
        await tree.filesystem.releasedir(handle)
        ahead.open()
        await wait_all_tasks_blocked()
        assert len(asked_for(storage)) == 10 + RESOLVE_TASKS
        assert len(list(tree.root.inodes())) == 15, "what was under way was given up"


async def test_a_lookup_waits_for_its_own_answer(autojump_clock: Clock, tmp_path: Path) -> None:
    """While one waits, what comes next is on its way, as far as a window reaches."""
    storage = await filled()
    async with open_tree(storage, tmp_path) as tree, trio.open_nursery() as nursery:
        await tree.names()
        slow = storage.hold(Verb.HEAD, key="f060")
        with trio.fail_after(1):
            for name in FILES[:60]:
                await tree.find(name)
        nursery.start_soon(tree.find, "f060")
        await wait_all_tasks_blocked()
        assert len(asked_for(storage)) == len(set(asked_for(storage)))
        assert FILES[100] in asked_for(storage)
        assert FILES[60 + MAX_GAP] not in asked_for(storage)
        slow.open()


@pytest.mark.parametrize("error", [AccessDenied, Unavailable])
async def test_what_fails_ahead_is_the_error_of_who_looks_it_up(
    error: type[Exception], autojump_clock: Clock, tmp_path: Path
) -> None:
    """And of nobody who reads on; nobody asks for it a second time before."""
    storage = await filled()
    async with open_tree(storage, tmp_path) as tree:
        handle = await read_with_attributes(tree, storage)
        storage.fail(error, verb=Verb.HEAD, times=math.inf)
        position = 10
        while entries := await tree.filesystem.readdir(handle, position, 10):
            assert all(isinstance(entry, Outline) for _, entry, _ in entries)
            position = entries[-1][2]
        assert sorted(asked_for(storage)) == FILES[10:]
        with pytest.raises(error):
            await tree.find("f050")
        storage.heal()
        assert isinstance(await tree.find("f050"), File)


async def test_what_was_looked_up_and_forgotten_before_its_turn_is_no_inode_again(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """Nobody refers to it; and all that is to be known of it is known."""
    storage = await filled()
    names = FILES[: RESOLVE_TASKS + 8]
    async with open_tree(storage, tmp_path) as tree:
        await tree.names()
        first = storage.hold(Verb.HEAD, times=RESOLVE_TASKS)
        tree.namespace.attributes_ahead(tree.root).go_on_with(name.encode() for name in names)
        await first.reached.wait()
        await wait_all_tasks_blocked()
        inode = await tree.filesystem.lookup(1, names[-1].encode())
        tree.filesystem.forget([(inode.number, 1)])
        first.open()
        await wait_all_tasks_blocked()
        assert isinstance(tree.root.children[names[-2].encode()], File)
        assert isinstance(tree.root.children[names[-1].encode()], ListedObject)


def count_directories() -> int:
    """Return how many there are in memory, of whichever test."""
    gc.collect()
    return sum(isinstance(each, Directory) for each in gc.get_objects())


async def test_nothing_is_kept_of_directories_that_are_gone(autojump_clock: Clock, tmp_path: Path) -> None:
    """Though what was looked up in them was known already, so that nothing was asked for."""
    storage = FaultyStorage(MemoryStorage())
    options = TreeOptions(filesystem=FilesystemOptions(shared=True), revalidate_seconds=1.0)
    before = count_directories()
    async with open_tree(storage, tmp_path, options) as tree:
        for number in range(10):
            await storage.put(f"job{number}/a", b"x")
            await trio.sleep(3)
            for name in await tree.names():
                await tree.names(name)
                await tree.find(f"{name}/a")
            await storage.delete(f"job{number}/a")
        await trio.sleep(3)
        assert await tree.names() == []
        await tree.packer.pack_all()
        assert count_directories() - before <= 3
