"""The time that a recovery takes is that of its requests, many of which are under way at once."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from backends.base import ObjectStorage
from backends.intercepted import InterceptedStorage, Request, T
from backends.memory import MemoryStorage
from fusefs.log_repair import LogRepair
from fusefs.old_logs import READ_AT_ONCE
from fusefs.start_progress import LOOKS_AT_ONCE
from tests.core.losses import LOG_ALONE
from tests.core.mortal import MortalStorage
from tests.core.tree import open_tree

ROUND_TRIP: Final = 0.02
FSYNCS: Final = 40 * READ_AT_ONCE
DIRECTORIES: Final = 10 * LOOKS_AT_ONCE


class DistantStorage(InterceptedStorage):
    """Takes a round trip for every request."""

    def __init__(self, inner: ObjectStorage) -> None:
        super().__init__(inner)
        self.requests = 0

    async def _carry_out(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        self.requests += 1
        await trio.sleep(ROUND_TRIP)
        return await send()


@pytest.fixture
async def synced(tmp_path: Path, autojump_clock: MockClock) -> DistantStorage:
    """What a mount leaves that dies when a database has called fsync many times, for little each."""
    storage = MemoryStorage()
    mortal = MortalStorage(storage)
    async with open_tree(mortal, tmp_path / "lost", LOG_ALONE) as tree:
        handle = await tree.create("database")
        for number in range(FSYNCS):
            await tree.write(handle, number % 100, b"x")
            await tree.filesystem.fsync(handle)
        mortal.die()
    return DistantStorage(storage)


async def test_a_log_of_many_fsyncs(synced: DistantStorage, tmp_path: Path) -> None:
    began = trio.current_time()
    async with open_tree(synced, tmp_path / "next", LOG_ALONE):
        took = trio.current_time() - began
    assert synced.requests > FSYNCS
    assert took < 4 * FSYNCS / READ_AT_ONCE * ROUND_TRIP


async def test_what_can_be_saved_of_a_log_of_many_fsyncs(synced: DistantStorage) -> None:
    began = trio.current_time()
    assert (await LogRepair(synced).diagnose()).readable == FSYNCS
    assert trio.current_time() - began < 4 * FSYNCS / READ_AT_ONCE * ROUND_TRIP


@pytest.mark.parametrize("below", ["", "/below", "/further/below"])
async def test_new_files_in_many_directories(
    below: str, tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The log does not tell of these: each takes a HEAD, and one that is in another of them a listing of that."""
    caplog.set_level(logging.INFO)
    storage = MemoryStorage()
    paths = [f"{number}{below}" for number in range(DIRECTORIES)]
    for path in paths:
        await storage.put(f"{path}/", b"", metadata={"mode": str(0o40700)})
    mortal = MortalStorage(storage)
    async with open_tree(mortal, tmp_path / "lost", LOG_ALONE) as tree:
        for path in paths:
            await tree.write_file(f"{path}/new", b"x")
        await tree.log.commit()
        mortal.die()
    distant = DistantStorage(storage)
    began = trio.current_time()
    async with open_tree(distant, tmp_path / "next", LOG_ALONE) as tree:
        took = trio.current_time() - began
        requests = distant.requests
        assert {(await tree.find(path)).attributes.mode for path in paths} == {0o40700}
        assert {await tree.read_file(f"{path}/new") for path in paths} == {b"x"}
    assert requests > (2 + below.count("/")) * DIRECTORIES
    assert took < 2 * requests / LOOKS_AT_ONCE * ROUND_TRIP
    assert f"looking for the directories of its files in the bucket: 0 of {DIRECTORIES}" in caplog.messages
