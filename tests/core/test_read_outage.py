"""In an outage a call waits for `retry_timeout`: not for the requests of others, one after the other."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from backends.base import KIB, MIB
from backends.errors import ChecksumMismatch, StorageError, Unavailable
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from backends.retrying import RetryingStorage, RetryPolicy
from fusefs import prefetch
from fusefs.filesystem import FilesystemOptions
from tests.core.small_parts import PART, SmallPartsStorage, tree_options
from tests.core.tree import Tree, TreeOptions, open_tree
from tests.support.faulty import FaultyStorage

TIMEOUT: Final = 300.0
#: A request that was under way when a call came, and one that began after it; each is given up a little later.
TWO_REQUESTS: Final = 2 * (TIMEOUT + 30)


@asynccontextmanager
async def away(
    directory: Path, options: TreeOptions, **sizes: int
) -> AsyncIterator[tuple[Tree, FaultyStorage]]:
    """Open a tree whose store has files of these sizes; the caller cuts it off."""
    faulty = FaultyStorage(MemoryStorage())
    for name, size in sizes.items():
        await faulty.put(name, bytes(size))
    store = RetryingStorage(faulty, RetryPolicy(timeout_seconds=TIMEOUT))
    async with open_tree(store, directory, options) as tree:
        yield tree, faulty


async def wait_in_vain(tree: Tree, handle: int, offset: int = 0) -> float:
    """Return after how long a read has failed."""
    began = trio.current_time()
    with pytest.raises(StorageError):
        await tree.filesystem.read(handle, offset, MIB)
    return trio.current_time() - began


@pytest.mark.parametrize("distance", [0, 2 * MIB], ids=["one block", "many blocks"])
async def test_many_readers_of_a_file(distance: int, tmp_path: Path, autojump_clock: MockClock) -> None:
    """Also where there is room for a few requests at once only."""
    options = TreeOptions(fetches_in_flight=1, filesystem=FilesystemOptions(read_ahead_bytes=0))
    async with away(tmp_path, options, file=24 * 2 * MIB) as (tree, faulty):
        handles = [await tree.open("file", os.O_RDONLY) for _ in range(24)]
        faulty.fail(Unavailable, verb=Verb.GET_RANGE, times=math.inf)
        waited: list[float] = []

        async def read(number: int) -> None:
            waited.append(await wait_in_vain(tree, handles[number], number * distance))

        async with trio.open_nursery() as nursery:
            for number in range(len(handles)):
                nursery.start_soon(read, number)
        assert max(waited) < TIMEOUT + 30


@pytest.mark.parametrize("readers", [4, 8])
async def test_a_reader_behind_what_is_read_ahead_for_others(
    readers: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """What waits for its turn, and nobody has asked for yet, gives way."""
    sizes = {f"file{number}": 64 * MIB for number in range(readers)}
    async with away(tmp_path, TreeOptions(fetches_in_flight=6), other=MIB, **sizes) as (tree, faulty):
        handles = [await tree.open(name, os.O_RDONLY) for name in sizes]
        for handle in handles:
            for offset in range(0, 20 * MIB, MIB):
                await tree.filesystem.read(handle, offset, MIB)
        other = await tree.open("other", os.O_RDONLY)
        faulty.fail(Unavailable, verb=Verb.GET_RANGE, times=math.inf)

        async def go_on(handle: int) -> None:
            for offset in range(20 * MIB, 60 * MIB, MIB):
                with suppress(StorageError):
                    await tree.filesystem.read(handle, offset, MIB)

        async with trio.open_nursery() as nursery:
            for handle in handles:
                nursery.start_soon(go_on, handle)
            await trio.sleep(1)
            assert await wait_in_vain(tree, other) < TWO_REQUESTS
            nursery.cancel_scope.cancel()


async def test_an_error_is_that_of_requests_which_began_later(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Whoever comes when a request has nearly been given up waits as long as everybody; an answer ends it for all."""
    options = TreeOptions(filesystem=FilesystemOptions(read_ahead_bytes=0))
    async with away(tmp_path, options, file=32 * MIB, other=4 * KIB) as (tree, faulty):
        handle = await tree.open("file", os.O_RDONLY)
        faulty.fail(Unavailable, verb=Verb.GET_RANGE, times=math.inf)
        waited: list[float] = []

        async def read() -> None:
            waited.append(await wait_in_vain(tree, handle))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.sleep(TIMEOUT - 1)
            nursery.start_soon(read)
        assert min(waited) >= TIMEOUT - 30
        faulty.heal()
        assert await tree.read_file("other") == bytes(4 * KIB)
        assert await tree.filesystem.read(handle, 0, 1) == b"\0"


async def test_an_object_that_is_damaged_is_no_outage(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Whoever waits for a turn behind it has theirs."""
    options = TreeOptions(fetches_in_flight=1, filesystem=FilesystemOptions(read_ahead_bytes=0))
    sizes = dict.fromkeys(("first", "bad", "good"), prefetch.FETCH_SIZE)
    async with away(tmp_path, options, **sizes) as (tree, faulty):
        handles = {name: await tree.open(name, os.O_RDONLY) for name in sizes}
        faulty.fail(ChecksumMismatch, verb=Verb.GET_RANGE, key="bad", times=math.inf)
        first = faulty.hold(Verb.GET_RANGE, key="first")

        async def read(name: str) -> None:
            assert await tree.filesystem.read(handles[name], 0, sizes[name]) == bytes(sizes[name])

        async def read_damaged() -> None:
            with pytest.raises(ChecksumMismatch):
                await read("bad")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, "first")
            await first.reached.wait()
            nursery.start_soon(read_damaged)
            await trio.sleep(1)
            nursery.start_soon(read, "good")
            await trio.sleep(1)
            first.open()


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("streams", [0, 1, 2])
async def test_fsync_of_one_file_while_others_go_up(
    streams: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It has parts of streams go up first, but does not wait for those, and then as long for its own request."""
    faulty = FaultyStorage(SmallPartsStorage())
    store = RetryingStorage(faulty, RetryPolicy(timeout_seconds=TIMEOUT))
    async with open_tree(store, tmp_path, tree_options(logged=True)) as tree:
        small = await tree.create("small")
        large = [await tree.create(f"large{number}") for number in range(streams)]
        for handle in large:
            await tree.write(handle, 0, bytes([1]) * (2 * PART + 2 * KIB))
        await trio.sleep(0.2)
        await tree.filesystem.fsync(small)
        faulty.fail(Unavailable, times=math.inf)
        for handle in large:
            await tree.write(handle, 2 * PART + 2 * KIB, bytes([1]) * (2 * PART))
        await tree.write(small, 0, b"x")
        began = trio.current_time()
        with pytest.raises(StorageError):
            await tree.filesystem.fsync(small)
        assert trio.current_time() - began < TIMEOUT + 90
