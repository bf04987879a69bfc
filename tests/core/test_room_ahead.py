"""A reader ahead of which there is little room: what is fetched for it is read, and not evicted and fetched again."""

from __future__ import annotations

import math
import os
from pathlib import Path
from random import Random

import pytest
from trio.testing import MockClock, wait_all_tasks_blocked

from backends.base import KIB, MIB, RangeResult
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from tests.core.small_disk import limit_disk, make_read_only
from tests.core.tree import Tree, TreeOptions, open_tree
from tests.support.faulty import FaultyStorage

BODY = Random(0).randbytes(40 * MIB)
READ = 10 * MIB


class CountingBytes(MemoryStorage):
    """Counts what is fetched."""

    fetched = 0
    gets = 0

    async def get_range(
        self, key: str, start: int = 0, length: int | None = None, *, if_match: str | None = None
    ) -> RangeResult:
        result = await super().get_range(key, start, length, if_match=if_match)
        self.fetched += len(result.body)
        self.gets += 1
        return result


async def read_on(tree: Tree) -> None:
    """Read the beginning of the large file, as the kernel does without its own read-ahead."""
    reader = await tree.open("large", os.O_RDONLY)
    for start in range(0, READ, 128 * KIB):
        assert await tree.filesystem.read(reader, start, 128 * KIB) == BODY[start : start + 128 * KIB]
        await wait_all_tasks_blocked()
    await tree.close(reader)


@pytest.mark.parametrize("dirty", [0, 10, 13, 15, 17])
async def test_a_reader_beside_a_writer_that_has_filled_the_cache(
    dirty: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """What it writes cannot give way before it is in the bucket: of 16 MiB, that much."""
    counting = CountingBytes()
    storage = FaultyStorage(counting)
    await storage.put("large", BODY)
    async with open_tree(storage, tmp_path, TreeOptions(cache_size=16 * MIB)) as tree:
        sending = storage.hold(Verb.UPLOAD_PART, times=math.inf)
        writer = await tree.create("written")
        await tree.write(writer, 0, bytes(dirty * MIB))
        await read_on(tree)
        sending.open()
        await tree.close(writer)
        await tree.publish_all()
    assert counting.fetched <= 1.5 * READ
    if dirty <= 13:
        assert counting.gets <= 40


async def test_small_files_beside_a_writer_that_has_filled_the_cache(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Those of the same directory are fetched ahead where they are read before they have to go."""
    counting = CountingBytes()
    storage = FaultyStorage(counting)
    for number in range(100):
        await storage.put(f"directory/{number:03}", BODY[: 64 * KIB])
    async with open_tree(storage, tmp_path, TreeOptions(cache_size=16 * MIB)) as tree:
        sending = storage.hold(Verb.UPLOAD_PART, times=math.inf)
        writer = await tree.create("written")
        await tree.write(writer, 0, bytes(17 * MIB))
        for number in range(100):
            assert await tree.read_file(f"directory/{number:03}") == BODY[: 64 * KIB]
            await wait_all_tasks_blocked()
        sending.open()
        await tree.close(writer)
        await tree.publish_all()
    assert counting.gets <= 110


@pytest.mark.parametrize("disk", ["full", "read-only"])
async def test_a_reader_on_a_disk_that_takes_nothing(
    disk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Each read is fetched for the stage, and once more past it; ahead only until the first of them has no room."""
    counting = CountingBytes()
    await counting.put("large", BODY)
    async with open_tree(counting, tmp_path) as tree:
        with monkeypatch.context() as refusing:
            if disk == "full":
                limit_disk(refusing, tmp_path / "stage", 0)
            else:
                make_read_only(refusing, tmp_path)
            await read_on(tree)
        assert counting.fetched <= 2 * READ + 4 * MIB
        counting.fetched = 0
        await read_on(tree)  # with room again, also ahead
        assert 2 * READ < counting.fetched <= len(BODY)
