"""The time that a recovery takes is that of its requests, many of which are under way at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from backends.base import ObjectStorage
from backends.intercepted import InterceptedStorage, Request, T
from backends.memory import MemoryStorage
from fusefs.log_reader import READ_AT_ONCE
from fusefs.log_repair import LogRepair
from tests.core.losses import LOG_ALONE
from tests.core.mortal import MortalStorage
from tests.core.tree import open_tree

ROUND_TRIP: Final = 0.02
FSYNCS: Final = 40 * READ_AT_ONCE


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
    assert took < 2 * FSYNCS / READ_AT_ONCE * ROUND_TRIP


async def test_what_can_be_saved_of_a_log_of_many_fsyncs(synced: DistantStorage) -> None:
    began = trio.current_time()
    assert (await LogRepair(synced).diagnose()).readable == FSYNCS
    assert trio.current_time() - began < 2 * FSYNCS / READ_AT_ONCE * ROUND_TRIP
