"""When the sweeper looks through what is left over. What it does then is in `tests/core/test_publisher.py`."""

from __future__ import annotations

import math
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from backends.base import Limits, ObjectStorage
from backends.errors import AccessDenied, Unavailable
from backends.memory import MemoryStorage
from backends.retrying import RetryingStorage, RetryPolicy
from fusefs.attributes import fresh
from fusefs.change_log import NoLog
from fusefs.inodes import ROOT_NUMBER, Directory
from fusefs.placement import Placement
from fusefs.sweeper import HOLD_SECONDS, PAUSES, Sweeper
from fusefs.versions import Version
from tests.support.faulty import FaultyStorage


async def test_a_time_that_comes_while_a_round_is_at_work_is_not_missed(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks when to wake is told of it, though it is past."""
    attributes = fresh(mode=stat.S_IFDIR, uid=0, gid=0, now_ns=0)
    root = Directory(number=ROOT_NUMBER, attributes=attributes)
    sweeper = Sweeper(MemoryStorage(), Placement(root, NoLog(), mount_id=""), NoLog(), 1, lambda: None)
    seconds = count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(seconds))  # so each look takes one
    async with trio.open_nursery() as nursery:
        sweeper.start(nursery, set())
        looks_at = trio.current_time() + PAUSES
        assert not sweeper.may_look()
        mock_clock.jump(PAUSES + 1)
        assert sweeper.wakes_at == looks_at
        assert sweeper.may_look()

        sweeper.hold_back("directory/")
        sweeper.start(nursery, set())
        held_until = trio.current_time() + HOLD_SECONDS
        mock_clock.jump(HOLD_SECONDS + 1)
        assert sweeper.wakes_at == held_until
        sweeper.start(nursery, set())
        assert sweeper.wakes_at == math.inf


LEFT: Final = [Version(f"{number}", "etag", 1) for number in range(1_000)]


class FewAtOnce(MemoryStorage):
    """A store that deletes ten objects with one request."""

    @property
    def limits(self) -> Limits:
        return replace(super().limits, max_delete_batch=10)


@asynccontextmanager
async def sweeping(storage: ObjectStorage) -> AsyncIterator[Sweeper]:
    """Begin to delete a thousand objects, four batches at once."""
    attributes = fresh(mode=stat.S_IFDIR, uid=0, gid=0, now_ns=0)
    placement = Placement(Directory(number=ROOT_NUMBER, attributes=attributes), NoLog(), mount_id="")
    for version in LEFT:
        placement.leave(version)
    progress = trio.Event()
    sweeper = Sweeper(storage, placement, NoLog(), 4, progress.set)
    async with trio.open_nursery() as nursery:
        sweeper.start(nursery, set())
        await progress.wait()
        yield sweeper
        nursery.cancel_scope.cancel()


async def test_an_outage_is_waited_for_once(autojump_clock: MockClock) -> None:
    """And not by every few batches, one after the other: an unmount would take hours."""
    faulty = FaultyStorage(FewAtOnce())
    faulty.fail(Unavailable, times=math.inf)
    patience = RetryPolicy().timeout_seconds
    began = trio.current_time()
    async with sweeping(RetryingStorage(faulty)) as sweeper:
        assert sweeper.failure_count == len(LEFT)
        assert trio.current_time() - began <= patience


async def test_what_was_refused_is_tried_again_by_few_tasks(autojump_clock: MockClock) -> None:
    """Millions of objects may be left over where deletions are denied."""
    faulty = FaultyStorage(FewAtOnce())
    faulty.fail(AccessDenied, times=math.inf)
    async with sweeping(faulty) as sweeper:
        assert sweeper.failure_count == len(LEFT)
        assert trio.lowlevel.current_statistics().tasks_living < len(LEFT) / 5
