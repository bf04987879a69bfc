"""The log is on the disk that the stage fills: it always has the room that is needed for what is there to go up."""

from __future__ import annotations

import errno
import math
import os
import random
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from backends.base import KIB, MIB
from backends.errors import QuotaExceeded, Unavailable
from backends.memory import MemoryStorage
from tests.core.small_disk import LogOnSmallDisk, disk_use
from tests.core.tree import Tree, TreeOptions, open_tree, stored
from tests.support.faulty import FaultyStorage

DISK = 48 * MIB


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LogOnSmallDisk:
    """An empty log on an empty disk of `DISK` bytes."""
    return LogOnSmallDisk(monkeypatch, tmp_path, DISK)


def options(log: LogOnSmallDisk, directory: Path) -> TreeOptions:
    return TreeOptions(logged=True, log_storage=log, log_directory=directory)


async def fill(tree: Tree, handle: int) -> int:
    """Write and fsync a MiB at a time until that is refused; return how many bytes were acknowledged."""
    acknowledged = 0
    while (full := await refusal_of_piece(tree, handle, acknowledged)) is None:
        acknowledged += MIB
    assert full.errno == errno.ENOSPC
    assert isinstance(full.__cause__, Unavailable)
    return acknowledged


async def refusal_of_piece(tree: Tree, handle: int, offset: int) -> OSError | None:
    try:
        await tree.filesystem.write(handle, offset, bytes([1 + offset // MIB]) * MIB)
    except OSError as full:
        return full
    await tree.filesystem.fsync(handle)
    return None


@pytest.mark.parametrize("seed", range(2))
async def test_writers_of_much_more_than_the_disk_holds(
    seed: int, log: LogOnSmallDisk, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """New files, changes of large ones and hot pages, with an fsync now and then: nothing but time is lost."""
    storage = MemoryStorage()
    theirs = random.Random(seed).randbytes(MIB) * 24
    await storage.put("changed", theirs)
    expected = {"changed": bytearray(theirs)}

    async def writer(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        for file in range(4):
            path = f"file-{number}-{file}"
            data = expected[path] = bytearray()
            handle = await tree.create(path)
            for _ in range(rng.randrange(4, 22)):
                offset = rng.choice((len(data), len(data), rng.randrange(len(data) + 1)))
                piece = rng.randbytes(MIB)
                await tree.filesystem.write(handle, offset, piece)
                data[offset : offset + MIB] = piece
                if rng.random() < 0.3:
                    await tree.filesystem.fsync(handle)
                await trio.sleep(rng.random())
            await tree.close(handle)

    async def changer() -> None:
        rng = random.Random(seed)
        handle = await tree.open("changed")
        for _ in range(40):
            offset, piece = rng.randrange(24 * MIB - MIB), rng.randbytes(MIB)
            await tree.filesystem.write(handle, offset, piece)
            expected["changed"][offset : offset + MIB] = piece
            await tree.filesystem.fsync(handle)
            await trio.sleep(rng.random())
        await tree.close(handle)

    async with open_tree(storage, tmp_path, options(log, tmp_path)) as tree:
        with trio.fail_after(3600):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(changer)
                for number in range(3):
                    nursery.start_soon(writer, number)
        assert sum(map(len, expected.values())) > 2 * DISK
        await tree.publish_all()
        assert await stored(storage) == expected
    assert log.refused == 0


async def test_what_was_acknowledged_on_a_full_disk_is_there_after_a_crash(
    log: LogOnSmallDisk, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The store does not answer, the disk fills, the mount dies; the next one, on the same disk, has everything."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path / "first", options(log, tmp_path)) as tree:
        handle = await tree.create("file")
        storage.fail(Unavailable, times=math.inf)
        acknowledged = await fill(tree, handle)
        assert acknowledged > DISK // 4
    for path in (tmp_path / "first" / "stage").iterdir():
        path.unlink()
    storage.heal()
    async with open_tree(storage, tmp_path / "second", options(log, tmp_path)) as tree:
        data = await tree.read_file("file")
        assert data[:acknowledged] == b"".join(bytes([1 + n]) * MIB for n in range(acknowledged // MIB))
        with trio.fail_after(3600):
            await tree.write_file("other", os.urandom(DISK))
        await tree.publish_all()
        assert (await stored(storage))["file"] == data
    assert log.refused == 0


async def test_a_full_disk_goes_on_when_the_store_is_back(
    log: LogOnSmallDisk, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A log on the same disk always has the room that it needs: a write leaves it. So in an outage ENOSPC comes when
    a third to a half of the disk is taken by what is not in the bucket, and fsync of what was written before does not
    fail for that.
    """
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path, options(log, tmp_path)) as tree:
        before, handle = await tree.create("before"), await tree.create("file")
        await tree.write(before, 0, b"b" * (2 * MIB))
        storage.fail(Unavailable, times=math.inf)
        acknowledged = await fill(tree, handle)
        with pytest.raises(OSError, match="log"):
            await tree.write(before, 0, b"c" * MIB)
        await tree.filesystem.fsync(before)
        await tree.mkdir("directory")
        await tree.filesystem.fsyncdir(await tree.filesystem.opendir((await tree.find("")).number))
        storage.heal()
        with trio.fail_after(3600):
            await tree.write_file("other", os.urandom(2 * DISK))
        await tree.close(before)
        await tree.close(handle)
        await tree.publish_all()
        objects = await stored(storage)
    assert objects["before"] == b"b" * (2 * MIB)
    assert len(objects["file"]) >= acknowledged
    assert len(objects["other"]) == 2 * DISK
    assert log.refused == 0


async def test_clean_bytes_give_way_to_a_log_that_others_have_left_no_room(
    log: LogOnSmallDisk, tmp_path: Path, autojump_clock: MockClock
) -> None:
    storage = MemoryStorage()
    await storage.put("read", b"r" * (8 * MIB))
    async with open_tree(storage, tmp_path, options(log, tmp_path)) as tree:
        await tree.read_file("read")
        handle = await tree.create("written")
        await tree.write(handle, 0, b"w" * (2 * MIB))
        log.others = log.free
        await tree.filesystem.fsync(handle)
        assert log.refused
        assert disk_use(tmp_path) < 3 * MIB
        await tree.close(handle)


async def test_a_commit_says_that_others_have_left_no_room(
    log: LogOnSmallDisk, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """As long as they have not; then everything goes on by itself."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path, options(log, tmp_path)) as tree:
        handle = await tree.create("written")
        await tree.write(handle, 0, b"w" * (2 * MIB))
        log.others = log.free
        with pytest.raises(QuotaExceeded):
            await tree.filesystem.fsync(handle)
        log.others = 0
        await trio.sleep(1)
        await tree.filesystem.fsync(handle)
        await tree.close(handle)
        await tree.publish_all()
    assert (await stored(storage))["written"] == b"w" * (2 * MIB)


async def test_a_full_disk_keeps_nothing_of_a_log_that_is_not_needed(
    log: LogOnSmallDisk, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """One small file that stays dirty again and again must not keep what the log has of everything before it."""
    storage = MemoryStorage()
    async with open_tree(storage, tmp_path, options(log, tmp_path)) as tree:
        handle = await tree.create("hot")
        for number in range(5 * DISK // MIB):
            await tree.filesystem.write(handle, 0, bytes([number % 256]) * MIB)
            await tree.filesystem.fsync(handle)
            assert log.log_bytes < DISK
            assert disk_use(tmp_path) <= MIB + 64 * KIB
        await tree.close(handle)
        await tree.publish_all()
    assert log.refused == 0
