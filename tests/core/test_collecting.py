"""What was done without fsync is in the log within `commit_interval`, if a commit takes a quarter of that at most."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest
import trio
from trio.testing import MockClock

from fusefs import mount
from fusefs.mount import _Session

INTERVAL: Final = 5.0
COMMIT: Final = INTERVAL / 4
STEP: Final = INTERVAL / 50


class SlowLog:
    """Notes for how long changes were in memory alone; one is made every `STEP`."""

    def __init__(self) -> None:
        self.waiting: list[float] = []
        self.longest = 0.0
        self.commits = 0

    async def change(self) -> None:
        while True:
            self.waiting.append(trio.current_time())
            await trio.sleep(STEP)

    async def commit(self) -> None:
        captured, self.waiting = self.waiting, []
        await trio.sleep(COMMIT)
        self.commits += 1
        self.longest = max([self.longest, *(trio.current_time() - done for done in captured)])


class Session(_Session):
    """One that is not mounted."""

    def __init__(self, log: SlowLog, *, has_writers: bool) -> None:
        options = SimpleNamespace(commit_interval_seconds=INTERVAL)
        self._config = cast(Any, SimpleNamespace(mount=options))
        self._filesystem = cast(Any, SimpleNamespace(has_writers=has_writers))
        self._committer = cast(Any, log)
        self._mountpoint = Path()


@pytest.mark.parametrize("has_writers", [False, True])
async def test_what_was_done_is_in_the_log_in_time(
    has_writers: bool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what was done just after a commit had begun, and so waits for the next; and while a writer waits for the
    store, so that the kernel cannot hand over its pages.
    """
    log, ends = SlowLog(), threading.Event()
    monkeypatch.setattr(mount, "sync_filesystem", lambda mountpoint: ends.wait())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.change)
        nursery.start_soon(Session(log, has_writers=has_writers)._collect_pages)
        await trio.sleep(20 * INTERVAL)
        ends.set()
        nursery.cancel_scope.cancel()
    assert log.commits > 20
    assert log.longest <= INTERVAL
