"""Directories are listed before they are read, where somebody walks through a tree, and for nobody else."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import trio
import trio.testing

from backends.errors import Unavailable
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from fusefs.errors import NoSuchEntry
from fusefs.files_ahead import FIRST_EXPECTED
from fusefs.walks import LISTED_ON_TRUST
from tests.core.tree import Tree, TreeOptions, open_tree
from tests.support.faulty import FaultyStorage

REVALIDATE = TreeOptions().revalidate_seconds + 1

Clock = trio.testing.MockClock


async def filled(directories: int, files: int) -> FaultyStorage:
    storage = FaultyStorage(MemoryStorage())
    for directory in range(directories):
        for file in range(files):
            await storage.put(f"d{directory:02}/f{file}", b"%d in %d" % (file, directory))
    storage.calls.clear()
    return storage


def asked(storage: FaultyStorage, verb: Verb) -> list[str]:
    return [request.key for request in storage.calls_of(verb)]


async def walk(tree: Tree, storage: FaultyStorage, *, read: bool) -> list[int]:
    """Read every directory, and every file if `read`; return for how many requests each directory waited."""
    waited = []
    for directory in filter(lambda name: name.startswith("d"), await tree.names()):
        before = len(storage.calls)
        for name in await tree.names(directory):
            if read:
                assert await tree.read_file(f"{directory}/{name}")
        ours = [request for request in storage.calls[before:] if request.key.startswith(directory)]
        waited.append(sum(request.verb in (Verb.LIST_PREFIX, Verb.GET_RANGE) for request in ours))
        await trio.testing.wait_all_tasks_blocked()
    return waited


async def test_who_walks_through_a_tree_finds_the_next_directories_listed(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    storage = await filled(20, 2)
    async with open_tree(storage, tmp_path) as tree:
        waited = await walk(tree, storage, read=False)
    assert sum(waited) <= 3
    assert sorted(asked(storage, Verb.LIST_PREFIX)) == ["", *(f"d{number:02}/" for number in range(20))]
    assert asked(storage, Verb.GET_RANGE) == [], "no file for who reads names alone"


async def test_who_walks_through_a_warm_tree_asks_for_nothing(autojump_clock: Clock, tmp_path: Path) -> None:
    """On a tree that it knows, a default mount asks the bucket for nothing when names are looked up, those that there
    are not included, nor when directories are read: what `git status` does costs no request. Once a listing is older
    than `revalidate_interval`, whoever reads the directory gets a new one.
    """
    storage = await filled(50, 10)
    async with open_tree(storage, tmp_path) as tree:
        await status(tree)
        storage.calls.clear()
        await trio.sleep(REVALIDATE / 2)
        for _ in range(3):
            await status(tree)
            assert storage.calls == []
        await trio.sleep(REVALIDATE / 2)
        waited = await walk(tree, storage, read=False)
        assert sum(waited) <= 3
        await status(tree)
    assert sorted(asked(storage, Verb.LIST_PREFIX)) == ["", *(f"d{number:02}/" for number in range(50))]
    assert {request.verb for request in storage.calls} == {Verb.LIST_PREFIX}


async def status(tree: Tree) -> None:
    for directory in await tree.names():
        for name in [*await tree.names(directory), ".gitignore"]:
            with suppress(NoSuchEntry):
                await tree.find(f"{directory}/{name}")
        await trio.testing.wait_all_tasks_blocked()


async def test_who_reads_all_files_on_the_way_finds_them_there(autojump_clock: Clock, tmp_path: Path) -> None:
    storage = await filled(20, 6)
    async with open_tree(storage, tmp_path) as tree:
        waited = await walk(tree, storage, read=True)
    assert waited[10:] == [0] * 10
    assert len(asked(storage, Verb.GET_RANGE)) == len(set(asked(storage, Verb.GET_RANGE))) == 120


async def test_the_reader_of_single_directories_pays_for_no_others(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    storage = await filled(300, 1)
    async with open_tree(storage, tmp_path) as tree:
        for name in ("d130", "d07", "d244"):
            await tree.names(name)
        await trio.testing.wait_all_tasks_blocked()
    assert asked(storage, Verb.LIST_PREFIX) == ["", "d130/", "d07/", "d244/"]


async def test_a_listing_that_fails_is_nobodys_until_the_directory_is_read(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    storage = await filled(2 + LISTED_ON_TRUST, 1)
    async with open_tree(storage, tmp_path) as tree:
        await tree.names("d00")
        storage.fail(Unavailable, verb=Verb.LIST_PREFIX, key="d03/")
        await tree.names("d01")
        await trio.testing.wait_all_tasks_blocked()
        assert not storage.faults_left
        assert await tree.names("d03") == ["f0"]


async def test_the_first_directory_below_is_listed_when_the_one_above_is_read(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    storage = FaultyStorage(MemoryStorage())
    for number in range(20):
        await storage.put(f"d{number:02}/below/file", b"content")
    storage.calls.clear()
    waited: list[str] = []
    async with open_tree(storage, tmp_path) as tree:
        for directory in await tree.names():
            for path in (directory, f"{directory}/below"):
                before = len(storage.calls)
                await tree.names(path)
                waited += [request.key for request in storage.calls[before:] if request.key == f"{path}/"]
                await trio.testing.wait_all_tasks_blocked()
    assert [key for key in waited if key >= "d08"] == []
    assert len(asked(storage, Verb.LIST_PREFIX)) == 41


async def test_who_begins_to_read_a_directory_on_the_way_finds_its_first_files(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """Also where nobody could know that it would be read: it is the only one in its directory."""
    storage = await filled(4, 6)
    for file in range(6):
        await storage.put(f"other/far/f{file}", b"content")
    async with open_tree(storage, tmp_path) as tree:
        await walk(tree, storage, read=True)
        await tree.names("other/far")
        await trio.testing.wait_all_tasks_blocked()
        before = len(storage.calls)
        for file in range(6):
            assert await tree.read_file(f"other/far/f{file}") == b"content"
        assert [request for request in storage.calls[before:] if request.verb is Verb.GET_RANGE] == []


async def test_who_reads_names_alone_from_now_on_pays_for_the_files_of_one_directory(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    storage = await filled(4, 6)
    for directory in range(5):
        for file in range(6):
            await storage.put(f"names/e{directory}/f{file}", b"content")
    async with open_tree(storage, tmp_path) as tree:
        await walk(tree, storage, read=True)
        await trio.testing.wait_all_tasks_blocked()
        before = len(storage.calls)
        for directory in (4, 1, 3, 0, 2):
            await tree.names(f"names/e{directory}")
            await trio.testing.wait_all_tasks_blocked()
        fetched = [request for request in storage.calls[before:] if request.verb is Verb.GET_RANGE]
        assert len(fetched) <= 6


async def descend(tree: Tree, storage: FaultyStorage, directories: list[str], *, read: bool) -> list[int]:
    """Go through directories and those below, depth first; return for how many requests each of the first waited."""
    waited = []
    for directory in directories:
        before, seconds = len(storage.calls), trio.current_time()
        waiting = [directory]
        while waiting:
            path = waiting.pop()
            for name in await tree.names(path):
                if name.startswith("s"):
                    waiting.append(f"{path}/{name}")
                elif read:
                    await tree.read_file(f"{path}/{name}")
        assert trio.current_time() == seconds
        ours = [request for request in storage.calls[before:] if request.key.startswith(directory)]
        waited.append(sum(request.verb in (Verb.LIST_PREFIX, Verb.GET_RANGE) for request in ours))
        await trio.testing.wait_all_tasks_blocked()
    return waited


async def deep(directories: int, *names: str) -> FaultyStorage:
    storage = FaultyStorage(MemoryStorage())
    for number in range(directories):
        for name in names:
            await storage.put(f"d{number:02}/{name}", b"content")
    storage.calls.clear()
    return storage


async def test_who_goes_into_what_is_below_finds_that_listed_and_its_first_files(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    storage = await deep(20, "f0", "f1", "s0/f0", "s0/f1", "s1/f0")
    async with open_tree(storage, tmp_path) as tree:
        waited = await descend(tree, storage, [f"d{number:02}" for number in range(20)], read=True)
    assert waited[6:] == [0] * 14
    assert len(asked(storage, Verb.LIST_PREFIX)) == len(set(asked(storage, Verb.LIST_PREFIX))) == 61
    assert len(asked(storage, Verb.GET_RANGE)) == 100


async def test_who_reads_directories_of_one_level_pays_for_few_below(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    storage = await deep(20, "f0", "s0/f0", "s1/f0")
    async with open_tree(storage, tmp_path) as tree:
        await walk(tree, storage, read=False)
    assert len([key for key in asked(storage, Verb.LIST_PREFIX) if "/s" in key]) <= 2 * LISTED_ON_TRUST


async def test_what_was_listed_before_it_was_known_that_files_are_read_has_its_first_files_fetched(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    storage = await filled(1, 1)
    for directory in range(1, 6):
        for file in range(40):
            await storage.put(f"d{directory:02}/f{file:02}", b"content")
    storage.calls.clear()
    async with open_tree(storage, tmp_path) as tree:
        waited = await walk(tree, storage, read=True)
    assert waited[0] > 0
    assert max(waited[2:]) <= 40 - FIRST_EXPECTED
