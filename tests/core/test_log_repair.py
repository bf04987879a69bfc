"""A damaged log: nothing of it is applied unasked, what is before the damage can be, and nothing is thrown away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from trio.testing import MockClock

from backends.base import iterate_pages
from backends.memory import MemoryStorage
from fusefs.errors import LogDamaged
from fusefs.journal_format import CONTINUED, JOURNAL_PREFIX, Batch, Position, batch_key, encode
from fusefs.log_repair import DAMAGED_PREFIX, LogRepair
from fusefs.publisher import PublishOptions
from tests.core.tree import TreeOptions, open_tree

NEVER: Final = 1e9
OPTIONS: Final = TreeOptions(logged=True, publish=PublishOptions(delay_seconds=NEVER, interval_seconds=NEVER))


async def damage(storage: MemoryStorage, position: Position) -> None:
    key = batch_key(position)
    await storage.put(key, (await storage.get_range(key)).data[:-1])


async def keys(storage: MemoryStorage, prefix: str) -> list[str]:
    return [info.key async for page in iterate_pages(storage, prefix) for info in page.objects]


async def commit_thrice(storage: MemoryStorage, directory: Path) -> None:
    """Leave a log of three batches, each of which makes a file longer."""
    async with open_tree(storage, directory, OPTIONS) as tree:
        handle = await tree.create("file")
        for number in range(3):
            await tree.write(handle, number, b"%d" % number)
            await tree.filesystem.fsync(handle)


@pytest.mark.parametrize("sequence", [1, 2, 3])
async def test_what_is_before_the_damage_is_saved(
    tmp_path: Path, autojump_clock: MockClock, sequence: int
) -> None:
    storage = MemoryStorage()
    await commit_thrice(storage, tmp_path / "1")
    await damage(storage, Position(1, sequence))
    with pytest.raises(LogDamaged, match="fusefs recover"):
        async with open_tree(storage, tmp_path / "2", OPTIONS):
            pass
    # The attempt has sealed the log, as far as it could.
    repair = LogRepair(storage)
    found = await repair.diagnose()
    assert found.readable == sequence - 1
    assert found.lost[0] == Position(1, sequence)
    before = await keys(storage, JOURNAL_PREFIX)
    await repair.set_aside(found)
    aside = await keys(storage, DAMAGED_PREFIX)
    assert [key.removeprefix(DAMAGED_PREFIX) for key in aside] == [
        key.removeprefix(JOURNAL_PREFIX) for key in before if key >= batch_key(Position(1, sequence))
    ]
    assert (await repair.diagnose()).lost == ()
    async with open_tree(storage, tmp_path / "3", replace(OPTIONS, publish=PublishOptions())) as tree:
        assert await tree.names() == (["file"] if sequence > 1 else [])
        if sequence > 1:
            assert await tree.read_file("file") == b"01"[: sequence - 1]
        await tree.publish_all()


async def test_a_whole_log(tmp_path: Path, autojump_clock: MockClock) -> None:
    storage = MemoryStorage()
    await commit_thrice(storage, tmp_path)
    found = await LogRepair(storage).diagnose()
    assert (found.readable, found.lost) == (3, ())
    assert str(found) == "the log is whole: 3 batches"


async def test_damage_that_nobody_needs(tmp_path: Path) -> None:
    storage = MemoryStorage()
    await storage.put(batch_key(Position(1, 1)), b"damaged")
    closing = Batch(position=Position(2, 1), cutoff=Position(2, 1))
    await storage.put(batch_key(closing.position), encode(closing))
    assert (await LogRepair(storage).diagnose()).lost == ()


async def test_half_of_a_commit_is_set_aside_too(tmp_path: Path) -> None:
    storage = MemoryStorage()
    for sequence, flags in ((1, 0), (2, CONTINUED), (3, 0)):
        batch = Batch(position=Position(1, sequence), cutoff=Position(1, 1), flags=flags)
        await storage.put(batch_key(batch.position), encode(batch))
    await damage(storage, Position(1, 3))
    found = await LogRepair(storage).diagnose()
    assert found.readable == 1
    assert found.lost == (Position(1, 2), Position(1, 3))
