"""How long the log becomes, how old, and what it costs a mount that does nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from backends.base import KIB, MIB
from backends.intercepted import Verb
from backends.memory import MemoryStorage
from fusefs.journal_format import JOURNAL_PREFIX
from fusefs.publisher import PublishOptions
from fusefs.stored_lease import LEASE_KEY
from tests.core.leases import TERM, take
from tests.core.tree import Tree, TreeOptions, open_tree, stored
from tests.support.faulty import FaultyStorage

LOGGED: Final = TreeOptions(logged=True)
PAGE: Final = 8 * KIB
HOT_SIZE: Final = 16 * MIB
COMMITS: Final = 1_000
HOUR: Final = 3_600.0


async def log_size(storage: MemoryStorage) -> int:
    """Return the bytes of the log in the bucket."""
    everything = await stored(storage, ours=True)
    return sum(len(data) for key, data in everything.items() if key.startswith(JOURNAL_PREFIX))


async def commit_pages(tree: Tree, storage: MemoryStorage, pause_seconds: float) -> tuple[bytes, int]:
    """Change a page of the file `hot` and commit that, a thousand times; return what it is, and the longest log."""
    rng = Random(1)
    expected = bytearray(HOT_SIZE)
    handle = await tree.open("hot")
    longest = 0
    for number in range(COMMITS):
        page = rng.randbytes(PAGE)
        start = rng.randrange(HOT_SIZE // PAGE) * PAGE
        expected[start : start + PAGE] = page
        await tree.filesystem.write(handle, start, page)
        await tree.filesystem.fsync(handle)
        await trio.sleep(pause_seconds)
        if number % 20 == 0:
            longest = max(longest, await log_size(storage))
    await tree.close(handle)
    return bytes(expected), longest


async def test_a_hot_file_is_published_a_handful_of_times(tmp_path: Path, autojump_clock: MockClock) -> None:
    """As often as `publish_interval` says, whatever is committed meanwhile: each commit is a PUT of what changed."""
    inner = MemoryStorage()
    storage = FaultyStorage(inner)
    await inner.put("hot", bytes(HOT_SIZE))
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        expected, _ = await commit_pages(tree, inner, pause_seconds=0.1)
        await tree.publish_all()
        assert 3 <= tree.publisher.statistics().published <= 6
        batches = [call for call in storage.calls_of(Verb.PUT) if call.key.startswith(JOURNAL_PREFIX)]
        assert len(batches) <= COMMITS + 10
        assert sum(call.bytes_sent for call in batches) < COMMITS * (PAGE + 2 * KIB)
        await trio.sleep(60)
        assert await log_size(inner) == 0
    assert await stored(inner) == {"hot": expected}


async def test_a_log_that_grows_is_published(tmp_path: Path, autojump_clock: MockClock) -> None:
    """It stays near `log_size`, however long the file is kept open and `publish_interval` is."""
    inner = MemoryStorage()
    await inner.put("hot", bytes(HOT_SIZE))
    options = replace(LOGGED, max_log_bytes=2 * MIB, publish=PublishOptions(interval_seconds=HOUR))
    async with open_tree(inner, tmp_path, options) as tree:
        expected, longest = await commit_pages(tree, inner, pause_seconds=0.01)
        assert MIB < longest < 3 * MIB
        assert 3 <= tree.publisher.statistics().published <= 5
        await tree.publish_all()
    assert await stored(inner) == {"hot": expected}


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_log_does_not_become_old(is_open: bool, tmp_path: Path, autojump_clock: MockClock) -> None:
    """What changed once is published in time, and then the log is empty, although the file stays open."""
    storage = MemoryStorage()
    publish = PublishOptions()
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        handle = await tree.create("file")
        await tree.write(handle, 0, b"bytes")
        await tree.mkdir("d")
        await tree.filesystem.fsync(handle)
        if not is_open:
            await tree.close(handle)
        assert await log_size(storage) > 0
        await trio.sleep((publish.interval_seconds if is_open else publish.delay_seconds) + 5)
        assert await log_size(storage) == 0
        assert await stored(storage) == {"d/": b"", "file": b"bytes"}


async def test_an_idle_mount_asks_for_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    """But for the renewals of its lease, three in each term: no log is listed, read or written."""
    storage = FaultyStorage(MemoryStorage())
    lease = await take(storage, "a")
    async with (
        open_tree(storage, tmp_path, replace(LOGGED, index=True, lease=lease)) as tree,
        trio.open_nursery() as nursery,
    ):
        assert tree.index_writer is not None
        nursery.start_soon(lease.run)
        nursery.start_soon(tree.index_writer.run)
        await tree.mkdir("d")
        await tree.write_file("d/file", b"bytes")
        await trio.sleep(120)
        storage.calls.clear()
        await trio.sleep(HOUR)
        asked = Counter((call.verb, call.key) for call in storage.calls)
        assert asked.keys() == {(Verb.PUT, LEASE_KEY)}
        assert asked.total() == pytest.approx(3 * HOUR / TERM, abs=2)
        nursery.cancel_scope.cancel()


async def test_a_mount_that_writes_lists_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Where its log is, and what is in it, it knows: a listing costs as much as ten commits that are read."""
    storage = FaultyStorage(MemoryStorage())
    async with open_tree(storage, tmp_path, LOGGED) as tree:
        handle = await tree.create("file")
        storage.calls.clear()
        for number in range(300):
            await tree.write(handle, number, b"x")
            await tree.filesystem.fsync(handle)
            await trio.sleep(1)
        assert storage.calls_of(Verb.LIST_PREFIX) == []
        deletions = storage.calls_of(Verb.DELETE_MANY)
        assert len(deletions) < 30
