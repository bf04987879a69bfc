"""When the sweeper looks through what is left over. What it does then is in `tests/core/test_publisher.py`."""

from __future__ import annotations

import math
import stat
import time
from itertools import count

import pytest
import trio
from trio.testing import MockClock

from backends.memory import MemoryStorage
from fusefs.attributes import fresh
from fusefs.change_log import NoLog
from fusefs.inodes import ROOT_NUMBER, Directory
from fusefs.placement import Placement
from fusefs.sweeper import HOLD_SECONDS, PAUSES, Sweeper


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
