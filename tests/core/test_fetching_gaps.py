"""What is missing between bytes that were written is fetched with few requests, which bring a little more."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Final

import pytest
from trio.testing import MockClock

from backends.base import KIB, MIB
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from fusefs.publisher import PublishOptions
from tests.core.tree import Tree, TreeOptions, open_tree, stored
from tests.support.faulty import FaultyStorage

BODY: Final = Random(0).randbytes(16 * MIB)
PAGE: Final = 8 * KIB
STEP: Final = 32 * KIB


async def overwrite_pages(tree: Tree) -> tuple[int, bytes]:
    """Write every fourth page, as a database does, of a file that is not staged; return a handle and what it has."""
    handle, expected = await tree.open("file"), bytearray(BODY)
    for start in range(0, len(BODY), STEP):
        page = start.to_bytes(8, "big") * (PAGE // 8)
        await tree.write(handle, start, page)
        expected[start : start + PAGE] = page
    return handle, bytes(expected)


@pytest.mark.parametrize("cache_size", [256 * MIB, 5 * MIB])
async def test_a_file_that_was_changed_in_many_places_goes_up(
    cache_size: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Also where there is no room to stage what lies between."""
    faulty = FaultyStorage(MemoryStorage())
    await faulty.put("file", BODY)
    options = TreeOptions(cache_size=cache_size, publish=PublishOptions(interval_seconds=1e9))
    async with open_tree(faulty, tmp_path, options) as tree:
        handle, expected = await overwrite_pages(tree)
        await tree.close(handle)
        await tree.publish_all()
    assert await stored(faulty) == {"file": expected}
    assert len(faulty.calls_of(Verb.GET_RANGE)) <= 12


async def test_a_file_that_was_changed_in_many_places_is_read(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    faulty = FaultyStorage(MemoryStorage())
    await faulty.put("file", BODY)
    options = TreeOptions(publish=PublishOptions(interval_seconds=1e9))
    async with open_tree(faulty, tmp_path, options) as tree:
        handle, expected = await overwrite_pages(tree)
        read = [await tree.filesystem.read(handle, start, MIB) for start in range(0, len(BODY), MIB)]
        assert b"".join(read) == expected
        assert len(faulty.calls_of(Verb.GET_RANGE)) <= 20
        await tree.close(handle)
