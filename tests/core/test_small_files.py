"""Small files are fetched before they are opened, and what is fetched in advance harms nobody."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import trio
import trio.testing

from backends.base import KIB
from backends.errors import Unavailable
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from fusefs import fetching, prefetch
from fusefs.files_ahead import MAX_SIZE
from fusefs.filesystem import FilesystemOptions
from fusefs.small_files import FETCH_TASKS, MAX_WAITING, PATIENCE_SECONDS
from tests.core.tree import TreeOptions, open_tree
from tests.support.faulty import FaultyStorage

Clock = trio.testing.MockClock


async def filled(objects: dict[str, bytes]) -> FaultyStorage:
    storage = FaultyStorage(MemoryStorage())
    for key, data in objects.items():
        await storage.put(key, data)
    storage.calls.clear()
    return storage


def small(count: int) -> dict[str, bytes]:
    return {f"d/{number}": b"file %d" % number for number in range(count)}


def gets(storage: FaultyStorage) -> list[str]:
    return [request.key for request in storage.calls_of(Verb.GET_RANGE)]


async def test_who_reads_one_file_after_the_other_finds_the_next_ones_there(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    objects = small(100)
    storage = await filled(objects)
    async with open_tree(storage, tmp_path) as tree:
        waited_for = 0
        for number in range(100):
            asked = len(gets(storage))
            assert await tree.read_file(f"d/{number}") == b"file %d" % number
            waited_for += f"d/{number}" in gets(storage)[asked:]
            await trio.testing.wait_all_tasks_blocked()
        assert waited_for <= 4
        assert sorted(gets(storage)) == sorted(objects), "each is fetched once"


async def test_the_reader_of_single_files_pays_for_no_others(autojump_clock: Clock, tmp_path: Path) -> None:
    storage = await filled(small(100))
    async with open_tree(storage, tmp_path) as tree:
        for number in (50, 3, 77):
            await tree.read_file(f"d/{number}")
        await trio.testing.wait_all_tasks_blocked()
        assert gets(storage) == ["d/50", "d/3", "d/77"]


async def test_large_files_and_those_being_written_are_not_fetched(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    objects = {**small(6), "d/3": bytes(MAX_SIZE + 1), "d/6": b""}
    storage = await filled(objects)
    async with open_tree(storage, tmp_path) as tree:
        handle = await tree.open("d/4", os.O_WRONLY)
        await tree.write(handle, 0, b"mine")
        for number in range(2):
            await tree.read_file(f"d/{number}")
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(gets(storage)) == ["d/0", "d/1", "d/2", "d/5"]
        await tree.close(handle)
        assert await tree.read_file("d/4") == b"mine 4"


async def test_without_read_ahead_nothing_is_fetched_ahead(autojump_clock: Clock, tmp_path: Path) -> None:
    storage = await filled(small(20))
    options = TreeOptions(filesystem=FilesystemOptions(read_ahead_bytes=0))
    async with open_tree(storage, tmp_path, options) as tree:
        for number in range(5):
            await tree.read_file(f"d/{number}")
        await trio.testing.wait_all_tasks_blocked()
        assert len(gets(storage)) == 5


async def test_what_is_fetched_and_not_read_is_bounded_in_bytes(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    storage = await filled({f"d/{number}": bytes(100 * KIB) for number in range(50)})
    options = TreeOptions(filesystem=FilesystemOptions(read_ahead_bytes=500 * KIB))
    async with open_tree(storage, tmp_path, options) as tree:
        for number in range(2):
            await tree.read_file(f"d/{number}")
        await trio.testing.wait_all_tasks_blocked()
        assert len(gets(storage)) <= 2 + 6


async def test_a_failure_is_nobodys_until_the_file_is_read(autojump_clock: Clock, tmp_path: Path) -> None:
    storage = await filled(small(10))
    async with open_tree(storage, tmp_path) as tree:
        await tree.read_file("d/0")
        storage.fail(Unavailable, verb=Verb.GET_RANGE, key="d/5")
        assert await tree.read_file("d/1") == b"file 1"
        await trio.testing.wait_all_tasks_blocked()
        assert await tree.read_file("d/5") == b"file 5", "asked for again"
        assert gets(storage).count("d/5") == 2


async def test_a_store_that_does_not_answer_is_soon_left_alone(autojump_clock: Clock, tmp_path: Path) -> None:
    """Nothing waits for it, and the connections are free for those who do."""
    storage = await filled(small(10))
    async with open_tree(storage, tmp_path) as tree:
        await tree.read_file("d/0")
        gate = storage.hold(Verb.GET_RANGE, key="d/5")
        await tree.read_file("d/1")
        await gate.reached.wait()
        began = trio.current_time()
        assert await tree.read_file("d/5") == b"file 5"
        assert trio.current_time() - began < PATIENCE_SECONDS + 1


async def test_a_file_that_was_changed_since_is_not_served_as_it_was(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """What was listed is asked for, and no other version; the directory is listed again as ever."""
    storage = await filled(small(10))
    options = TreeOptions(revalidate_seconds=1.0)
    async with open_tree(storage, tmp_path, options) as tree:
        await tree.read_file("d/0")
        await storage.put("d/2", b"theirs")
        await storage.delete("d/3")
        await tree.read_file("d/1")
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(2)
        assert "3" not in await tree.names("d")
        assert await tree.read_file("d/2") == b"theirs"


async def test_what_others_have_added_is_fetched_ahead_too(autojump_clock: Clock, tmp_path: Path) -> None:
    storage = await filled(small(2))
    options = TreeOptions(revalidate_seconds=1.0)
    async with open_tree(storage, tmp_path, options) as tree:
        for number in range(2):
            await tree.read_file(f"d/{number}")
        for number in range(2, 6):
            await storage.put(f"d/{number}", b"theirs")
        await trio.sleep(2)
        await tree.names("d")
        for number in range(2, 4):
            await tree.read_file(f"d/{number}")
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(gets(storage)) == [f"d/{number}" for number in range(6)]


async def test_what_is_given_up_can_be_fetched_by_its_reader(
    autojump_clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one file takes several requests, and the first of them has no answer."""
    monkeypatch.setattr(prefetch, "FETCH_SIZE", KIB)
    storage = await filled({"a": bytes(3 * KIB)})
    async with open_tree(storage, tmp_path) as tree:
        file = await tree.find_file("a")
        storage.hold(Verb.GET_RANGE)
        with trio.move_on_after(PATIENCE_SECONDS):
            await fetching.fetch_unasked(file.content)
        with trio.fail_after(PATIENCE_SECONDS):
            assert await tree.read_file("a") == bytes(3 * KIB)


async def test_the_files_of_the_directory_that_somebody_is_in_come_first(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    objects = {f"d{directory}/{number:02}": b"content" for directory in range(6) for number in range(40)}
    storage = await filled({**objects, **{f"e/{number}": b"content" for number in range(4)}})
    async with open_tree(storage, tmp_path) as tree:
        for name in await tree.names("d0"):
            await tree.read_file(f"d0/{name}")
        gate = storage.hold(Verb.GET_RANGE, times=math.inf)
        await tree.names("d1")
        await trio.testing.wait_all_tasks_blocked()
        await tree.open("e/0", os.O_RDONLY)
        await trio.testing.wait_all_tasks_blocked()
        under_way = len(gets(storage))
        gate.open()
        await trio.testing.wait_all_tasks_blocked()
        assert len(gets(storage)) > under_way + 50
        assert {f"e/{number}" for number in range(1, 4)} <= set(gets(storage)[under_way:][:FETCH_TASKS])


async def test_few_files_are_fetched_for_who_may_come_to_many_directories(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    objects = {f"d{directory:02}/{number:02}": b"" for directory in range(30) for number in range(40)}
    storage = await filled(dict.fromkeys(objects, b"content"))
    async with open_tree(storage, tmp_path) as tree:
        for name in await tree.names("d00"):
            await tree.read_file(f"d00/{name}")
        gate = storage.hold(Verb.GET_RANGE, times=math.inf)
        for number in range(1, 13):
            await tree.names(f"d{number:02}")
            await trio.testing.wait_all_tasks_blocked()
        before = len(gets(storage))
        gate.open()
        await trio.testing.wait_all_tasks_blocked()
        assert before < len(gets(storage)) < MAX_WAITING + 100


async def test_a_small_file_that_is_a_large_one_by_now_is_not_fetched(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """It was small when it was listed; all of a large one would come past the bound of what is fetched at once."""
    storage = await filled(small(10))
    async with open_tree(storage, tmp_path) as tree:
        await tree.names("d")
        await storage.put("d/5", bytes(3 * MAX_SIZE))
        await tree.read_file("d/0")
        handle = await tree.open("d/1", os.O_RDONLY)  # the next ones are fetched from here on
        await trio.sleep(60)
        assert "d/6" in gets(storage)
        assert (await tree.find_file("d/5")).content.is_bare
        await tree.close(handle)
