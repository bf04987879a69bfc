"""The promises of SEMANTICS.md that need a store which fails when it is told; each docstring is a paragraph of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from backends.errors import AccessDenied, StorageError, Unavailable
from backends.memory import MemoryStorage
from backends.metered import MeteredStorage
from backends.retrying import RetryingStorage, RetryPolicy
from fusefs.errno_boundary import errno_of
from fusefs.publisher import PublishOptions
from tests.core.tree import TreeOptions, open_tree, stored
from tests.support.faulty import FaultyStorage


async def test_store_that_does_not_answer(tmp_path: Path, autojump_clock: MockClock) -> None:
    """While the store does not answer, calls that need it wait, for `retry_timeout`. Then fsync returns EIO, and again,
    until the data is in the bucket; what was written is not dropped, and later attempts go on by themselves.
    """
    faulty = FaultyStorage(MemoryStorage())
    storage = RetryingStorage(faulty, RetryPolicy(timeout_seconds=300))
    async with open_tree(storage, tmp_path) as tree:
        handle = await tree.create("file")
        await tree.write(handle, 0, b"bytes")
        faulty.fail(Unavailable, times=1_000_000)
        for _ in range(2):
            began = autojump_clock.current_time()
            with pytest.raises(StorageError) as failure:
                await tree.filesystem.fsync(handle)
            assert errno_of(failure.value) == 5
            assert autojump_clock.current_time() - began >= 300
        faulty.heal()
        await tree.filesystem.release(handle)
        await tree.publish_all()
        assert await stored(storage) == {"file": b"bytes"}


async def test_close_of_what_is_in_the_log(tmp_path: Path, autojump_clock: MockClock) -> None:
    """An outage that has kept a file from its object is no error of a close, once the log has all of the file."""
    faulty = FaultyStorage(MemoryStorage())
    options = TreeOptions(logged=True, publish=PublishOptions(interval_seconds=1.0))
    async with open_tree(faulty, tmp_path, options) as tree:
        handle, second = await tree.create("file"), await tree.open("file")
        await tree.write(handle, 0, b"bytes")
        await tree.filesystem.fsync(handle)
        faulty.fail(Unavailable, key="file", times=math.inf)
        await trio.sleep(5)
        await tree.filesystem.flush(handle)
        await tree.write(handle, 5, b" and more")
        with pytest.raises(Unavailable):
            await tree.filesystem.flush(handle)
        faulty.fail(Unavailable, times=math.inf)
        with pytest.raises(Unavailable):
            await tree.filesystem.fsync(second)
        with pytest.raises(Unavailable):
            await tree.close(second)
        faulty.heal()
        await tree.filesystem.fsync(handle)
        await tree.close(handle)
        await tree.publish_all()
        assert await stored(faulty) == {"file": b"bytes and more"}


async def test_what_is_refused_is_an_error_of_a_close(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Also where the log has the file: nobody but its writer may ever hear that the bucket will not."""
    faulty = FaultyStorage(MemoryStorage())
    options = TreeOptions(logged=True, publish=PublishOptions(interval_seconds=1.0))
    async with open_tree(faulty, tmp_path, options) as tree:
        handle = await tree.create("file")
        await tree.write(handle, 0, b"bytes")
        faulty.fail(AccessDenied, key="file", times=math.inf)
        await tree.filesystem.fsync(handle)
        await trio.sleep(5)
        with pytest.raises(AccessDenied):
            await tree.close(handle)


async def test_fsync_without_a_log(tmp_path: Path, autojump_clock: MockClock) -> None:
    storage = MeteredStorage(MemoryStorage())
    async with open_tree(storage, tmp_path) as tree:
        await tree.mkdir("d")
        handle = await tree.create("d/file")
        await tree.write(handle, 0, b"bytes")
        directory = await tree.filesystem.opendir((await tree.find("d")).number)
        await tree.filesystem.fsync(handle)
        await tree.publish_all()
        before = storage.statistics().requests
        await tree.filesystem.fsync(handle)
        await tree.filesystem.fsyncdir(directory)
        assert storage.statistics().requests == before
