"""What was done without fsync is in the log within `commit_interval`, if a commit takes a quarter of that at most."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Final, cast

import trio
from trio.testing import MockClock

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


async def test_what_was_done_is_in_the_log_in_time(autojump_clock: MockClock) -> None:
    """Also what was done just after a commit had begun, and so waits for the next."""
    log = SlowLog()
    session: Any = SimpleNamespace(
        _config=SimpleNamespace(mount=SimpleNamespace(commit_interval_seconds=INTERVAL)),
        _filesystem=SimpleNamespace(has_writers=False),
        _committer=log,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.change)
        nursery.start_soon(_Session._collect_pages, cast(_Session, session))
        await trio.sleep(20 * INTERVAL)
        nursery.cancel_scope.cancel()
    assert log.commits > 20
    assert log.longest <= INTERVAL
